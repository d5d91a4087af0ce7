"""The base of the runners of engines: workers on other hosts, and an engine that this process may have started.

A subclass connects to its engine and runs encoded calls there. Knows no engine and nothing of kNN.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from nearcast.runners.attempts import CallQueue
from nearcast.runners.base import Perform, TaskCall, TaskOutcome, WorkArea
from nearcast.runners.call_messages import encode_area, name_perform

__all__ = ["ClusterRunner"]


class ClusterRunner(AbstractContextManager["ClusterRunner"]):
    """Runs tasks on the workers of an engine. `close` stops only what this runner started."""

    name: str
    on_this_host = False

    def __init__(self, workers: int | None) -> None:
        self.workers = workers  # tasks at once; default: as many as the cluster has room for
        self._is_ours = False  # whether this runner started the engine or its session

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, perform: Perform, area: WorkArea, calls: Sequence[TaskCall]) -> Iterator[TaskOutcome]:
        """Yield outcomes as they arrive. See `Runner.run`."""
        if calls:
            yield from self._run_queue(encode_area(name_perform(perform), area), CallQueue(calls))

    def close(self) -> None:
        """Stop the engine or the session that this runner started; leave another as it is. May be called twice."""
        if self._is_ours:
            self._is_ours = False
            self._stop()

    @abstractmethod
    def _run_queue(self, shared: str, queue: CallQueue) -> Iterator[TaskOutcome]:
        """Yield the outcomes of the calls of a queue. shared: what `perform_message` gets with each call."""

    @abstractmethod
    def _stop(self) -> None:
        """Stop what this runner started."""
