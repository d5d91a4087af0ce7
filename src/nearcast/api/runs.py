"""Functions that make a snapshot or estimate its cost: run and check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nearcast.api.arguments import SpecLike, report_failure, resolve_out, resolve_spec
from nearcast.errors import NearcastError, TargetError
from nearcast.history.event_log import read
from nearcast.history.publish_events import find_live_version, find_rejected_versions
from nearcast.history.record import record_run
from nearcast.join.inputs import InMemoryTables
from nearcast.join.listener import Listener
from nearcast.join.measure_snapshot import Baseline
from nearcast.join.run import Outcome, check_generator, run_generator
from nearcast.storage.locations import Location
from nearcast.table.snapshot import Snapshot

if TYPE_CHECKING:
    from nearcast.join.estimate import RunEstimate
    from nearcast.sources.validate_rows import Report

__all__ = ["check", "run"]


def run(
    spec: SpecLike,
    *,
    items: object | None = None,
    queries: object | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
    again: bool = False,
) -> Outcome:
    """Make a snapshot of a generator: check, join, write, measure. See `nearcast.join.run.run_generator`.

    items, queries: tables (Arrow, pandas, polars) or pairs (ids, vectors) that replace the files of the spec.
    base: folder that paths of the spec are relative to; default: the folder of the spec file, else the current one.
    again: make a new snapshot even if nothing has changed.
    """
    parsed, folder = resolve_spec(spec, base, items, queries)
    listener = listener or Listener()
    out = resolve_out(None, parsed, folder)
    tables, baseline = InMemoryTables(items, queries), _read_baseline(out, parsed.name, listener)
    try:
        outcome = run_generator(parsed, folder, tables=tables, listener=listener, again=again, baseline=baseline)
    except TargetError as error:
        if isinstance(error.snapshot, Snapshot):
            report_failure(listener, record_run(out, error.snapshot))
        raise
    report_failure(listener, record_run(out, outcome.snapshot))
    return outcome


def _read_baseline(out: Location, generator: str, listener: Listener) -> Baseline:
    """Read the current and rejected versions from the history; return an empty baseline if it cannot be read."""
    try:
        moves = read(out, generator, ["publish", "rollback"])
    except NearcastError as error:
        listener.note(f"lists are compared with the newest snapshot instead of the current version: {error}")
        return Baseline()
    live = find_live_version(moves)
    return Baseline(None if live is None else live.version, frozenset(find_rejected_versions(moves)))


def check(
    spec: SpecLike,
    *,
    items: object | None = None,
    queries: object | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
) -> tuple[Report, RunEstimate]:
    """Do everything of a run that comes before the join: read and check the inputs, and estimate the cost."""
    parsed, folder = resolve_spec(spec, base, items, queries)
    return check_generator(parsed, folder, tables=InMemoryTables(items, queries), listener=listener)
