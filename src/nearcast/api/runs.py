"""Functions that make a snapshot or estimate its cost: run and check."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nearcast.api.arguments import SpecLike, report_failure, resolve_out, resolve_spec
from nearcast.api.retaining import retain_snapshots
from nearcast.errors import NearcastError, TargetError
from nearcast.history.event_log import read
from nearcast.history.publish_events import find_live_version, find_rejected_versions
from nearcast.history.record import record_run
from nearcast.join.inputs import InMemoryTables
from nearcast.join.listener import Listener
from nearcast.join.measure_snapshot import Baseline
from nearcast.join.run import Outcome, check_generator, run_generator
from nearcast.publishing.targets import PublishTarget, read_spec_target
from nearcast.runners import make_runner
from nearcast.runners.base import Runner
from nearcast.settings.run_tables import RunSpec
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.storage.locations import Location
from nearcast.table.snapshot import Snapshot

if TYPE_CHECKING:
    from nearcast.join.estimate import RunEstimate
    from nearcast.sources.validate_rows import Report

__all__ = ["check", "finish_run", "read_baseline", "run"]


def run(
    spec: SpecLike,
    *,
    items: object | None = None,
    queries: object | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
    again: bool = False,
    runner: str | Runner | None = None,
    workers: int | None = None,
    shards: int | None = None,
) -> Outcome:
    """Make a snapshot of a generator: check, join, write, measure. See `nearcast.join.run.run_generator`.

    items, queries: tables (Arrow, pandas, polars) or pairs (ids, vectors) that replace the files of the spec.
    base: folder that paths of the spec are relative to; default: the folder of the spec file, else the current one.
    again: make a new snapshot even if nothing has changed.
    runner, workers, shards: instead of those of [run] in the spec; `runner` is a name or an open runner.
    """
    parsed, folder = resolve_spec(spec, base, items, queries)
    parsed = _override_run(parsed, runner if isinstance(runner, str) else None, workers, shards)
    listener = listener or Listener()
    out = resolve_out(None, parsed, folder)
    tables, baseline = InMemoryTables(items, queries), read_baseline(out, parsed.name, listener)
    try:
        with open_runner(parsed, None if isinstance(runner, str) else runner) as opened:
            outcome = run_generator(
                parsed, folder, tables=tables, listener=listener, runner=opened, again=again, baseline=baseline
            )
    except TargetError as error:
        if isinstance(error.snapshot, Snapshot):
            finish_run(read_spec_target(parsed, out), error.snapshot, listener)
        raise
    finish_run(read_spec_target(parsed, out), outcome.snapshot, listener)
    return outcome


def finish_run(target: PublishTarget, snapshot: Snapshot, listener: Listener) -> None:
    """Record a run in the history, and remove old snapshots of the generator."""
    report_failure(listener, record_run(target.out, snapshot))
    retain_snapshots(target, listener)


@contextlib.contextmanager
def open_runner(spec: GeneratorSpec, runner: Runner | None = None) -> Iterator[Runner]:
    """Yield the runner of a spec, and close it at the end. A runner that is passed open stays open."""
    if runner is not None:
        yield runner
        return
    with contextlib.closing(make_runner(spec.run.runner, spec.run.workers)) as opened:
        yield opened


def _override_run(spec: GeneratorSpec, runner: str | None, workers: int | None, shards: int | None) -> GeneratorSpec:
    """Return the spec with other settings of [run]. Raises SpecError for values that the spec refuses."""
    given = {"runner": runner, "workers": workers, "shards": shards}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        return spec
    settings = spec.run.model_dump() | changes | ({"shard_bytes": None} if shards is not None else {})
    return spec.model_copy(update={"run": parse_model(RunSpec, settings, "the settings of the run")})


def read_baseline(out: Location, generator: str, listener: Listener) -> Baseline:
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
