"""The attempts of calls: which are tried again, when, and which error ends a run. Starts nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from nearcast.errors import AccessError, NearcastError, WorkerError
from nearcast.runners.base import TaskCall

__all__ = ["MOST_ATTEMPTS", "CallQueue", "name_call"]

MOST_ATTEMPTS = 4
FIRST_PAUSE = 0.25  # seconds before a call is tried again; doubles with each attempt


class CallQueue:
    """Calls that wait for a worker, in order; a call that failed waits again after a pause."""

    def __init__(self, calls: Sequence[TaskCall], *, most_attempts: int = MOST_ATTEMPTS) -> None:
        self.waiting = deque(calls)
        self.failures: dict[str, int] = {}  # by name of the call
        self.most_attempts = most_attempts
        self._paused: list[tuple[float, TaskCall]] = []

    def __len__(self) -> int:
        return len(self.waiting) + len(self._paused)

    def take(self) -> TaskCall | None:
        """Return the next call, None if there is none or all are paused."""
        now = time.monotonic()
        self.waiting.extendleft(call for ready, call in self._paused if ready <= now)
        self._paused = [(ready, call) for ready, call in self._paused if ready > now]
        return self.waiting.popleft() if self.waiting else None

    def take_group(self, most: int) -> list[TaskCall]:
        """Return the next calls, at most so many."""
        group: list[TaskCall] = []
        while len(group) < most and (call := self.take()) is not None:
            group.append(call)
        return group

    def put_back(self, calls: Sequence[TaskCall]) -> None:
        """Queue calls that did not fail again, as the next ones."""
        self.waiting.extendleft(reversed(calls))

    def seconds_to_next(self) -> float | None:
        """Return the seconds until a paused call is ready, None if none is paused."""
        return max(0.0, min(ready for ready, _ in self._paused) - time.monotonic()) if self._paused else None

    def fail(self, call: TaskCall, error: NearcastError, *, attempts: int = 1) -> None:
        """Count failed attempts and queue the call again. Raises the error if another attempt cannot help."""
        count = self.failures[call.name] = self.failures.get(call.name, 0) + attempts
        if isinstance(error, AccessError):
            raise error
        if count >= self.most_attempts:
            raise name_call(error, call, count)
        self._paused.append((time.monotonic() + FIRST_PAUSE * 2 ** (count - 1), call))


def name_call(error: NearcastError, call: TaskCall, count: int) -> NearcastError:
    """Return the error of a call that failed in all attempts, of the same class."""
    kind = type(error) if type(error).__init__ is NearcastError.__init__ else WorkerError
    named = kind(f"task {call.name} failed in all {count} attempts: {error}")
    for note in getattr(error, "__notes__", []):
        named.add_note(note)
    return named
