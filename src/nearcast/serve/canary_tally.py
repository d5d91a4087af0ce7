"""Tally a canary in one process: a sample of the look-ups of its keys is done again, on both arms, away from requests.

A request only puts its key into a short queue. The thread that polls the store empties the queue after each poll, for
MEASURE_SECONDS at most, so measuring costs a bounded share of one thread and no request waits for it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nearcast.errors import GoneError, NearcastError
from nearcast.measure.canary_figures import ArmFigures, CanaryFigures, find_latency_bucket, measure_overlap
from nearcast.stores.canary_share import Canary

__all__ = ["CanaryTally", "MeasuredList"]

MOST_WAITING = 64  # look-ups that wait to be measured; a newer one replaces the oldest
MEASURE_SECONDS = 0.05  # after each poll
MOST_KEYS = 1 << 16  # distinct keys that are counted


@dataclass(frozen=True, slots=True)
class MeasuredList:
    """The list of a key on one arm."""

    ids: Sequence[Any]
    k: int  # candidates that were asked for


@dataclass(frozen=True, slots=True)
class _WaitingKey:
    """A look-up to do again: on the current version, on the canary's, and the hash of its key."""

    current: Callable[[], MeasuredList]
    canary: Callable[[], MeasuredList]
    hashed: int


class CanaryTally:
    """The figures of one canary in this process. Safe to use from many threads, and after a fork.

    It has no lock: two threads that count at the same moment may lose a count, which no figure depends on.
    """

    def __init__(self, canary: Canary) -> None:
        self.canary = canary  # as it started: the share may have grown
        self.source = os.urandom(8).hex()  # names the figures: those of one source replace each other
        self._waiting: deque[_WaitingKey] = deque(maxlen=MOST_WAITING)
        self._keys: set[int] = set()
        self._routed = 0
        self._errors = 0
        self._figures = CanaryFigures()

    def offer(self, current: Callable[[], MeasuredList], canary: Callable[[], MeasuredList], hashed: int) -> None:
        """Queue a look-up to be measured."""
        self._waiting.append(_WaitingKey(current, canary, hashed))

    def count_routed(self, keys: int) -> None:
        """Count look-ups of keys in the share."""
        self._routed += keys

    def count_error(self) -> None:
        """Count a look-up that the canary's arm could not answer."""
        self._errors += 1

    @property
    def figures(self) -> CanaryFigures:
        """The figures until now."""
        counted = CanaryFigures(routed=self._routed, keys=len(self._keys), canary=ArmFigures(errors=self._errors))
        return self._figures + counted

    def measure_waiting(self, seconds: float = MEASURE_SECONDS) -> None:
        """Measure the queued look-ups; drop those that do not fit into the time."""
        deadline = time.monotonic() + seconds
        for number in range(len(self._waiting)):
            try:
                waiting = self._waiting.popleft()
            except IndexError:  # another thread was faster
                return
            if time.monotonic() < deadline:
                self._measure(waiting, canary_first=bool(number % 2))

    def _measure(self, waiting: _WaitingKey, *, canary_first: bool) -> None:
        """Look a key up on both arms. The order changes from key to key: the second look-up finds warmer caches."""
        try:
            if canary_first:
                canary, after = _look_up(waiting.canary)
                current, before = _look_up(waiting.current)
            else:
                current, before = _look_up(waiting.current)
                canary, after = _look_up(waiting.canary)
        except GoneError:  # the view is replaced meanwhile
            return
        overlap = None if current is None or canary is None else measure_overlap(current.ids, canary.ids)
        pair = CanaryFigures(compared=int(overlap is not None), overlap=overlap or 0.0, current=before, canary=after)
        self._figures += pair
        if len(self._keys) < MOST_KEYS:
            self._keys.add(waiting.hashed)


def _look_up(read: Callable[[], MeasuredList]) -> tuple[MeasuredList | None, ArmFigures]:
    began = time.perf_counter()
    try:
        found = read()
    except GoneError:
        raise
    except NearcastError:
        return None, ArmFigures(errors=1)
    latency = [0] * len(ArmFigures().latency)
    latency[find_latency_bucket(time.perf_counter() - began)] = 1
    length = len(found.ids)
    return found, ArmFigures(1, int(not length), 0, min(1.0, length / max(1, found.k)), tuple(latency))
