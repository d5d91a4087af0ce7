"""Functions that explain: one item in one list, and the changes between two snapshots."""

from __future__ import annotations

from pathlib import Path

from nearcast.api.arguments import OUT
from nearcast.errors import NotFoundError
from nearcast.evaluation.label_set import LabelSet, read_labels
from nearcast.evaluation.label_table import open_label_table
from nearcast.join.diff import SAMPLE, Diff, DiffOptions, diff_snapshots
from nearcast.join.explain import Explanation
from nearcast.join.explain import explain as explain_pair
from nearcast.join.scored_items import SnapshotInputs, open_snapshot_inputs
from nearcast.settings.label_tables import LabelsSpec
from nearcast.spec import parse_model
from nearcast.storage.artifacts import Artifacts, open_artifacts
from nearcast.storage.locations import Location, host_folder, parse_location
from nearcast.storage.open_storage import join_location
from nearcast.table.snapshot import Snapshot, find_snapshot, hold_for_reading, list_snapshots

__all__ = ["diff", "explain"]


def explain(
    generator: str, query: str | int, item: str | int, *, out: str | Path = OUT, version: int | None = None
) -> Explanation:
    """Explain why an item is or is not in the list of a query; see `nearcast.join.explain`.

    version: the snapshot. Its inputs must still exist; those of the newest do. Default: the newest.
    """
    location = parse_location(out)
    snapshot = find_snapshot(location, generator, version)
    here, remote = _find_artifacts(snapshot, location)
    return explain_pair(snapshot, here, query, item, remote=remote)


def diff(
    generator: str,
    before: int | None = None,
    after: int | None = None,
    *,
    out: str | Path = OUT,
    sample: int = SAMPLE,
    seed: int = 0,
    labels: object = None,
    label_columns: tuple[str, str] = ("query", "item"),
    grade: str | None = None,
) -> Diff:
    """Compare two snapshots (default: the newest two), and explain what changed by cause; see `nearcast.join.diff`.

    sample, seed: up to so many queries are drawn. labels: a path, as for `evaluate`, or a table in memory: adds the
    change of the hit rate. label_columns: its columns of queries and items. grade: its column of grades, relevant above
    0; default: every row is relevant. The inputs of the newer snapshot are used if they still exist, as those of the
    newest do.
    """
    location = parse_location(out)
    newer = find_snapshot(location, generator, after)
    if before is None:
        versions = [found for found in list_snapshots(location, generator) if found.version < newer.version]
        if not versions:
            raise NotFoundError(f"{generator} has no snapshot before {newer.name} to compare it with")
        older = versions[-1]
    else:
        older = find_snapshot(location, generator, before)
    known = None if labels is None else _read_labels(labels, label_columns, grade)
    with hold_for_reading(older), hold_for_reading(newer):
        return diff_snapshots(older, newer, DiffOptions(sample, seed, _find_inputs(newer, location), known))


def _read_labels(labels: object, columns: tuple[str, str], grade: str | None) -> LabelSet:
    """Read the labels. Raises InputError if they cannot be used."""
    table = open_label_table(labels, Path())
    settings = {"path": table.name, "query": columns[0], "item": columns[1], "grade": grade}
    return read_labels(table, parse_model(LabelsSpec, settings, "labels"))


def _find_inputs(snapshot: Snapshot, location: Location) -> SnapshotInputs | None:
    """Open the inputs of a snapshot; None if they are removed."""
    here, remote = _find_artifacts(snapshot, location)
    try:
        return open_snapshot_inputs(snapshot, here, None, remote)
    except NotFoundError:
        return None


def _find_artifacts(snapshot: Snapshot, location: Location) -> tuple[Path, Artifacts]:
    """Return the folder of artifacts on this host, and the artifacts where the run wrote them."""
    here = host_folder(location) / snapshot.generator / "artifacts"
    planned = snapshot.manifest.run.artifacts
    return here, open_artifacts(planned or join_location(location, snapshot.generator, "artifacts"))
