"""Run one task call of a run, in the driver or in a worker, and commit its artifact."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from nearcast.join.accept_stage import do_accept
from nearcast.join.choose_stage import do_choose
from nearcast.join.compare_stage import do_compare
from nearcast.join.context import prepare
from nearcast.join.driver_mark import require_mark
from nearcast.join.ingest_stage import INGEST_TASKS
from nearcast.join.join_tasks import do_join
from nearcast.join.listener import Listener
from nearcast.join.measure_stage import do_measure
from nearcast.join.renew_tasks import do_rejoin, do_renew, do_stale
from nearcast.join.run_plan import RunPlan
from nearcast.join.run_tasks import do_ingest, do_plan, do_prepare
from nearcast.join.score_stage import do_score, do_terms
from nearcast.join.shard_tasks import do_index, do_join_shard, do_merge
from nearcast.join.ship_model import find_model_folder
from nearcast.join.table_stage import do_table
from nearcast.join.task_context import TaskContext
from nearcast.join.task_times import describe_times
from nearcast.machine import PeakMemory
from nearcast.runners.base import TaskCall, TaskOutcome, WorkArea
from nearcast.runners.worker import HostResources, host_resources, require_same_worker, run_task
from nearcast.sources.freed_memory import return_freed_memory
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.storage.host_cache import CacheSession
from nearcast.storage.path_errors import explain_lasting_errors

__all__ = ["TASKS", "open_worker_run", "perform_in", "perform_task"]

SHORT_TASKS = (
    "join",
    "join_shard",
    "merge",
    "stale",
    "rejoin",
    "renew",
)  # many in a row, each with as much memory as the last
MOST_ENTRIES = 256  # of the host's cache that a task holds at once, beside those that several tasks share

TaskFunction = Callable[[TaskContext, Mapping[str, Any], Path], dict[str, Any]]

TASKS: dict[str, TaskFunction] = {
    **INGEST_TASKS,
    "ingest": do_ingest,
    "terms": do_terms,
    "score": do_score,
    "prepare": do_prepare,
    "compare": do_compare,
    "stale": do_stale,
    "rejoin": do_rejoin,
    "renew": do_renew,
    "accept": do_accept,
    "plan": do_plan,
    "index": do_index,
    "join": do_join,
    "join_shard": do_join_shard,
    "merge": do_merge,
    "choose": do_choose,
    "table": do_table,
    "measure": do_measure,
}


_contexts: dict[tuple[str, HostResources], TaskContext] = {}  # the run that this process works for


def perform_task(area: WorkArea, call: TaskCall) -> TaskOutcome:
    """Run a call in a worker. Errors of the input or the spec come back as values; others are raised."""
    described = json.dumps([area.artifacts, area.results, dict(area.plan)], sort_keys=True)
    return perform_in(_open_context(described, host_resources()), call)


def perform_in(context: TaskContext, call: TaskCall) -> TaskOutcome:
    """Run a call in an open run, unless its artifact is committed already."""
    results, before = context.run.results, context.run.meter.copy_stages()
    facts = results.facts(call.name)
    if facts is not None:
        return TaskOutcome(call.name, facts)

    def write(folder: Path) -> dict[str, Any]:
        with PeakMemory() as peak:
            made = TASKS[call.kind](context, call.args, folder)
        return made | describe_times(context.run.meter.stages_since(before), peak.bytes)

    def commit() -> Mapping[str, Any]:
        with explain_lasting_errors():
            return results.commit(call.name, write)

    with closing(CacheSession(MOST_ENTRIES)) as session, session:
        outcome = run_task(call.name, commit)
    if call.kind not in SHORT_TASKS:
        return_freed_memory()
    return replace(outcome, stages=context.run.meter.stages_since(before))


def open_worker_run(area: WorkArea, listener: Listener | None = None) -> TaskContext:
    """Open the run of a plan on this host, with the threads and the memory of the host.

    Raises WorkerError if this worker may not take part in the run.
    """
    plan = area.plan
    require_same_worker(plan)
    require_mark(area)
    spec = parse_model(GeneratorSpec, plan["spec"], "the spec of the plan", recorded=True)
    own = host_resources()
    threads = min(own.threads, spec.threads or own.threads)
    memory = min(limit for limit in (own.memory_bytes, spec.memory, spec.run.worker_memory) if limit is not None)
    limited = spec.model_copy(update={"threads": threads, "memory": memory, "out": plan["out"]})
    run = prepare(limited, Path(plan["base"]), listener or Listener(), artifacts=area.artifacts, results=area.results)
    context = TaskContext(run, RunPlan(plan["parts"]), earlier=plan["earlier"], planned=spec)
    if (ranker := plan["parts"].get("ranker")) is not None:
        base, content = run.workspace.base, ranker["blake2b"]
        models = context.keep("model", lambda: find_model_folder(spec, base, content, run.results))
        context.run = replace(run, workspace=replace(run.workspace, models=models))
    return context


def _open_context(area: str, own: HostResources) -> TaskContext:
    """Open a run in this process; the last one stays open, as long as the resources are the same."""
    key = (area, own)
    if key not in _contexts:
        for context in _contexts.values():
            context.close()
        _contexts.clear()
        _contexts[key] = open_worker_run(WorkArea(*json.loads(area)))
    return _contexts[key]
