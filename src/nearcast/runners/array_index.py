"""The share of a worker in an array job: its index and the number of workers, from options or from the scheduler.

Knows the environment variables of the schedulers and nothing of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nearcast.errors import SpecError

__all__ = ["COUNT_VARIABLE", "SCHEDULERS", "WorkShare", "find_share"]

COUNT_VARIABLE = "NEARCAST_WORKERS"  # for schedulers that do not pass the number of workers

# scheduler: variables of the index, of the count, and of the first index and the step, where they may differ from 0, 1
SCHEDULERS = {
    "Kubernetes": ("JOB_COMPLETION_INDEX", None, None, None),
    "AWS Batch": ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE", None, None),
    "SLURM": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"),
    "Cloud Run": ("CLOUD_RUN_TASK_INDEX", "CLOUD_RUN_TASK_COUNT", None, None),
}

Task = TypeVar("Task")


@dataclass(frozen=True, slots=True)
class WorkShare:
    """The tasks of one of several workers: those whose number is `index` modulo `count`."""

    index: int = 0
    count: int = 1

    def of(self, tasks: Sequence[Task]) -> list[Task]:
        """Return the tasks of this worker, in order."""
        return list(tasks[self.index :: self.count])

    def order(self, tasks: Sequence[Task]) -> list[Task]:
        """Return the tasks of this worker in order, then those of the others, last first.

        The others go through their own tasks in order, so a worker that helps meets them late.
        """
        others = [task for number, task in enumerate(tasks) if number % self.count != self.index]
        return [*self.of(tasks), *reversed(others)]


def find_share(index: int | None, count: int | None, environment: Mapping[str, str]) -> WorkShare:
    """Return the share of a worker: index and count, each from the option, else from the scheduler's variables.

    Without an index and a count: all tasks. Raises SpecError if an index comes without a count, or does not fit it.
    """
    if count == 1 and index is None:
        return WorkShare()  # the only worker, whatever a scheduler numbers
    source = "--index"
    if index is None or count is None:
        found, workers, variable = _read_scheduler(environment)
        index, source = (found, variable) if index is None else (index, source)
        count = workers if count is None else count
    if count is None and COUNT_VARIABLE in environment:
        count = _parse(COUNT_VARIABLE, environment[COUNT_VARIABLE])
    if index is None and count in (None, 1):
        return WorkShare()
    if index is None:
        raise SpecError(f"the number of workers is {count}, and the index of this one is unknown; give --index")
    if count is None:
        raise SpecError(
            f"the index of this worker is {index} ({source}), and the number of workers is unknown; give --of, or set "
            f"{COUNT_VARIABLE}"
        )
    if count < 1:
        raise SpecError(f"the number of workers must be at least 1, got {count}; give the number that is started")
    if not 0 <= index < count:
        raise SpecError(f"the index of a worker must be in 0..{count - 1} for {count} workers, got {index} ({source})")
    return WorkShare(index, count)


def _read_scheduler(environment: Mapping[str, str]) -> tuple[int | None, int | None, str]:
    """Return index, count and variable of the first scheduler whose index is set."""
    for index_name, count_name, first_name, step_name in SCHEDULERS.values():
        if not environment.get(index_name):
            continue
        index = _parse(index_name, environment[index_name])
        first = _parse(first_name, environment[first_name]) if first_name and environment.get(first_name) else 0
        step = _parse(step_name, environment[step_name]) if step_name and environment.get(step_name) else 1
        count = _parse(count_name, environment[count_name]) if count_name and environment.get(count_name) else None
        step = max(1, step)
        last = environment.get("SLURM_ARRAY_TASK_MAX") if index_name.startswith("SLURM") and count is not None else None
        if (index - first) % step or (
            last and count and _parse("SLURM_ARRAY_TASK_MAX", last) != first + step * (count - 1)
        ):
            raise SpecError(
                f"the indexes of the array job are irregular, got {index_name}={index} of {count} from {first} in "
                f"steps of {step}, which do not say which worker this is; submit --array=0-N, or give --index and --of"
            )
        return (index - first) // step, count, index_name
    return None, None, ""


def _parse(name: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise SpecError(f"{name} must be a whole number, got {text!r}")
    return int(text)
