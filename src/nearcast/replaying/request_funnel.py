"""Requests through the funnel, one way: what was left after each stage, how long it took, and what came out.

Knows nothing of where candidates come from, nor of what the outcome is compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.ads.ad_answer import AdRequest
from nearcast.ads.ad_funnel import STAGES, Stage
from nearcast.ads.candidate_lists import weight_lists
from nearcast.ads.expansion_table import Expansion
from nearcast.replaying.candidate_sources import Lists, Way
from nearcast.replaying.request_log import Logged

__all__ = ["Funnel", "Passed", "run_funnel"]

FloatsArray = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]
WARM_UP = 20  # requests that are answered once before the clock starts


@dataclass(frozen=True, slots=True)
class Funnel:
    """What requests go through."""

    expansion: Expansion | None  # None: the candidates themselves are returned
    k: int | None = None  # of ads, or of candidates without an expansion
    candidates_per_key: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """What came of n requests."""

    stages: tuple[str, ...]
    candidates: FloatsArray  # (n, stages) that were left
    ads: FloatsArray  # (n, stages)
    items: Sequence[Sequence[Any]]  # returned to each, best first
    returned_ads: Sequence[Sequence[Any]]
    seconds: FloatsArray  # (n,) that an answer took
    cpu_seconds: float  # of all
    found: FloatsArray  # (n,) keys that were known

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(n,) of the answers."""
        return np.fromiter(map(len, self.items), np.int64, len(self.items))


def run_funnel(
    way: Way, requests: Sequence[Logged], funnel: Funnel, progress: Progress = lambda _a, _b: None
) -> Passed:
    """Answer every request, one after the other, on this thread."""
    for logged in requests[:WARM_UP]:
        _answer(way, logged, funnel)
    answers, seconds, cpu = [], np.empty(len(requests)), time.thread_time()
    for number, logged in enumerate(requests):
        started = time.perf_counter()
        answers.append(_answer(way, logged, funnel))
        seconds[number] = time.perf_counter() - started
        if number % 200 == 199 or number + 1 == len(requests):
            progress(number + 1, len(requests))
    spent = time.thread_time() - cpu
    stages = [answer.stages for answer in answers]
    return Passed(
        stages=tuple(stage.name for stage in stages[0]),
        candidates=np.array([[stage.candidates for stage in row] for row in stages], np.float64),
        ads=np.array([[stage.ads for stage in row] for row in stages], np.float64),
        items=[answer.items for answer in answers],
        returned_ads=[answer.ads for answer in answers],
        seconds=seconds,
        cpu_seconds=spent,
        found=np.array([answer.found for answer in answers], np.float64),
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    stages: tuple[Stage, ...]
    items: Sequence[Any]
    ads: Sequence[Any]
    found: int


def _answer(way: Way, logged: Logged, funnel: Funnel) -> _Answer:
    lists = way.candidates(logged.keys, funnel.candidates_per_key)
    if funnel.expansion is None:
        return _merged(lists, funnel.k)
    known = funnel.expansion.request_fields  # a log has columns that targeting does not ask for
    request = {name: value for name, value in logged.request.items() if known is None or name in known}
    options = AdRequest(request, funnel.k, (), logged.seconds)
    weighted = weight_lists(lists.offsets, lists.ids, lists.scores, way.metric, logged.weights)
    found = funnel.expansion.of_lists(weighted, options)
    return _Answer(found.stages, found.items, found.ads, lists.found)


def _merged(lists: Lists, k: int | None) -> _Answer:
    """The candidates of all keys, best first, each once."""
    order = np.argsort(-lists.scores, kind="stable")
    ids = list(dict.fromkeys(lists.ids.take(order).to_pylist()))
    kept = ids if k is None else ids[:k]
    return _Answer((Stage(STAGES[0], len(ids), 0), Stage(STAGES[-1], len(kept), 0)), kept, [], lists.found)
