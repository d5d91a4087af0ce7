"""Run a generator: the stages in order, from sources to a committed snapshot.

    hash -> check -> estimate -> read -> rules -> build -> calibrate -> join -> choose -> table -> measure -> profile

A run writes below <out>/<generator>: unfinished work in `work`, results that later runs may use again in `artifacts`,
finished snapshots in `snapshots`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nearcast.errors import DamagedError, NotFoundError, StorageError
from nearcast.files import fingerprint, hold_lock
from nearcast.join.abandoned_work import sign_of_life
from nearcast.join.commit_snapshot import (
    check_target,
    commit_snapshot,
    draft_manifest,
    raise_below_target,
    record_run,
    remove_work,
)
from nearcast.join.context import RunContext, prepare
from nearcast.join.estimate import RunEstimate, estimate_run, require_budget
from nearcast.join.inputs import Checked, InMemoryTables, check_inputs, pin_versions
from nearcast.join.listener import Listener
from nearcast.join.measure_labels import measure_labels, raise_broken_promise
from nearcast.join.measure_snapshot import Baseline, EarlierSnapshot
from nearcast.join.perform_task import open_worker_run
from nearcast.join.profile_inputs import profile_rules
from nearcast.join.reserves import record_reserves
from nearcast.join.run_mode import describe_mode
from nearcast.join.run_plan import enter_work
from nearcast.join.run_stages import StageCounts, run_stages
from nearcast.join.shared_plan import SharedPlan, read_finished, require_out
from nearcast.join.ship_model import ship_model
from nearcast.join.snapshot_files import list_snapshot_files
from nearcast.join.task_context import TaskContext
from nearcast.join.task_times import count_all_tasks
from nearcast.join.validate_run import (
    OpenedRun,
    check_ranker_on_pairs,
    open_run,
    refuse_out,
    sketch_inputs,
)
from nearcast.runners.base import Runner
from nearcast.runners.local import LocalRunner
from nearcast.settings.run_tables import SHARD_KEYS
from nearcast.sources.validate_rows import Report
from nearcast.spec import GeneratorSpec
from nearcast.storage.artifacts import open_artifacts
from nearcast.storage.open_storage import is_url, join_location
from nearcast.table.manifest import Manifest
from nearcast.table.snapshot import Snapshot, hold_snapshot, list_snapshots

__all__ = ["Outcome", "check_generator", "commit_run", "gather", "run_generator"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run: a new snapshot, or the last one again."""

    snapshot: Snapshot
    reused: bool  # nothing has changed since the last snapshot, and it is returned


def run_generator(
    spec: GeneratorSpec,
    base: Path,
    *,
    tables: InMemoryTables | None = None,
    listener: Listener | None = None,
    runner: Runner | None = None,
    again: bool = False,
    baseline: Baseline | None = None,
) -> Outcome:
    """Make a snapshot of a generator, or continue an interrupted run.

    Paths of the spec are relative to `base`. tables: in memory, instead of the spec's files. If nothing has changed
    since the last snapshot, that one is returned, unless `again`. baseline: the served and rejected versions; measures
    of change compare with the served one, by default with the newest.

    Raises InputError for bad data, BudgetError before work that does not fit, BusyError while another run holds the
    generator, TargetError if the finished snapshot is below its recall target.
    """
    run = prepare(pin_versions(spec, base, tables), base, listener or Listener())
    refuse_out(run.workspace.out)
    with hold_lock(run.workspace.home / ".lock", f"generator {spec.name!r}"), run.meter.run():
        opened = open_run(run, tables or InMemoryTables())
        snapshots = list_snapshots(run.workspace.out, spec.name)
        last = snapshots[-1] if snapshots else None
        if last is not None and last.manifest.fingerprint == opened.plan.fingerprint and not again:
            run.listener.note(f"nothing has changed since snapshot {last.name}: it is the answer")
            remove_work(run, last)  # the run that made it may have been killed before it did
            outcome = Outcome(last, reused=True)
        else:
            earlier = (baseline or Baseline()).choose(snapshots)
            seen = 0 if last is None else last.version
            made_of = tables or InMemoryTables()
            snapshot = _make_snapshot(run, opened, made_of, earlier, runner or LocalRunner(), seen)
            outcome = Outcome(snapshot, reused=False)
    raise_below_target(outcome.snapshot)
    raise_broken_promise(run, outcome.snapshot)
    return outcome


