"""How skewed traffic is: Zipf's law over ranks, fitted to counts or laid down by an exponent. NumPy only.

The n-th most asked key gets a share in proportion to n ** -exponent. An exponent of 0 is traffic without a head.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Zipf", "fit_zipf", "zipf_shares"]

Float64Array = npt.NDArray[np.float64]

STEEPEST = 5.0
HALVINGS = 50
RANKS_KEPT = 200_000  # of a long tail; further ranks are gathered into stretches


@dataclass(frozen=True, slots=True)
class Zipf:
    """A fit of Zipf's law."""

    exponent: float
    distance: float  # largest gap between the cumulative shares and those of the law: 0 is a perfect fit

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def zipf_shares(n: int, exponent: float) -> Float64Array:
    """(n,) the share of traffic of each rank; they sum to 1."""
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    shares: Float64Array = weights / weights.sum()
    return shares


def fit_zipf(requests: Float64Array) -> Zipf:
    """The exponent under which these counts (n,), largest first, are most likely (maximum likelihood over n ranks).

    The likelihood is largest where the mean log rank of a request is the one that was seen; that mean falls as the
    exponent grows, so halving an interval finds it.
    """
    n = len(requests)
    if n < 2:
        return Zipf(0.0, 0.0)
    logs, weights = _stretches(n)
    seen = float(_sums(requests, n) @ logs / requests.sum())
    low, high = 0.0, STEEPEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        law = weights * np.exp(-middle * logs)
        low, high = (middle, high) if float(law @ logs / law.sum()) > seen else (low, middle)
    exponent = (low + high) / 2
    gaps = np.abs(np.cumsum(requests) / requests.sum() - np.cumsum(zipf_shares(n, exponent)))
    return Zipf(exponent, float(gaps.max()))


def _edges(n: int) -> npt.NDArray[np.int64]:
    """Where stretches of ranks begin: every rank at first, then ever longer ones."""
    if n <= RANKS_KEPT:
        return np.arange(n)
    tail = np.unique(np.geomspace(RANKS_KEPT, n, RANKS_KEPT // 10).astype(np.int64))[:-1]
    return np.concatenate([np.arange(RANKS_KEPT), tail[tail > RANKS_KEPT - 1]])


def _stretches(n: int) -> tuple[Float64Array, Float64Array]:
    """The log of the middle rank of each stretch, and how many ranks it has."""
    edges = _edges(n)
    sizes = np.diff(np.append(edges, n)).astype(np.float64)
    return np.log(edges + (sizes + 1) / 2), sizes


def _sums(requests: Float64Array, n: int) -> Float64Array:
    sums: Float64Array = np.add.reduceat(requests, _edges(n))
    return sums
