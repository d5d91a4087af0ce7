"""Run a generator: the order of the stages, and what is remembered of them.

    hash -> check -> estimate -> ingest -> index -> calibrate -> join -> choose -> table -> measure -> snapshot

Everything is written below <out>/<generator>: `work` for what is under way, `artifacts` for what the next run
may use again, `snapshots` for what is finished.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from nearcast import machine
from nearcast.engines import choose_engine
from nearcast.engines.base import JoinRequest, JoinShape
from nearcast.files import fresh_folder, locked
from nearcast.join.baseline import Baseline, Earlier
from nearcast.join.commit_snapshot import finish_snapshot, input_facts, size_of, stop_below_promise, tidy, verdict
from nearcast.join.compile_constraints import have_constraints
from nearcast.join.context import RunContext, prepare
from nearcast.join.estimate import RunEstimate, estimate_run, stop_if_too_large
from nearcast.join.inputs import Checked, InMemoryTables, Sources, check_inputs, ingest_inputs, trial_vectors
from nearcast.join.listener import Listener
from nearcast.join.plan_overfetch import estimate_survival
from nearcast.join.profile_inputs import profile_inputs
from nearcast.join.rank import check_ranker
from nearcast.join.run_plan import Plan, enter_work
from nearcast.join.score_terms import scored_inputs
from nearcast.join.select_candidates import choose_lists
from nearcast.join.stages import (
    build_index,
    choose_params,
    draw_samples,
    is_exact_join,
    make_request,
    make_settings,
    measure_table,
    run_tasks,
    sample_sizes,
    write_table,
)
from nearcast.join.validate_run import (
    check_columns,
    check_ranker_on_pairs,
    open_run,
    refuse_out,
    rule_shares,
    sketched_inputs,
)
from nearcast.runners.base import Runner
from nearcast.runners.local import LocalRunner
from nearcast.sources.validate_rows import Report
from nearcast.spec import GeneratorSpec
from nearcast.table.candidate_schema import FORMAT_VERSION
from nearcast.table.manifest import Manifest
from nearcast.table.snapshot import Snapshot, list_snapshots, next_version
from nearcast.version import __version__

__all__ = ["Outcome", "check_generator", "run_generator"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has led to."""

    snapshot: Snapshot
    reused: bool  # nothing had changed since the last snapshot, so it is the answer


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
    """Make a snapshot of a generator, or continue the run that was interrupted.

    Paths of the spec are relative to `base`. `items` and `queries` take the place of the sources' files:
    Arrow, pandas or polars tables, or pairs (ids, vectors). With nothing changed since the last snapshot,
    that one is returned, unless `again`. baseline: which earlier snapshot the measures of change compare with; the
    newest.

    Raises InputError for bad data, BudgetError before work that does not fit, BusyError while another run
    holds the generator, TargetError when the snapshot is finished but below its promise.
    """
    run = prepare(spec, base, listener or Listener())
    refuse_out(run.workspace.out)
    with locked(run.workspace.home / ".lock", f"generator {spec.name!r}"), run.meter.run():
        sources, plan = open_run(run, tables or InMemoryTables())
        snapshots = list_snapshots(run.workspace.out, spec.name)
        last = snapshots[-1] if snapshots else None
        if last is not None and last.manifest.fingerprint == plan.fingerprint and not again:
            run.listener.note(f"nothing has changed since snapshot {last.name}: it is the answer")
            tidy(run.workspace, last)  # the run that made it may have been killed before it could
            outcome = Outcome(last, reused=True)
        else:
            earlier = (baseline or Baseline()).choose(snapshots)
            made = _new_snapshot(run, sources, plan, earlier, runner or LocalRunner())
            outcome = Outcome(made, reused=False)
    stop_below_promise(outcome.snapshot)
    return outcome


def check_generator(
    spec: GeneratorSpec,
    base: Path,
    *,
    tables: InMemoryTables | None = None,
    listener: Listener | None = None,
) -> tuple[Report, RunEstimate]:
    """Do all of a run that comes before its join, and keep nothing: a complete dry run.

    Raises whatever a run would raise that needs no join. The estimate has what each rule keeps of a sample of pairs.
    """
    run = prepare(spec, base, listener or Listener())
    refuse_out(run.workspace.out)
    sources, _ = open_run(run, tables or InMemoryTables())
    checked = _checked(run, sources)
    estimate = _estimated(run, checked)
    stop_if_too_large(estimate, run.engine.name, _existing(run.workspace.out))
    with tempfile.TemporaryDirectory(prefix="nearcast-check-") as folder:
        inputs = sketched_inputs(run, checked, Path(folder))
        rules = rule_shares(run, inputs)
    check_ranker_on_pairs(run, sources, checked.report.items.dim)
    return checked.report, replace(estimate, rules=rules)


