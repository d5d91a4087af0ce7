"""The work of one of many workers on the stages of a run, without a driver: they meet in the storage alone.

A worker does its share of a stage, then helps with tasks that nobody does, then waits until the stage is done. What
stops a run (bad input) is stored, so that the others stop, too. Knows nothing of the tasks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nearcast.errors import AccessError, NearcastError, NotFoundError, StorageError, WorkerError
from nearcast.join.task_claims import TaskClaims
from nearcast.runners.array_index import WorkShare
from nearcast.runners.base import TaskCall, TaskOutcome
from nearcast.runners.call_messages import restore_error
from nearcast.storage.artifacts import Artifacts
from nearcast.storage.base import Storage

__all__ = [
    "FAILURE",
    "FINISHED",
    "PATIENCE_SECONDS",
    "SharedRun",
    "SharedStage",
    "StageWork",
    "WorkOptions",
    "work_on_stage",
    "work_on_stages",
]

FINISHED = "finished.json"  # names the snapshot of a plan: its work is removed, and late workers have nothing to do
FAILURE = "failure.json"  # the error that stopped the run
PATIENCE_SECONDS = 3600.0
ATTEMPTS = 3  # of a task whose error may pass
HELP_AT_ONCE = 16  # tasks of other workers until the next look at what is done
OF_ONE_HOST = ("BudgetError", "MissingExtraError")  # errors that other hosts need not meet
PAUSE_SECONDS = 1.0  # before the second attempt; doubles


@dataclass(frozen=True, slots=True)
class SharedStage:
    """A stage of a run: its name, and its calls. They are listed when all earlier stages are done."""

    name: str
    list_calls: Callable[[], Sequence[TaskCall]]


@dataclass(frozen=True, slots=True)
class WorkOptions:
    """The share of a worker, and how it waits for others."""

    share: WorkShare = field(default_factory=WorkShare)
    poll_seconds: float = 5.0  # between two looks at tasks that others do
    patience_seconds: float = PATIENCE_SECONDS  # without any task being finished; then WorkerError
    helps: bool = True  # does tasks of other workers that nobody has claimed, and waits for the end of a stage


@dataclass(slots=True)
class StageWork:
    """What a worker did in a stage."""

    stage: str
    tasks: int
    done_here: int = 0
    seconds: float = 0.0  # of its tasks
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


class SharedRun:
    """The storage of a run as its workers see it: results, claims, and the error that stopped the run."""

    def __init__(self, storage: Storage, results: Artifacts, claims: TaskClaims) -> None:
        self.storage = storage
        self.results = results
        self.claims = claims

    def list_left(self, stage: str, calls: Sequence[TaskCall]) -> list[TaskCall]:
        """Return the calls whose results are not committed."""
        if len(calls) <= 1:  # without a listing
            return [call for call in calls if self.results.facts(call.name) is None]
        done = set(self.results.list_names(stage))
        return [call for call in calls if call.name not in done]

    def is_finished(self) -> bool:
        """Return whether the snapshot of the run is committed."""
        return self.storage.stat(FINISHED) is not None

    def record_failure(self, outcome: TaskOutcome) -> None:
        """Store the error of a task for the other workers."""
        facts = {"task": outcome.name, "error": dict(outcome.error or {})}
        self.storage.write(FAILURE, json.dumps(facts, ensure_ascii=False).encode())

    def clear_failure(self) -> None:
        """Delete the stored error: a worker that starts again tries again."""
        self.storage.delete(FAILURE)

    def raise_failure(self) -> None:
        """Raise the error that stopped another worker."""
        try:
            facts = json.loads(self.storage.read(FAILURE))
        except (NotFoundError, ValueError):
            return
        error = restore_error(facts["error"])
        error.add_note(f"another worker met it in task {facts['task']}")
        raise error


def work_on_stages(
    run: SharedRun,
    stages: Sequence[SharedStage],
    perform: Callable[[TaskCall], TaskOutcome],
    options: WorkOptions,
    progress: Callable[[str, int, int], None],
) -> list[StageWork]:
    """Work on all stages in order; return what was done here. Raises the error that stopped the run."""
    done: list[StageWork] = []
    for stage in stages:
        if done and run.is_finished():
            break
        try:
            done.append(work_on_stage(run, stage, perform, options, progress))
        except NotFoundError as error:
            if run.is_finished():  # the last step has removed the work meanwhile
                break
            raise StorageError(f"work of the run was removed by another process ({error}); start again") from error
    return done


def work_on_stage(
    run: SharedRun,
    stage: SharedStage,
    perform: Callable[[TaskCall], TaskOutcome],
    options: WorkOptions,
    progress: Callable[[str, int, int], None],
) -> StageWork:
    """Do this worker's tasks of a stage. If it helps: also tasks that nobody does, until the stage is done."""
    calls = list(stage.list_calls())
    work = StageWork(stage.name, len(calls))
    own = {call.name for call in options.share.of(calls)}
    ordered = options.share.order(calls) if options.helps else options.share.of(calls)
    left = {call.name for call in run.list_left(stage.name, calls)}
    waited_since = time.monotonic()
    while wanted := [call for call in ordered if call.name in left]:
        taken = 0
        for call in wanted:
            if taken >= HELP_AT_ONCE and call.name not in own:
                break  # others have done tasks meanwhile: look again
            if run.claims.take(call.name):
                _do_claimed(run, call, perform, work)
                taken += 1
                progress(stage.name, len(calls) - len(left) + taken, len(calls))
        calls = list(stage.list_calls())  # a stage that a later one has replaced has none
        before, left = len(left), {call.name for call in run.list_left(stage.name, calls)}
        progress(stage.name, len(calls) - len(left), len(calls))
        run.raise_failure()
        if left and run.is_finished():
            return work
        if taken or len(left) < before:
            waited_since = time.monotonic()
        elif time.monotonic() - waited_since > options.patience_seconds:
            raise WorkerError(
                f"other workers have claimed {len(wanted):,} tasks of stage {stage.name}, and none was finished for "
                f"{options.patience_seconds:,.0f} s; look at the other workers, and start this one again"
            )
        if not taken and any(call.name in left for call in wanted):
            time.sleep(options.poll_seconds)
    return work


def _do_claimed(run: SharedRun, call: TaskCall, perform: Callable[[TaskCall], TaskOutcome], work: StageWork) -> None:
    """Perform a call that this worker has claimed."""
    with run.claims.hold(call.name):
        outcome = _attempt(call, perform)
        if outcome.error is not None:
            if outcome.error["class"] not in OF_ONE_HOST:
                run.record_failure(outcome)
            raise restore_error(outcome.error)
    if outcome.seconds:
        work.done_here += 1
        work.seconds += outcome.seconds
        work.cpu_seconds += outcome.cpu_seconds
        work.peak_bytes = max(work.peak_bytes, outcome.peak_bytes)


def _attempt(call: TaskCall, perform: Callable[[TaskCall], TaskOutcome]) -> TaskOutcome:
    """Perform a call; try again after an error that may pass."""
    for number in range(ATTEMPTS):
        try:
            return perform(call)
        except AccessError:
            raise
        except (StorageError, WorkerError) as error:
            if number == ATTEMPTS - 1:
                _add_task(error, call)
                raise
            time.sleep(PAUSE_SECONDS * 2**number)
    raise AssertionError("unreachable")


def _add_task(error: NearcastError, call: TaskCall) -> None:
    error.add_note(f"task {call.name}, {ATTEMPTS} attempts")
