"""Skew of the traffic: Zipf's law over ranks, fitted to counts or given by an exponent. NumPy only.

The share of the n-th most requested key is proportional to n ** -exponent. With exponent 0 all keys are equal.
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
RANKS_KEPT = 200_000  # further ranks of a long tail are grouped into blocks


@dataclass(frozen=True, slots=True)
class Zipf:
    """A fit of Zipf's law."""

    exponent: float
    distance: float  # largest gap between the cumulative shares and those of the law; 0 is a perfect fit

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def zipf_shares(n: int, exponent: float) -> Float64Array:
    """Return (n,) the share of the traffic of each rank; their sum is 1."""
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    shares: Float64Array = weights / weights.sum()
    return shares


def fit_zipf(requests: Float64Array) -> Zipf:
    """Fit the exponent to counts (n,), largest first, by maximum likelihood over n ranks.

    The likelihood is largest where the law has the observed mean log rank of a request. That mean falls as the
    exponent grows, so bisection finds it.
    """
    n = len(requests)
    if n < 2:
        return Zipf(0.0, 0.0)
    logs, weights = _group_ranks(n)
    seen = float(_sum_blocks(requests, n) @ logs / requests.sum())
    low, high = 0.0, STEEPEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        law = weights * np.exp(-middle * logs)
        low, high = (middle, high) if float(law @ logs / law.sum()) > seen else (low, middle)
    exponent = (low + high) / 2
    gaps = np.abs(np.cumsum(requests) / requests.sum() - np.cumsum(zipf_shares(n, exponent)))
    return Zipf(exponent, float(gaps.max()))


def _find_block_starts(n: int) -> npt.NDArray[np.int64]:
    """Return the first rank of each block: single ranks first, then longer and longer blocks."""
    if n <= RANKS_KEPT:
        return np.arange(n)
    tail = np.unique(np.geomspace(RANKS_KEPT, n, RANKS_KEPT // 10).astype(np.int64))[:-1]
    return np.concatenate([np.arange(RANKS_KEPT), tail[tail > RANKS_KEPT - 1]])


def _group_ranks(n: int) -> tuple[Float64Array, Float64Array]:
    """Return the log of the middle rank of each block, and its number of ranks."""
    edges = _find_block_starts(n)
    sizes = np.diff(np.append(edges, n)).astype(np.float64)
    return np.log(edges + (sizes + 1) / 2), sizes


def _sum_blocks(requests: Float64Array, n: int) -> Float64Array:
    sums: Float64Array = np.add.reduceat(requests, _find_block_starts(n))
    return sums