def _new_snapshot(
    run: RunContext,
    sources: Sources,
    plan: Plan,
    earlier: Earlier,
    runner: Runner,
) -> Snapshot:
    changed = enter_work(run.workspace.work, plan)
    if changed:
        run.listener.note(f"earlier unfinished work is thrown away, since {changed}")
    checked = _checked(run, sources)
    with run.meter.stage("estimate"):
        estimate = _estimated(run, checked)
    stop_if_too_large(estimate, run.engine.name, run.workspace.out)
    with run.meter.stage("read"):
        inputs = ingest_inputs(run.spec, checked, memory_bytes=run.read_bytes, progress=run.listener.progress)
        survival = estimate_survival(run.spec, inputs, sources)
    raw = (checked.item_folder, checked.query_folder)
    originals = inputs.items.vectors
    whole, (run, inputs) = run, scored_inputs(run, inputs, run.workspace.artifacts)
    checked = replace(checked, item_folder=inputs.items.folder, query_folder=inputs.queries.folder)
    constraints = have_constraints(run, inputs, run.workspace.artifacts, originals)
    check_columns(run, inputs)
    request = make_request(run, constraints)
    index_folder = build_index(run, request, checked, inputs, constraints)
    check_ranker(run.spec, run.workspace.base, plan)
    settings = make_settings(run, request, inputs, index_folder, constraints)
    sampled = draw_samples(run, inputs)
    settings, calibration = choose_params(run, request, settings, inputs, sampled)
    exact = is_exact_join(settings)  # here: the join closes the index
    tasks, continued = run_tasks(run, settings, inputs, runner)
    folder = fresh_folder(run.workspace.work / "snapshot")
    chosen = choose_lists(run, tasks, inputs, survival, folder)
    artifacts = (*raw, checked.item_folder, checked.query_folder, index_folder)
    measures, n_rows = write_table(run, request, chosen, inputs, checked.report, folder, exact=exact)
    facts = {
        "format": FORMAT_VERSION,
        "generator": run.spec.name,
        "version": next_version(run.workspace.out, run.spec.name),
        "rows": n_rows,
        "fingerprint": plan.fingerprint,
        "nearcast": __version__,
        "spec": whole.spec.as_recorded(),
        "inputs": input_facts(sources, checked.report, whole.spec),
        "engine": {
            "name": run.engine.name,
            "settings": run.settings.model_dump(),
            "effort": dict(settings.params),
            "calibration": calibration,
        },
        "artifacts": sorted({p.name for p in (*artifacts, *([constraints] if constraints else []))}),
    }
    last, here = earlier.snapshot, Snapshot(folder, Manifest(facts))
    sampled_measures, sampled_facts = measure_table(run, request, here, inputs, sampled.report, last, chosen)
    measures |= sampled_measures
    facts |= sampled_facts
    facts["compared_with"] = earlier.facts
    facts |= chosen.facts
    with run.meter.stage("profile"):
        facts["profile"] = profile_inputs(run.spec, inputs, checked.report)
    facts["measures"] = measures
    facts["promise"] = verdict(run, measures, exactly=exact).as_dict()
    facts["run"] = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **run.meter.as_dict(),
        "disk_bytes": size_of(run.workspace.work) + size_of(run.workspace.artifacts),
        "estimate": estimate.as_dict(),
        "tasks": len(tasks),
        "tasks_continued": continued,
        "machine": machine.describe(),
    }
    return finish_snapshot(run, folder, facts)


def _checked(run: RunContext, sources: Sources) -> Checked:
    with run.meter.stage("check"):
        return check_inputs(
            run.spec,
            sources,
            run.workspace.artifacts,
            memory_bytes=run.read_bytes,
            progress=run.listener.progress,
            checked=run.listener.checked,
        )


def _estimated(run: RunContext, checked: Checked) -> RunEstimate:
    """Time a few of the real items with the engine and with the referee, and scale up."""
    report = checked.report
    sample = trial_vectors(checked, run.read_bytes)
    request = JoinRequest(run.spec.metric, run.spec.join_k, run.spec.recall)
    shape = JoinShape(request, report.items.vectors, report.queries.vectors, report.items.dim, sample.dtype.itemsize)
    engine = run.engine.estimate(shape, sample, run.settings, run.resources)
    reference = choose_engine("exact")
    exact = reference.estimate(shape, sample, reference.settings(), run.resources)
    per_pair = exact.seconds["join"] / max(1, shape.n_queries * shape.n_items)
    estimate = estimate_run(
        shape,
        engine,
        exact_seconds_per_pair=per_pair,
        sampled_queries=sum(sample_sizes(run, shape.n_queries)),
        read_seconds=run.meter.seconds.get("check", 0.0),
        input_bytes=checked.disk_bytes,
        read_memory_bytes=checked.memory_bytes,
        base_bytes=run.meter.base_bytes,
        budget_bytes=run.meter.budget_bytes,
    )
    run.listener.estimated(estimate)
    return estimate


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.is_dir():
        folder = folder.parent
    return folder
