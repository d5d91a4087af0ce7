"""Outcomes of a replay: figures per candidate source, and their difference with a confidence interval.

Arrays in, plain values out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.replaying.request_funnel import FunnelResult
from nearcast.replaying.request_log import LoggedRequest

__all__ = ["Rate", "SourceFigures", "compute_figures", "estimate_lead", "find_hits"]

Z = 1.96  # of a 95% interval
RESAMPLES = 2000
SEED = 49


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with its 95% interval."""

    value: float
    low: float
    high: float
    of: int  # number of requests


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """The figures of one candidate source. The field names are a format (history)."""

    name: str
    stages: tuple[tuple[str, float, float], ...]  # name, mean candidates and mean ads left per request
    returned: float  # mean length of an answer
    empty: float  # share of requests with an empty answer
    short: float | None  # share of requests with fewer than k results
    missed: float  # share of unknown keys
    p50_ms: float
    p99_ms: float
    cpu_seconds: float
    hit_rate: Rate | None  # share of the requests with engaged items whose answer holds one of them
    ad_hit_rate: Rate | None  # share of the requests with engaged ads whose answer holds one of them

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def compute_figures(name: str, result: FunnelResult, requests: Sequence[LoggedRequest], k: int | None) -> SourceFigures:
    """Compute the figures of one source. k: requested length of an answer."""
    keys = sum(len(request.keys) for request in requests)
    lengths, latency = result.lengths, np.percentile(result.seconds, [50, 99]) * 1000
    means = zip(result.stages, result.candidates.mean(axis=0), result.ads.mean(axis=0), strict=True)
    return SourceFigures(
        name=name,
        stages=tuple((stage, float(candidates), float(ads)) for stage, candidates, ads in means),
        returned=float(lengths.mean()),
        empty=float(np.mean(lengths == 0)),
        short=None if k is None else float(np.mean(lengths < k)),
        missed=float(1 - result.found.sum() / max(1, keys)),
        p50_ms=float(latency[0]),
        p99_ms=float(latency[1]),
        cpu_seconds=result.cpu_seconds,
        hit_rate=_estimate_rate(find_hits(result.items, requests, lambda request: request.engaged)),
        ad_hit_rate=_estimate_rate(find_hits(result.returned_ads, requests, lambda request: request.engaged_ads)),
    )


def find_hits(
    returned: Sequence[Sequence[Any]],
    requests: Sequence[LoggedRequest],
    engaged: Callable[[LoggedRequest], frozenset[Any]],
) -> npt.NDArray[np.bool_]:
    """Return whether an answer holds an engaged id, for the requests that have engaged ids."""
    pairs = [(row, engaged(request)) for row, request in zip(returned, requests, strict=True)]
    return np.array([not ids.isdisjoint(row) for row, ids in pairs if ids], np.bool_)


def _estimate_rate(hits: npt.NDArray[np.bool_]) -> Rate | None:
    """Return the share of hits with Wilson's interval, which holds for few hits, too."""
    n = len(hits)
    if n == 0:
        return None
    share = float(hits.mean())
    centre, radius = share + Z**2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return Rate(share, max(0.0, (centre - radius) / scale), min(1.0, (centre + radius) / scale), n)


def estimate_lead(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Rate | None:
    """Return the mean of `one` minus the mean of `other` over the same requests, with a bootstrap interval."""
    if len(one) == 0:
        return None
    gains = one.astype(np.float64) - other.astype(np.float64)
    draws = np.random.default_rng(SEED).integers(len(gains), size=(RESAMPLES, len(gains)))
    low, high = np.quantile(gains[draws].mean(axis=1), [0.025, 0.975])
    return Rate(float(gains.mean()), float(low), float(high), len(gains))
