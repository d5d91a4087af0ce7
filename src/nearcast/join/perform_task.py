"""Run one task call of a run, in the driver or in a worker, and commit its artifact."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from nearcast import errors, machine
from nearcast.errors import DamagedError, NearcastError, StorageError, WorkerError
from nearcast.join.context import prepare
from nearcast.join.listener import Listener
from nearcast.join.run_plan import RunPlan
from nearcast.join.run_tasks import do_finish, do_ingest, do_join, do_plan, do_prepare
from nearcast.join.task_context import TaskContext
from nearcast.runners.base import TaskCall, TaskOutcome, WorkArea
from nearcast.spec import GeneratorSpec, parse_model

__all__ = ["TASKS", "perform_in", "perform_task", "raise_error"]

TaskFunction = Callable[[TaskContext, Mapping[str, Any], Path], dict[str, Any]]

TASKS: dict[str, TaskFunction] = {
    "ingest": do_ingest,
    "prepare": do_prepare,
    "plan": do_plan,
    "join": do_join,
    "finish": do_finish,
}

MAY_PASS = (StorageError, WorkerError, DamagedError)  # raised, so that the engine tries the task again


def perform_task(area: WorkArea, call: TaskCall) -> TaskOutcome:
    """Run a call in a worker. Errors of the input or the spec come back as values; others are raised."""
    return perform_in(_open_context(json.dumps([area.artifacts, area.results, dict(area.plan)], sort_keys=True)), call)


def perform_in(context: TaskContext, call: TaskCall) -> TaskOutcome:
    """Run a call in an open run, unless its artifact is committed already."""
    results = context.run.results
    facts = results.facts(call.name)
    if facts is not None:
        return TaskOutcome(call.name, facts)
    started, cpu, spent = time.perf_counter(), time.process_time(), context.run.meter.copy_stages()

    with machine.PeakMemory() as peak:
        try:
            results.ensure(call.name, lambda folder: TASKS[call.kind](context, call.args, folder))
        except MAY_PASS:
            raise
        except NearcastError as error:
            return TaskOutcome(call.name, {}, describe_error(error))
    facts = results.facts(call.name)
    assert facts is not None
    return TaskOutcome(
        call.name,
        facts,
        None,
        time.perf_counter() - started,
        time.process_time() - cpu,
        peak.bytes,
        context.run.meter.stages_since(spent),
    )


def describe_error(error: NearcastError) -> dict[str, Any]:
    """Return an error as plain data."""
    return {"class": type(error).__name__, "text": str(error), "exit_code": error.exit_code}


def raise_error(facts: Mapping[str, Any]) -> None:
    """Raise the error of an outcome again, in the driver."""
    kind = getattr(errors, facts["class"], NearcastError)
    raise kind(facts["text"])


@lru_cache(maxsize=1)
def _open_context(area: str) -> TaskContext:
    """Open a run in this process; the last one stays open."""
    artifacts, results, plan = json.loads(area)
    spec = parse_model(GeneratorSpec, plan["spec"], "the spec of the plan", recorded=True)
    run = prepare(spec, Path(plan["base"]), Listener(), artifacts=artifacts, results=results)
    return TaskContext(run, RunPlan(plan["parts"]))
