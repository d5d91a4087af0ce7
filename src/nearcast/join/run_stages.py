"""The stages of a run, and the driver that runs their tasks on a runner.

A stage is a list of task calls. Each list is computed from the plan and the facts of earlier stages, so that every
worker can compute it. The driver holds facts, never rows. What is committed is not run again: a run continues there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nearcast.join.accept_stage import list_accept_calls
from nearcast.join.choose_stage import list_choose_calls
from nearcast.join.compare_stage import list_compare_calls
from nearcast.join.driver_mark import mark_area
from nearcast.join.ingest_stage import INGEST_STAGES
from nearcast.join.join_tasks import list_join_calls
from nearcast.join.open_index import open_index
from nearcast.join.perform_task import perform_in, perform_task
from nearcast.join.rank import list_model_libraries
from nearcast.join.renew_tasks import list_rejoin_calls, list_renew_calls, list_stale_calls
from nearcast.join.score_stage import list_score_calls, list_terms_calls
from nearcast.join.shard_tasks import list_index_calls, list_merge_calls
from nearcast.join.table_stage import list_table_calls
from nearcast.join.task_context import TaskContext
from nearcast.runners.base import Runner, TaskCall, TaskOutcome, WorkArea
from nearcast.runners.call_messages import restore_error
from nearcast.runners.local import LocalRunner
from nearcast.runners.worker import ANY_KERNELS, describe_worker
from nearcast.storage.locations import absolute_location

__all__ = ["STAGES", "STAGES_OF_ROWS", "RunStage", "StageCounts", "make_area", "run_stages"]


@dataclass(frozen=True, slots=True)
class RunStage:
    """A stage of a run: its name, and its calls."""

    name: str
    list_calls: Callable[[TaskContext], Sequence[TaskCall]]
    in_driver: Callable[[TaskContext], bool] = lambda _context: False  # whether only the driver has what the tasks need


@dataclass(frozen=True, slots=True)
class StageCounts:
    """The number of tasks of a run's join, and how many of them an earlier, interrupted run had done."""

    tasks: int = 0
    continued: int = 0


def _one_call(name: str, **args: Any) -> Callable[[TaskContext], Sequence[TaskCall]]:
    return lambda _context: [TaskCall(name, name, args)]


STAGES: tuple[RunStage, ...] = (
    RunStage("survey", INGEST_STAGES["survey"], in_driver=lambda _context: True),  # which has hashed the inputs
    *(RunStage(name, calls) for name, calls in INGEST_STAGES.items() if name != "survey"),
    RunStage("ingest", _one_call("ingest"), in_driver=lambda context: context.tables.any),
    RunStage("terms", list_terms_calls),
    RunStage("score", list_score_calls),
    RunStage("prepare", _one_call("prepare")),
    RunStage("compare", list_compare_calls),  # from here to "accept": of incremental runs alone
    RunStage("stale", list_stale_calls),
    RunStage("rejoin", list_rejoin_calls),
    RunStage("renew", list_renew_calls),
    RunStage("accept", list_accept_calls),
    RunStage("index", list_index_calls),
    RunStage("plan", _one_call("plan")),
    RunStage("join", list_join_calls),
    RunStage("merge", list_merge_calls),
    RunStage("choose", list_choose_calls),
    RunStage("table", list_table_calls),
    RunStage("measure", lambda context: [TaskCall(context.measure_name, "measure", {"earlier": context.earlier})]),
)

STAGES_OF_ROWS: Mapping[str, tuple[str, ...]] = {  # of the cost table: stages of a run, where names differ
    "ingest": (*INGEST_STAGES, "ingest"),
    "score": ("terms", "score"),
    "index": ("prepare", "index", "plan"),  # `plan` builds an index of all items, and calibrates
    "calibrate": ("plan",),
}


def make_area(context: TaskContext) -> WorkArea:
    """Return what a worker needs to take part in a run."""
    run = context.run
    plan = {
        **describe_worker((*run.engine.libraries, *list_model_libraries(run.spec))),
        **({"kernels": ANY_KERNELS} if run.spec.recall == 1 else {}),
        "spec": context.spec.as_planned(),
        "base": str(run.workspace.base.absolute()),
        "out": absolute_location(run.workspace.out),
        "earlier": context.earlier,
        "parts": dict(context.plan.parts),
    }
    return WorkArea(run.artifacts.url, run.results.url, plan)


def run_stages(context: TaskContext, runner: Runner, stages: Sequence[RunStage] = STAGES) -> StageCounts:
    """Run every task that is not committed yet, stage by stage. Raises the error of a task."""
    if isinstance(runner, LocalRunner):  # one task ingests both tables, with all threads of this process
        stages = [stage for stage in stages if stage.name not in INGEST_STAGES]
    try:
        return _run_all(context, runner, stages)
    finally:
        open_index.cache_clear()  # it may be large, and is not used after the run
        context.close()


def _run_all(context: TaskContext, runner: Runner, stages: Sequence[RunStage]) -> StageCounts:
    counts = StageCounts()
    for stage in stages:
        calls = stage.list_calls(context)
        left = _list_left(context, stage, calls)
        if stage.name in ("renew", "join"):  # one of both, or both where updated lists are refused
            counts = StageCounts(counts.tasks + len(calls), counts.continued + len(calls) - len(left))
        if left and len(left) < len(calls):
            context.run.listener.note(f"{len(calls) - len(left)} of {len(calls)} tasks were done before: continuing")
        _run_calls(context, LocalRunner() if stage.in_driver(context) else runner, stage, left)
    return counts


def _list_left(context: TaskContext, stage: RunStage, calls: Sequence[TaskCall]) -> list[TaskCall]:
    """Return the calls that are not committed: one listing for many, one look for one."""
    if len(calls) == 1:
        return [call for call in calls if context.run.results.facts(call.name) is None]
    done = set(context.run.results.list_names(stage.name)) if calls else set()
    return [call for call in calls if call.name not in done]


def _run_calls(context: TaskContext, runner: Runner, stage: RunStage, calls: Sequence[TaskCall]) -> None:
    """Run calls, and add up their time and memory."""
    if not calls:
        return
    is_local = isinstance(runner, LocalRunner)
    run, started = context.run, time.perf_counter()
    perform = (lambda _area, call: perform_in(context, call)) if is_local else perform_task
    area = make_area(context) if runner.on_this_host else mark_area(make_area(context))
    outcomes: list[TaskOutcome] = []
    for outcome in runner.run(perform, area, calls):
        if outcome.error is not None:
            raise restore_error(outcome.error)
        outcomes.append(replace(outcome, facts={}))
        if not is_local:
            run.listener.progress(stage.name, len(outcomes), len(calls))
    if is_local:
        return
    wall = time.perf_counter() - started
    share = min(1.0, wall / max(1e-9, sum(outcome.seconds for outcome in outcomes)))  # tasks ran side by side
    for outcome in outcomes:
        run.meter.note_peak(outcome.peak_bytes)
        for name, (seconds, cpu_seconds) in outcome.stages.items():
            run.meter.add(name, seconds * share, cpu_seconds)
