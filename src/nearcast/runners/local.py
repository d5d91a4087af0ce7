"""Run tasks in this process, one after the other.

A task uses all threads inside, and so shares one index and its caches. Two tasks side by side would halve both.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nearcast.errors import SpecError, StorageError
from nearcast.runners.attempts import CallQueue
from nearcast.runners.base import Perform, TaskCall, TaskOutcome, WorkArea
from nearcast.runners.runner_options import refuse_unknown_options

__all__ = ["LocalRunner", "make_local_runner"]


class LocalRunner:
    """Runs task calls one after the other in this process. Every exception but StorageError is raised at once."""

    name = "local"
    on_this_host = True

    def run(self, perform: Perform, area: WorkArea, calls: Sequence[TaskCall]) -> Iterator[TaskOutcome]:
        """Yield outcomes in the order of the calls, those tried again last. See `Runner.run`."""
        queue = CallQueue(calls)
        while queue:
            call = queue.take()
            if call is None:
                time.sleep(queue.seconds_to_next() or 0.0)
                continue
            try:
                outcome = perform(area, call)
            except StorageError as error:
                queue.fail(call, error)
                continue
            yield outcome
            if outcome.error is not None:
                return

    def close(self) -> None:
        """Do nothing: there are no workers."""


def make_local_runner(workers: int | None, options: Mapping[str, Any]) -> LocalRunner:
    """Return the runner. Raises SpecError for options or several workers."""
    refuse_unknown_options("local", options, ())
    if workers not in (None, 1):
        raise SpecError(f"runner 'local' has one worker, got {workers}; use 'processes'")
    return LocalRunner()
