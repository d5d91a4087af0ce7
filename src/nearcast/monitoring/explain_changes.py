"""Why the figures of the newest run moved: its comparison with an earlier snapshot, once per run, for the history.

The page draws what is recorded here. The comparison is bounded: a sample of queries, inputs of this host alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nearcast.errors import NearcastError, NotFoundError
from nearcast.evaluation.judge_snapshot import open_labels
from nearcast.evaluation.label_set import LabelSet, read_labels
from nearcast.history.event_log import HistoryEvent
from nearcast.join.context import RunContext
from nearcast.join.diff import Diff, DiffOptions, diff_snapshots
from nearcast.join.scored_items import SnapshotInputs, open_snapshot_inputs
from nearcast.monitoring.serving_summary import list_newest_runs
from nearcast.storage.locations import Location, host_folder, parse_location
from nearcast.table.snapshot import Snapshot, find_snapshot, hold_for_reading

__all__ = ["explain_changes", "find_recorded_changes"]

SAMPLE = 500  # queries that are compared
RECALL_QUERIES = 200  # that are compared with all items


def explain_changes(
    out: Location, generator: str, events: Sequence[HistoryEvent], run: RunContext | None = None
) -> dict[str, Any] | None:
    """Return the changes of figures since the snapshot that the newest run was compared with, as plain data.

    A comparison that an earlier pass has recorded is used again. run: made from the spec, whose labels add the change
    of the hit rate. Returns None without an earlier snapshot, or if the two cannot be compared.
    """
    runs = list_newest_runs(events)
    if len(runs) < 2 or runs[-1].version is None or not isinstance(parse_location(out), Path):
        return None  # a check does not download snapshots from a bucket
    before = (runs[-1].facts.get("compared_with") or {}).get("version", runs[-2].version)
    known = find_recorded_changes(events, runs[-1].version)
    if known is not None and known["before"] == before:
        return dict(known)
    try:
        older, newer = (find_snapshot(out, generator, version) for version in (before, runs[-1].version))
        options = DiffOptions(SAMPLE, inputs=_find_local_inputs(out, newer), recall_queries=RECALL_QUERIES)
        found = _compare(older, newer, options, run)
    except (NearcastError, OSError):  # a snapshot is removed, or its ids have another type
        return None
    return {
        "before": older.version,
        "after": newer.version,
        "queries": found.queries,
        "figures": [asdict(figure) for figure in found.figures],
        "limits": list(found.limits),
    }


def _compare(older: Snapshot, newer: Snapshot, options: DiffOptions, run: RunContext | None) -> Diff:
    """Compare two snapshots, by the labels too if they can be read and are labels of compared queries."""
    with hold_for_reading(older), hold_for_reading(newer):
        with contextlib.suppress(NearcastError, OSError):
            return diff_snapshots(older, newer, replace(options, labels=_read_labels(run)))
        return diff_snapshots(older, newer, options)


def _read_labels(run: RunContext | None) -> LabelSet | None:
    settings = None if run is None else run.spec.labels
    return None if settings is None or run is None else read_labels(open_labels(settings, run.workspace.base), settings)


def find_recorded_changes(events: Sequence[HistoryEvent], version: int | None) -> Mapping[str, Any] | None:
    """Return the changes that the last pass over this run recorded; None if there are none."""
    for event in reversed(events):
        if event.kind == "monitor":
            changes: Mapping[str, Any] | None = event.facts.get("changes")
            return changes if changes is not None and changes.get("after") == version else None
    return None


def _find_local_inputs(out: Location, snapshot: Snapshot) -> SnapshotInputs | None:
    """Open the inputs of a snapshot if they are on this host: a check downloads no table."""
    folder = host_folder(out) / snapshot.generator / "artifacts"
    try:
        return open_snapshot_inputs(snapshot, folder, Path()) if folder.is_dir() else None
    except NotFoundError:
        return None