def check_generator(
    spec: GeneratorSpec,
    base: Path,
    *,
    tables: InMemoryTables | None = None,
    listener: Listener | None = None,
) -> tuple[Report, RunEstimate]:
    """Do everything that a run does before its join, and keep nothing: a dry run.

    Raises all errors of a run that need no join. The estimate includes the share of sampled pairs that each rule keeps.
    """
    run = prepare(spec, base, listener or Listener())
    refuse_out(run.workspace.out)
    opened = open_run(run, tables or InMemoryTables())
    checked = _check_inputs(run, opened)
    estimate = estimate_run(run, checked)
    require_budget(estimate, run)
    with tempfile.TemporaryDirectory(prefix="nearcast-check-") as folder:
        inputs = sketch_inputs(run, checked, Path(folder))
        rules = profile_rules(run.spec, inputs)
    check_ranker_on_pairs(run, opened.sources, checked.report.items.dim)
    return checked.report, replace(estimate, rules=rules)


def _make_snapshot(
    run: RunContext, opened: OpenedRun, tables: InMemoryTables, earlier: EarlierSnapshot, runner: Runner, seen: int
) -> Snapshot:
    run = _place_work(run, opened, runner)
    version = None if earlier.snapshot is None else earlier.snapshot.version
    context = TaskContext(run, opened.plan, tables, version, opened)
    with contextlib.ExitStack() as stack:
        if earlier.snapshot is not None:  # it is read at the end, and may be retired meanwhile
            stack.enter_context(hold_snapshot(earlier.snapshot))
        if is_url(run.results.url):
            stack.enter_context(sign_of_life(run.results.url))
        if not runner.on_this_host:
            ship_model(run.spec, run.workspace.base, run.results)
        counts = run_stages(context, runner)
        snapshot = commit_run(context, earlier, counts, seen)
    remove_work(run, snapshot)
    return snapshot


def gather(
    shared: SharedPlan, listener: Listener, committed: Callable[[Snapshot], None], runner: Runner | None = None
) -> Outcome:
    """Run what is left of a shared run, and commit its snapshot; return the snapshot if that is done already.

    committed: called with the new snapshot before the work is removed: workers look at what it writes. Another host may
    gather at the same time: one snapshot is committed, and both return it.

    Raises BusyError while another process of this host holds the generator, NotFoundError if the run was finished and
    its snapshot removed, TargetError if the finished snapshot is below its recall target.
    """
    context = open_worker_run(shared.area, listener)
    run = context.run
    require_out(shared, run)
    with hold_lock(run.workspace.home / ".lock", f"generator {run.spec.name!r}"), run.meter.run():
        snapshots = list_snapshots(run.workspace.out, run.spec.name)
        made = _find_gathered(shared, snapshots, context.plan.fingerprint)
        if made is not None:
            remove_work(run, made)  # the run that committed it may have been killed before it did
            outcome = Outcome(made, reused=True)
        else:
            outcome = _gather_left(context, shared, snapshots, runner or LocalRunner())
            committed(outcome.snapshot)
            remove_work(run, outcome.snapshot)
    raise_below_target(outcome.snapshot)
    raise_broken_promise(run, outcome.snapshot)
    return outcome


def _find_gathered(shared: SharedPlan, snapshots: Sequence[Snapshot], planned: str) -> Snapshot | None:
    """Return the snapshot of a finished plan; None for a plan that is not finished. planned: its fingerprint."""
    if snapshots and snapshots[-1].manifest.fingerprint == planned:
        return snapshots[-1]  # also of a gather that was killed before it recorded this
    version = read_finished(shared.work).get("version")
    if version is None:
        return None
    for snapshot in snapshots:
        if snapshot.version == version and snapshot.manifest.fingerprint == planned:
            return snapshot
    raise NotFoundError(
        f"the run at {shared.work} was finished, and its snapshot {version} was removed since; `nearcast plan SPEC "
        f"--work {shared.work}` plans it again"
    )


