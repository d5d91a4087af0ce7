"""The contract of a runner: run the task calls of a stage, in any order and in any place, until each is committed.

A task call is plain data, so that it can be sent to any worker: the name of a task function, its arguments as JSON, and
the name of the artifact that the task commits. A task may run any number of times, also at once: the artifact is
committed once. Knows nothing of kNN: `perform` finds the task functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Perform", "Runner", "TaskCall", "TaskOutcome", "WorkArea"]


@dataclass(frozen=True, slots=True)
class TaskCall:
    """One call of a task function."""

    name: str  # of the artifact in the work area that marks the task as done, for example "join/000042"
    kind: str  # name of the task function
    args: Mapping[str, Any]  # JSON values


@dataclass(frozen=True, slots=True)
class WorkArea:
    """The locations that the tasks of a run share, as URLs or absolute paths. Sent to every worker."""

    artifacts: str  # tables, indexes, constraints: later runs use them again
    results: str  # results of tasks: removed with the run
    plan: Mapping[str, Any] = field(default_factory=dict)  # what workers verify: version, format, kernels; limits


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """The end of a task: its small facts, or an error that another attempt would meet again."""

    name: str
    facts: Mapping[str, Any]  # of the committed artifact; empty after an error
    error: Mapping[str, Any] | None = None  # class, text and exit code of a NearcastError
    seconds: float = 0.0  # wall time of the attempt; 0 if it was done before
    cpu_seconds: float = 0.0
    peak_bytes: int = 0  # peak resident memory of the worker during the attempt
    stages: Mapping[str, Sequence[float]] = field(default_factory=dict)  # wall and CPU seconds by stage of the attempt


Perform = Callable[[WorkArea, TaskCall], TaskOutcome]
"""Runs one call in the worker's process and returns its outcome. It is importable by name in every worker."""


class Runner(Protocol):
    """Runs task calls on workers. The workers live until `close`: a run has several stages, each a call of `run`."""

    name: str
    on_this_host: bool  # whether all workers are on the driver's host, and share its local files

    def run(self, perform: Perform, area: WorkArea, calls: Sequence[TaskCall]) -> Iterator[TaskOutcome]:
        """Yield the outcome of each call as it ends. After an outcome with an error, no further call is started.

        Raises the NearcastError of the last attempt (as a rule StorageError or WorkerError) if a call failed in every
        attempt for a reason that may pass; WorkerError if a call ended its worker or raised any other exception in
        every attempt. The calls that are running when an error is raised or yielded are stopped or forgotten.
        """
        ...

    def close(self) -> None:
        """Stop the workers that this runner started. May be called twice."""
        ...
