"""Functions of a planned run that other processes work on: take part in it, and watch it. See `api.distributed`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

from nearcast.errors import NotFoundError, SpecError, WorkerError
from nearcast.join.abandoned_work import sign_of_life
from nearcast.join.cost_table import CostTable
from nearcast.join.listener import Listener
from nearcast.join.perform_task import open_worker_run, perform_in
from nearcast.join.run_progress import RunProgress, read_progress
from nearcast.join.run_stages import STAGES, STAGES_OF_ROWS
from nearcast.join.shared_plan import read_finished, read_plan
from nearcast.join.shared_work import (
    FAILURE,
    FINISHED,
    PATIENCE_SECONDS,
    SharedRun,
    SharedStage,
    StageWork,
    WorkOptions,
    work_on_stages,
)
from nearcast.join.task_claims import CLAIMS, STALE_SECONDS, TaskClaims
from nearcast.join.task_context import TaskContext
from nearcast.runners.array_index import WorkShare
from nearcast.runners.base import WorkArea
from nearcast.runners.worker import ANY_KERNELS
from nearcast.storage.base import Storage
from nearcast.storage.locations import Location, parse_location
from nearcast.storage.open_storage import open_storage
from nearcast.suggest import suggest_name
from nearcast.table.snapshot import Snapshot

__all__ = ["finish_plan", "store_costs", "watch_run", "work_on"]

COSTS = "costs.json"  # the cost table of the plan, for the time that is left
COST_STAGES = {  # stages of a run: the stages of the cost table that they do
    "plan": ("index", "calibrate"),
}


def work_on(
    location: Location,
    *,
    share: WorkShare | None = None,
    stage: str | None = None,
    takeover_seconds: float = STALE_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
    listener: Listener | None = None,
) -> list[StageWork]:
    """Take part in a planned run: do tasks, stage by stage, until all stages are done. Return what was done here.

    share: the tasks to begin with; default: all. stage: of a run, or a row of the cost table: do this worker's tasks of
    it alone, and do not wait for others.
    takeover_seconds: a task whose worker gives no sign of life for so long is done by another.
    Raises the error that stops the run; WorkerError if others finish nothing for `patience_seconds`, if this worker may
    not take part, or if a stage before `stage` is not done.
    """
    shared = read_plan(parse_location(location))
    share, listener = share or WorkShare(), listener or Listener()
    context = open_worker_run(shared.area, listener)
    storage = open_storage(shared.work)
    if storage.stat(FINISHED) is not None:
        listener.note(f"the run at {shared.work} is finished: its snapshot is made")
        return []
    owner = f"{share.index} of {share.count}" if share.count > 1 else ""
    run = SharedRun(storage, context.run.results, TaskClaims(storage, owner, stale_seconds=takeover_seconds))
    run.clear_failure()
    stages = [SharedStage(each.name, partial(each.list_calls, context)) for each in STAGES]
    options = WorkOptions(share, patience_seconds=patience_seconds)
    parts = [(stages, options)]
    if stage is not None:  # helps in all stages of it but the last, which needs them
        stages = _select_stages(run, stages, stage)
        parts = [(stages[:-1], options), (stages[-1:], replace(options, helps=False))]
    perform = partial(perform_in, context)
    with closing(context), sign_of_life(shared.work, stale_seconds=takeover_seconds):
        return [done for part in parts for done in work_on_stages(run, part[0], perform, part[1], listener.progress)]


def watch_run(location: Location) -> RunProgress:
    """Return the progress of a planned run, read from its storage alone."""
    shared = read_plan(parse_location(location))
    area = shared.area
    context = open_worker_run(WorkArea(area.artifacts, area.results, {**area.plan, "kernels": ANY_KERNELS}))
    storage = open_storage(shared.work)
    facts = {"generator": shared.generator, "work": shared.work}
    if storage.stat(FINISHED) is not None:
        return RunProgress((), None, facts | {"snapshot": read_finished(shared.work).get("snapshot")})
    stages: list[tuple[str, Callable[[], int]]] = [
        (each.name, partial(_count_calls, each.name, context)) for each in STAGES
    ]
    found = read_progress(storage, stages, estimates=_read_costs(storage))
    return RunProgress(found.stages, found.failure, facts)


def store_costs(location: Location, costs: CostTable) -> None:
    """Store the cost table of a plan beside it: `watch_run` estimates with it the time of stages not begun."""
    shared = read_plan(parse_location(location))
    open_storage(shared.work).write(COSTS, json.dumps(costs.as_dict(), indent=1).encode())


def finish_plan(location: Location, snapshot: Snapshot) -> None:
    """Record the snapshot of a plan, and remove what workers left there."""
    shared = read_plan(parse_location(location))
    storage = open_storage(shared.work)
    facts = {"snapshot": snapshot.url, "version": snapshot.version}
    storage.write(FINISHED, json.dumps(facts, indent=1).encode())
    for each in [COSTS, FAILURE, *(claim.name for claim in storage.list_objects(CLAIMS))]:
        storage.delete(each)


def _select_stages(run: SharedRun, stages: Sequence[SharedStage], name: str) -> list[SharedStage]:
    """Return the stage of this name, or the stages of this row of the cost table.

    Raises WorkerError if an earlier one is not done.
    """
    names = [each.name for each in stages]
    if name not in (*names, *STAGES_OF_ROWS):
        known = list(dict.fromkeys([*names, *STAGES_OF_ROWS]))
        raise SpecError(f"there is no stage {name!r}; {suggest_name(name, known, 'stages are')}")
    chosen = STAGES_OF_ROWS.get(name, (name,))
    for each in stages[: names.index(chosen[0])]:
        left = run.list_left(each.name, each.list_calls())
        if left:
            raise WorkerError(f"{len(left):,} tasks of stage {each.name} are not done, and stage {name} needs them")
    return [each for each in stages if each.name in chosen]


def _count_calls(name: str, context: TaskContext) -> int:
    return len(next(each for each in STAGES if each.name == name).list_calls(context))


def _read_costs(storage: Storage) -> dict[str, float]:
    """Return the estimated core-seconds by stage of the run; empty without a cost table."""
    try:
        rows = json.loads(storage.read(COSTS))["stages"]
        seconds = {row["stage"]: float(row["core_seconds"]) for row in rows}
    except (NotFoundError, ValueError, KeyError, TypeError):
        return {}
    return seconds | {stage: sum(seconds.get(part, 0.0) for part in parts) for stage, parts in COST_STAGES.items()}
