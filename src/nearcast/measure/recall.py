"""Recall of lists against exact truth, and how sure one can be of it from a sample.

Knows nothing of how lists or truth were made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from nearcast.types import EMPTY_POSITION, FloatArray, Neighbors

__all__ = ["Z95", "Recall", "estimate_recall", "recall_at", "recall_per_query", "regret_per_query", "sample_rows"]

Z95 = 1.959964  # two-sided 95% of the normal distribution
TIE_TOLERANCE = 1e-6  # of the score's size: float32 holds seven digits

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recall:
    """Mean recall over sampled queries with its 95% interval."""

    value: float
    low: float
    high: float
    sample: int


def sample_rows(n: int, sizes: tuple[int, ...], seed: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Draw disjoint random samples of 0..n-1, each sorted; the first sizes are served first when n is short."""
    shuffled = np.random.default_rng([seed, 2]).permutation(n)
    bounds = np.minimum(np.cumsum((0, *sizes)), n)
    return tuple(np.sort(shuffled[a:b]) for a, b in pairwise(bounds))


def recall_per_query(found: FloatArray, truth: Neighbors) -> Float64Array:
    """(n,) the share of the true slots that each list (n, any) of recomputed scores has filled as well.

    A candidate as good as the worst true neighbor counts, whichever of two tied items it is. The scores
    must belong to distinct items. Queries without any true neighbor count as 1: nothing was missed.
    """
    wanted = truth.lengths
    last = np.maximum(wanted - 1, 0)
    worst = np.take_along_axis(truth.scores, last[:, None], 1)[:, 0].astype(np.float64)
    bar = np.where(np.isfinite(worst), worst - TIE_TOLERANCE * np.abs(worst), -np.inf)
    good = np.count_nonzero((found >= bar[:, None]) & np.isfinite(found), axis=1)
    shares: Float64Array = np.minimum(good, wanted) / np.maximum(wanted, 1)
    return np.where(wanted > 0, shares, 1.0)


def recall_at(found: FloatArray, truth: Neighbors, j: int) -> Float64Array:
    """(n,) the same for the first j of each list, which is in the order it was found in, against the first j true."""
    return recall_per_query(found[:, :j], Neighbors(truth.positions[:, :j], truth.scores[:, :j]))


def regret_per_query(found: FloatArray, truth: Neighbors) -> Float64Array:
    """(n,) how much worse the candidates found are than the true ones: what is missing of the true scores' sum.

    Both lists are compared slot by slot, best first, as a share of the sum of the true scores' sizes: 0 where every
    miss was a tie, 1 where nothing was found. An empty slot loses all of its true score's size.
    """
    slots = truth.scores.shape[1]
    true = np.where(truth.positions != EMPTY_POSITION, truth.scores, 0.0).astype(np.float64)
    best = -np.sort(-found.astype(np.float64), axis=1)[:, :slots]
    best = np.pad(best, ((0, 0), (0, slots - best.shape[1])), constant_values=-np.inf)
    there = truth.positions != EMPTY_POSITION
    lost = np.where(there, np.maximum(np.where(np.isfinite(best), true - best, np.abs(true)), 0.0), 0.0).sum(axis=1)
    size = np.abs(true).sum(axis=1)
    regret: Float64Array = np.divide(lost, size, out=np.zeros(len(lost)), where=size > 0)
    return np.minimum(regret, 1.0)


def estimate_recall(
    shares: Float64Array, n_queries: int, weights: Float64Array | None = None, *, z: float = Z95
) -> Recall:
    """The mean of sampled shares and its 95% interval for all `n_queries`.

    weights: (n,) how much each sampled query counts, such as its traffic; 0 or more. The mean is then a ratio of two
    sums, and its variance that of the linearized ratio. z: quantile of the normal distribution, for other intervals.

    Wilson's score interval with the effective sample size of clustered data (each query is a cluster of k
    slots; after Korn and Graubard, "Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data", 1998) and the finite-population correction: a sample of
    all queries has no error left, and a sample without a miss does not prove that there is none.
    """
    n = len(shares)
    if n == 0:
        return Recall(1.0, 0.0, 1.0, 0)
    if weights is None or not weights.any():
        weights, mean = np.full(n, 1 / n), float(shares.mean())
    else:
        weights = weights / weights.sum()
        mean = 1 - float(weights @ (1 - shares))  # exactly 1 where nothing was missed
    left_out = (n_queries - n) / max(1, n_queries - 1)
    if left_out <= 0:
        return Recall(mean, mean, mean, n)
    variance = float((weights * weights) @ (shares - mean) ** 2) * n / (n - 1) if n > 1 else 0.25
    # As many independent yes-or-no trials as would give this variance; if none missed, as many as there are queries.
    queries = 1 / float(weights @ weights)
    effective = mean * (1 - mean) / variance if variance > 0 and 0 < mean < 1 else queries
    effective = max(effective, 1.0) / left_out
    z2 = z * z
    center = (mean + z2 / (2 * effective)) / (1 + z2 / effective)
    half = z * math.sqrt(mean * (1 - mean) / effective + z2 / (4 * effective**2)) / (1 + z2 / effective)
    return Recall(mean, max(0.0, min(mean, center - half)), min(1.0, max(mean, center + half)), n)
