"""The contract of a runner: run a list of tasks, each once, in any order and in any place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

__all__ = ["Runner"]

Task = TypeVar("Task")


class Runner(Protocol):
    """Runs every task of a list once. Tasks are independent and may run in any order, also side by side."""

    def run(self, function: Callable[[Task], None], tasks: Sequence[Task], done: Callable[[Task], None]) -> None:
        """Call `function(task)` for each task, and `done(task)` in the caller's process after it.

        An error of a task stops the run and is raised here; tasks that did not start stay undone.
        """
        ...