def _gather_left(context: TaskContext, shared: SharedPlan, snapshots: Sequence[Snapshot], runner: Runner) -> Outcome:
    """Run what is left, and commit the snapshot; return that of another host which gathers, and was faster."""
    by_version, run = {snapshot.version: snapshot for snapshot in snapshots}, context.run
    earlier = EarlierSnapshot(by_version.get(context.earlier or -1), shared.plan["earlier_is_served"])
    try:
        with sign_of_life(shared.work):
            counts = run_stages(context, runner)
            count_all_tasks(run.meter, run.results)
            return Outcome(commit_run(context, earlier, counts, max(by_version, default=0)), reused=False)
    except (NotFoundError, DamagedError) as error:  # the other one has removed the work
        made = _find_gathered(shared, list_snapshots(run.workspace.out, run.spec.name), context.plan.fingerprint)
        if made is None and isinstance(error, DamagedError):
            raise
        if made is None:
            raise StorageError(f"work of the run was removed by another process ({error}); gather again") from error
        return Outcome(made, reused=True)


def commit_run(context: TaskContext, earlier: EarlierSnapshot, counts: StageCounts, seen: int) -> Snapshot:
    """Check the recall target, and commit the files of the stages as a snapshot.

    seen: the newest version when the run began; another driver may commit the same run meanwhile.
    """
    run = context.run
    inputs, join, table = (context.read_facts(name) for name in ("ingest", "plan", context.measure_name))
    drafted = draft_manifest(context, inputs, join, table)
    files = list_snapshot_files(context)
    labelled = measure_labels(run, files, drafted["version"])
    record = record_run(run, inputs["estimate"], counts.tasks, counts.continued)
    reserves = record_reserves(context, record.created)
    record = replace(record, incremental=describe_mode(context), reserves=reserves)
    facts = {
        **drafted,
        **table["facts"],
        **labelled,
        "compared_with": earlier.facts,
        "measures": table["measures"],
        "promise": check_target(run, table["measures"], exact=join["is_exact"]).as_dict(),
        "run": record.as_dict(),
    }
    return commit_snapshot(run, files, Manifest(facts), seen)


def _place_work(run: RunContext, opened: OpenedRun, runner: Runner) -> RunContext:
    """Return the run with artifacts that the workers can reach: in the bucket of `out` for workers on other hosts.

    Throws away earlier unfinished work of another plan, or of other shards, on this host. In a bucket, each has its own
    folder.
    """
    out, settings = run.workspace.out, _settings_of_tasks(run.spec)
    if not runner.on_this_host and isinstance(out, str):
        home = join_location(out, run.spec.name)
        planned = opened.plan.fingerprint
        work = join_location(home, "work", fingerprint([planned, settings]) if settings else planned)
        artifacts, results = open_artifacts(join_location(home, "artifacts")), open_artifacts(work)
        return replace(run, artifacts=artifacts, results=results)
    changed = enter_work(run.workspace.work, opened.plan, settings)
    if changed:
        run.listener.note(f"earlier unfinished work is thrown away, since {changed}")
    return run


def _settings_of_tasks(spec: GeneratorSpec) -> dict[str, Any]:
    """Return the settings that decide the tasks: the shards, and `incremental`. At recall 1 the result is the same."""
    chosen = {f"run.{key}": getattr(spec.run, key) for key in SHARD_KEYS}
    if not any(chosen.values()):  # as many as the memory needs
        chosen = {"memory": spec.memory, "run.worker_memory": spec.run.worker_memory}
    chosen["run.incremental"] = spec.run.incremental or None
    return {key: value for key, value in chosen.items() if value is not None}


def _check_inputs(run: RunContext, opened: OpenedRun) -> Checked:
    with run.meter.stage("check"):
        return check_inputs(
            run.spec,
            opened.sources,
            run.artifacts,
            settings=replace(run.stage_settings, scratch=None, with_vectors=False),
            progress=run.listener.progress,
            checked=run.listener.checked,
        )
