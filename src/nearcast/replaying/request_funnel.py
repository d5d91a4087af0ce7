"""The request funnel: send requests through one candidate source, and count the candidates after each stage.

Knows nothing of the candidate sources and of comparisons.
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
from nearcast.replaying.candidate_sources import CandidateSource, RetrievedLists
from nearcast.replaying.request_log import LoggedRequest

__all__ = ["Funnel", "FunnelResult", "run_funnel"]

FloatsArray = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]
WARM_UP = 20  # requests that are answered once before the clock starts


@dataclass(frozen=True, slots=True)
class Funnel:
    """The stages after the candidates: an expansion table, and the lengths of lists and answers."""

    expansion: Expansion | None  # None: the candidates themselves are returned
    k: int | None = None  # ads, or candidates without an expansion
    candidates_per_key: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FunnelResult:
    """The answers to n requests, with counts per stage and times."""

    stages: tuple[str, ...]
    candidates: FloatsArray  # (n, stages) candidates left
    ads: FloatsArray  # (n, stages) ads left
    items: Sequence[Sequence[Any]]  # n lists of returned items, best first
    returned_ads: Sequence[Sequence[Any]]  # n lists
    seconds: FloatsArray  # (n,) time to answer
    cpu_seconds: float  # of all requests
    found: FloatsArray  # (n,) known keys

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(n,) lengths of the answers."""
        return np.fromiter(map(len, self.items), np.int64, len(self.items))


def run_funnel(
    source: CandidateSource,
    requests: Sequence[LoggedRequest],
    funnel: Funnel,
    progress: Progress = lambda _a, _b: None,
) -> FunnelResult:
    """Answer the requests one after the other, on this thread."""
    for request in requests[:WARM_UP]:
        _send_request(source, request, funnel)
    answers, seconds, cpu = [], np.empty(len(requests)), time.thread_time()
    for number, request in enumerate(requests):
        started = time.perf_counter()
        answers.append(_send_request(source, request, funnel))
        seconds[number] = time.perf_counter() - started
        if number % 200 == 199 or number + 1 == len(requests):
            progress(number + 1, len(requests))
    spent = time.thread_time() - cpu
    stages = [answer.stages for answer in answers]
    return FunnelResult(
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
class _FunnelAnswer:
    """The answer to one request."""

    stages: tuple[Stage, ...]
    items: Sequence[Any]
    ads: Sequence[Any]
    found: int  # known keys


def _send_request(source: CandidateSource, request: LoggedRequest, funnel: Funnel) -> _FunnelAnswer:
    lists = source.candidates(request.keys, funnel.candidates_per_key)
    if funnel.expansion is None:
        return _merge_lists(lists, funnel.k)
    known = funnel.expansion.request_fields  # a log may have columns that targeting does not use
    fields = {name: value for name, value in request.request.items() if known is None or name in known}
    options = AdRequest(fields, funnel.k, (), request.seconds)
    weighted = weight_lists(lists.offsets, lists.ids, lists.scores, source.metric, request.weights)
    answer = funnel.expansion.of_lists(weighted, options)
    return _FunnelAnswer(answer.stages, answer.items, answer.ads, lists.found)


def _merge_lists(lists: RetrievedLists, k: int | None) -> _FunnelAnswer:
    """Return the candidates of all keys, best first, each once."""
    order = np.argsort(-lists.scores, kind="stable")
    ids = list(dict.fromkeys(lists.ids.take(order).to_pylist()))
    returned = ids if k is None else ids[:k]
    return _FunnelAnswer(
        (Stage(STAGES[0], len(ids), 0), Stage(STAGES[-1], len(returned), 0)), returned, [], lists.found
    )
