"""The verbs that make a snapshot, or look at what one would take: run and check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nearcast.api.arguments import SpecLike, note, resolve
from nearcast.errors import NearcastError, TargetError
from nearcast.history.event_log import read
from nearcast.history.publish_events import live_of, rejected_versions
from nearcast.history.record import record_run
from nearcast.join.baseline import Baseline
from nearcast.join.inputs import InMemoryTables
from nearcast.join.listener import Listener
from nearcast.join.run import Outcome, check_generator, run_generator
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

    items, queries: tables (Arrow, pandas, polars) or pairs (ids, vectors), in place of the spec's files.
    base: the folder that the spec's paths are relative to; the spec file's own, else the current one.
    """
    parsed, folder = resolve(spec, base, items, queries)
    listener = listener or Listener()
    out = folder / parsed.out
    tables, baseline = InMemoryTables(items, queries), _baseline(out, parsed.name, listener)
    try:
        outcome = run_generator(parsed, folder, tables=tables, listener=listener, again=again, baseline=baseline)
    except TargetError as error:
        if isinstance(error.snapshot, Snapshot):
            note(listener, record_run(out, error.snapshot))
        raise
    note(listener, record_run(out, outcome.snapshot))
    return outcome


def _baseline(out: Path, generator: str, listener: Listener) -> Baseline:
    """What the history knows of earlier snapshots; nothing where it cannot be read."""
    try:
        moves = read(out, generator, ["publish", "rollback"])
    except NearcastError as error:
        listener.note(f"the lists are compared with those of the newest snapshot, not of the served one: {error}")
        return Baseline()
    live = live_of(moves)
    return Baseline(None if live is None else live.version, frozenset(rejected_versions(moves)))


def check(
    spec: SpecLike,
    *,
    items: object | None = None,
    queries: object | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
) -> tuple[Report, RunEstimate]:
    """Do all of a run that comes before the join: read and judge the inputs, and estimate."""
    parsed, folder = resolve(spec, base, items, queries)
    return check_generator(parsed, folder, tables=InMemoryTables(items, queries), listener=listener)
