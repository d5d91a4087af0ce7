"""Merging lists into one: a name in several of them counts once, with its best score or with their sum."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearcast.types import FloatArray, IntArray, Metric

__all__ = ["merged", "similarity"]

Float64Array = npt.NDArray[np.float64]


def similarity(scores: FloatArray, metric: Metric) -> Float64Array:
    """Scores as numbers from 0 on, to be weighted: one below 0 counts as 0, under L2 it is 1 / (1 + d^2)."""
    wide = scores.astype(np.float64)
    return 1.0 / (1.0 - wide) if metric is Metric.L2 else np.maximum(wide, 0.0)


def merged(groups: IntArray, n: int, scores: Float64Array, how: str) -> tuple[Float64Array, IntArray]:
    """The score of each of n groups, and the place of its best member: the first one among equal ones.

    groups: (m,) the group of each member, every group having one. how: best, or sum.
    """
    order = np.lexsort((np.arange(len(scores)), -scores, groups))
    first = order[np.searchsorted(groups[order], np.arange(n))]
    if how == "best":
        return scores[first], first
    sums: Float64Array = np.bincount(groups, scores, n).astype(np.float64, copy=False)
    return sums, first
