"""Run tasks in this process, one after the other.

A task uses all threads inside, and so shares one index and its caches. Two tasks side by side would halve both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["LocalRunner"]

Task = TypeVar("Task")


class LocalRunner:
    """Runs tasks one after the other in this process."""

    def run(self, function: Callable[[Task], None], tasks: Sequence[Task], done: Callable[[Task], None]) -> None:
        """Call `function(task)`, then `done(task)`, in order."""
        for task in tasks:
            function(task)
            done(task)
