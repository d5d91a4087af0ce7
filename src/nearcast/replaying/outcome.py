"""What ways of answering the same requests come to: figures of each, and their difference with an interval.

Arrays in, plain values out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.replaying.request_funnel import Passed
from nearcast.replaying.request_log import Logged

__all__ = ["Figures", "Rate", "figures_of", "hits_of", "lead"]

Z = 1.96  # of a 95% interval
RESAMPLES = 2000
SEED = 49


@dataclass(frozen=True, slots=True)
class Rate:
    """A share, with its 95% interval."""

    value: float
    low: float
    high: float
    of: int  # requests that it is a share of


@dataclass(frozen=True, slots=True)
class Figures:
    """One way of answering."""

    name: str
    stages: tuple[tuple[str, float, float], ...]  # name, candidates and ads that a request has left, on average
    returned: float  # a request, on average
    empty: float  # share of requests with an empty answer
    short: float | None  # share of those with fewer than were asked for
    missed: float  # share of keys that were not known
    p50_ms: float
    p99_ms: float
    cpu_seconds: float
    hit_rate: Rate | None  # share of the requests with something engaged whose answer holds some of it
    ad_hit_rate: Rate | None  # the same of ads

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def figures_of(name: str, passed: Passed, requests: Sequence[Logged], k: int | None) -> Figures:
    """The figures of one way; k: what was asked for."""
    keys = sum(len(logged.keys) for logged in requests)
    lengths, spread = passed.lengths, np.percentile(passed.seconds, [50, 99]) * 1000
    means = zip(passed.stages, passed.candidates.mean(axis=0), passed.ads.mean(axis=0), strict=True)
    return Figures(
        name=name,
        stages=tuple((stage, float(candidates), float(ads)) for stage, candidates, ads in means),
        returned=float(lengths.mean()),
        empty=float(np.mean(lengths == 0)),
        short=None if k is None else float(np.mean(lengths < k)),
        missed=float(1 - passed.found.sum() / max(1, keys)),
        p50_ms=float(spread[0]),
        p99_ms=float(spread[1]),
        cpu_seconds=passed.cpu_seconds,
        hit_rate=_rate(hits_of(passed.items, requests, lambda logged: logged.engaged)),
        ad_hit_rate=_rate(hits_of(passed.returned_ads, requests, lambda logged: logged.engaged_ads)),
    )


def hits_of(
    returned: Sequence[Sequence[Any]], requests: Sequence[Logged], engaged: Callable[[Logged], frozenset[Any]]
) -> npt.NDArray[np.bool_]:
    """Whether an answer holds something that was engaged with, for the requests that have something such."""
    pairs = [(row, engaged(logged)) for row, logged in zip(returned, requests, strict=True)]
    return np.array([not wanted.isdisjoint(row) for row, wanted in pairs if wanted], np.bool_)


def _rate(hits: npt.NDArray[np.bool_]) -> Rate | None:
    """With Wilson's interval, which is right for few hits too."""
    n = len(hits)
    if n == 0:
        return None
    share = float(hits.mean())
    middle, half = share + Z**2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return Rate(share, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale), n)


def lead(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Rate | None:
    """How far one way's mean is above the other's for the same requests, by drawing requests again."""
    if len(one) == 0:
        return None
    gains = one.astype(np.float64) - other.astype(np.float64)
    draws = np.random.default_rng(SEED).integers(len(gains), size=(RESAMPLES, len(gains)))
    low, high = np.quantile(gains[draws].mean(axis=1), [0.025, 0.975])
    return Rate(float(gains.mean()), float(low), float(high), len(gains))
