"""The progress of a run that others work on, read from its storage alone: tasks done, tasks claimed, time left.

Times are those of the storage's clock. Nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearcast.errors import NotFoundError
from nearcast.join.shared_work import FAILURE
from nearcast.join.task_claims import CLAIMS
from nearcast.storage.base import Storage, StoredObject

__all__ = ["RunProgress", "StageProgress", "read_progress"]

COMMITS = ("done.json", "manifest.json")  # the object that commits a task: in a bucket, in a local folder
RECENT = 200  # commits that the speed is taken from


@dataclass(frozen=True, slots=True)
class StageProgress:
    """The progress of a stage."""

    stage: str
    tasks: int | None  # None: not known before the earlier stages are done
    done: int
    running: int  # tasks that a worker has claimed
    seconds_left: float | None = None  # None: not known

    @property
    def is_done(self) -> bool:
        """Return whether all tasks are committed."""
        return self.tasks is not None and self.done >= self.tasks

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        left = None if self.seconds_left is None else round(self.seconds_left, 1)
        values = {"stage": self.stage, "tasks": self.tasks, "done": self.done, "running": self.running}
        return values | {"seconds_left": left}


@dataclass(frozen=True, slots=True)
class RunProgress:
    """The progress of a run."""

    stages: tuple[StageProgress, ...]
    failure: Mapping[str, Any] | None = None  # the task and the error that stopped the run
    facts: Mapping[str, Any] = field(default_factory=dict)  # of the run: generator, version

    @property
    def is_done(self) -> bool:
        """Return whether all stages are done."""
        return all(stage.is_done for stage in self.stages)

    @property
    def seconds_left(self) -> float | None:
        """Time until the end of the current stage, and of the later stages that have an estimate; None: not known."""
        left = [stage.seconds_left for stage in self.stages if not stage.is_done]
        if not left:
            return 0.0
        return None if left[0] is None else sum(seconds for seconds in left if seconds is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        left = None if self.seconds_left is None else round(self.seconds_left, 1)
        return {
            **self.facts,
            "done": self.is_done,
            "seconds_left": left,
            "stages": [stage.as_dict() for stage in self.stages],
            "failure": None if self.failure is None else dict(self.failure),
        }


def read_progress(
    storage: Storage,
    stages: Sequence[tuple[str, Callable[[], int]]],
    *,
    results: str = "results",
    estimates: Mapping[str, float] | None = None,
) -> RunProgress:
    """Read the progress of a run from the storage of its work location.

    stages: name, and a function that counts the tasks; it is called when all earlier stages are done.
    results: folder of the results. estimates: core-seconds by stage of the plan, for the time of stages not begun.
    """
    found: list[StageProgress] = []
    open_yet, ratio = True, None
    for name, count_tasks in stages:
        tasks = count_tasks() if open_yet else None
        commits = _list_commits(storage, f"{results}/{name}") if open_yet else []
        running = sum(1 for _ in storage.list_objects(f"{CLAIMS}/{name}")) if open_yet else 0
        each, planned = _seconds_per_task(commits), (estimates or {}).get(name)
        if each is not None and tasks and planned:
            ratio = each * tasks / planned
        left = None
        if tasks is not None and len(commits) >= tasks:
            left = 0.0
        elif tasks is not None and each is not None:
            left = each * (tasks - len(commits))
        elif planned is not None and ratio is not None:
            left = planned * ratio  # as much slower than planned as the last stage that is known
        found.append(StageProgress(name, tasks, len(commits), running, left))
        open_yet = open_yet and found[-1].is_done
    return RunProgress(tuple(found), _read_failure(storage))


def _list_commits(storage: Storage, folder: str) -> list[float]:
    """Return the times of the commits of a stage, in order."""
    times: dict[str, float] = {}
    for each in storage.list_objects(folder):
        task, _, file = each.name.rpartition("/")
        is_task = task == folder or task.rpartition("/")[0] == folder
        if file in COMMITS and is_task and not _is_attempt(each):
            times[task] = each.modified
    return sorted(times.values())


def _is_attempt(each: StoredObject) -> bool:
    """Return whether an object belongs to an attempt, which has a manifest before it is committed."""
    return any(part.lstrip(".").startswith("attempt-") for part in each.name.split("/"))


def _seconds_per_task(commits: Sequence[float]) -> float | None:
    """Return the time between two commits, of the last ones; None if there are too few."""
    last = commits[-RECENT:]
    return (last[-1] - last[0]) / (len(last) - 1) if len(last) > 1 else None


def _read_failure(storage: Storage) -> Mapping[str, Any] | None:
    try:
        facts: Mapping[str, Any] = json.loads(storage.read(FAILURE))
    except (NotFoundError, ValueError):
        return None
    return facts
