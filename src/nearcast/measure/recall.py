"""Recall of lists against the exact lists, and its confidence interval from a sample. Knows nothing of joins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from nearcast.types import EMPTY_POSITION, FloatArray, Neighbors

__all__ = [
    "Z95",
    "Recall",
    "draw_rows",
    "estimate_recall",
    "recall_at",
    "recall_per_query",
    "regret_per_query",
    "sample_rows",
]

Z95 = 1.959964  # two-sided 95% of the normal distribution
LARGEST_SHUFFLE = 1 << 24  # rows: 64 MB
TIE_TOLERANCE = 1e-6  # of the score's size: float32 holds seven digits

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recall:
    """Mean recall over sampled queries with its 95% interval."""

    value: float
    low: float
    high: float
    sample: int


def draw_rows(n: int, size: int, seed: list[int]) -> npt.NDArray[np.int64]:
    """Draw up to `size` of 0..n-1 in random order, without repetition.

    A permutation of up to LARGEST_SHUFFLE rows is shuffled as a whole; of more rows, only as many as needed are drawn.
    """
    rng = np.random.default_rng(seed)
    if n > LARGEST_SHUFFLE:
        return rng.choice(n, min(n, size), replace=False)
    shuffled = np.arange(n, dtype=np.int32)
    rng.shuffle(shuffled)
    return shuffled[:size].astype(np.int64)


def sample_rows(n: int, sizes: tuple[int, ...], seed: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Draw disjoint random samples of 0..n-1, each sorted. If n is too small, the last samples are short."""
    drawn = draw_rows(n, sum(sizes), [seed, 2])
    bounds = np.minimum(np.cumsum((0, *sizes)), n)
    return tuple(np.sort(drawn[a:b]) for a, b in pairwise(bounds))


def recall_per_query(scores: FloatArray, truth: Neighbors) -> Float64Array:
    """Return (n,) the recall of each query. scores: (n, any) recomputed scores of the candidates, of distinct items.

    A candidate that scores as high as the worst true neighbor counts, so that ties do not matter. A query without true
    neighbors has recall 1.
    """
    lengths = truth.lengths
    last = np.maximum(lengths - 1, 0)
    worst = np.take_along_axis(truth.scores, last[:, None], 1)[:, 0].astype(np.float64)
    threshold = np.where(np.isfinite(worst), worst - TIE_TOLERANCE * np.abs(worst), -np.inf)
    good = np.count_nonzero((scores >= threshold[:, None]) & np.isfinite(scores), axis=1)
    shares: Float64Array = np.minimum(good, lengths) / np.maximum(lengths, 1)
    return np.where(lengths > 0, shares, 1.0)


def recall_at(scores: FloatArray, truth: Neighbors, j: int) -> Float64Array:
    """Return (n,) the recall of the first j candidates, in list order, against the first j true neighbors."""
    return recall_per_query(scores[:, :j], Neighbors(truth.positions[:, :j], truth.scores[:, :j]))


def regret_per_query(scores: FloatArray, truth: Neighbors) -> Float64Array:
    """Return (n,) the score lost per query, relative to the sum of the true neighbors' absolute scores.

    Slots are compared best first: 0 if every miss is a tie, 1 for an empty list. An empty slot loses its whole true
    score.
    """
    slots = truth.scores.shape[1]
    true = np.where(truth.positions != EMPTY_POSITION, truth.scores, 0.0).astype(np.float64)
    best = -np.sort(-scores.astype(np.float64), axis=1)[:, :slots]
    best = np.pad(best, ((0, 0), (0, slots - best.shape[1])), constant_values=-np.inf)
    filled = truth.positions != EMPTY_POSITION
    lost = np.where(filled, np.maximum(np.where(np.isfinite(best), true - best, np.abs(true)), 0.0), 0.0).sum(axis=1)
    size = np.abs(true).sum(axis=1)
    regret: Float64Array = np.divide(lost, size, out=np.zeros(len(lost)), where=size > 0)
    return np.minimum(regret, 1.0)


def estimate_recall(
    shares: Float64Array, n_queries: int, weights: Float64Array | None = None, *, z: float = Z95
) -> Recall:
    """Estimate the mean recall of all `n_queries` from sampled shares, with its 95% interval.

    weights: (n,) of the sampled queries, for example their traffic; at least 0. The mean is then a ratio of two sums,
    and its variance that of the linearized ratio. z: quantile of the normal distribution, for other intervals.

    Wilson's score interval with the effective sample size of clustered data (each query is a cluster of k slots; after
    Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated
    from survey data", 1998) and the finite-population correction: a sample of all queries has no error, and a sample
    without a miss does not prove recall 1.
    """
    n = len(shares)
    if n == 0:
        return Recall(1.0, 0.0, 1.0, 0)
    if weights is None or not weights.any():
        weights, mean = np.full(n, 1 / n), float(shares.mean())
    else:
        weights = weights / weights.sum()
        mean = 1 - float(weights @ (1 - shares))  # exactly 1 where nothing was missed
    unsampled = (n_queries - n) / max(1, n_queries - 1)
    if unsampled <= 0:
        return Recall(mean, mean, mean, n)
    variance = float((weights * weights) @ (shares - mean) ** 2) * n / (n - 1) if n > 1 else 0.25
    # number of independent yes-or-no trials with this variance; without a miss, the number of queries
    queries = 1 / float(weights @ weights)
    effective = mean * (1 - mean) / variance if variance > 0 and 0 < mean < 1 else queries
    effective = max(effective, 1.0) / unsampled
    z2 = z * z
    center = (mean + z2 / (2 * effective)) / (1 + z2 / effective)
    margin = z * math.sqrt(mean * (1 - mean) / effective + z2 / (4 * effective**2)) / (1 + z2 / effective)
    return Recall(mean, max(0.0, min(mean, center - margin)), min(1.0, max(mean, center + margin)), n)
