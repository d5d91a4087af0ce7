"""Run tasks on this machine, one after the other.

A task uses all threads inside, where it can share one index and its caches; two tasks side by side would
only halve both. A distributed runner will implement the same contract.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

__all__ = ["LocalRunner", "Runner"]

Task = TypeVar("Task")


class Runner(Protocol):
    """Does every task once. A task that raises stops the run, and its error is passed on."""

    def run(self, function: Callable[[Task], None], tasks: Sequence[Task], done: Callable[[Task], None]) -> None:
        """Call function(task) for each task, and done(task) here after each."""
        ...


class LocalRunner:
    """Tasks one after the other in this process."""

    def run(self, function: Callable[[Task], None], tasks: Sequence[Task], done: Callable[[Task], None]) -> None:
        """Call function(task), then done(task), in order."""
        for task in tasks:
            function(task)
            done(task)
