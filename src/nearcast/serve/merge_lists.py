"""Merge lists into one, by weighted rank or score, without repetition, with a quota for every list.

The k places are divided by weight among the lists that are not empty. A list of weight w out of W has a quota of
k * w / W places, rounded down; the places left by rounding go, one each, to the lists with the largest remainders. The
merged list holds that many of each list's best candidates, or all of a shorter list. A candidate in several quotas
takes one place. Places that are still free go to the candidates with the highest merged values, and the merged list is
sorted by merged value. Arrays in, arrays out; knows nothing of keys, items or stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nearcast.types import FloatArray, IntArray

__all__ = ["By", "MergedList", "allocate_quotas", "merge_lists"]

By = Literal["rank", "score"]
Weights = npt.NDArray[np.float64]

RANK_OFFSET = 60  # constant of reciprocal rank fusion (Cormack et al., 2009)
ROUNDING_DIGITS = 9  # 10 * (0.3 / 1.0) counts as 3 places despite the rounding of floats
ROUNDING = 10.0**-ROUNDING_DIGITS


@dataclass(frozen=True, slots=True, eq=False)
class MergedList:
    """The merged list, best first, and the quota of each list."""

    items: IntArray  # (n,) item numbers of the input; n <= k
    values: Weights  # (n,) merged values; larger is better
    quotas: IntArray  # (m,) places of each list


def merge_lists(offsets: IntArray, items: IntArray, scores: FloatArray, weights: Weights, k: int, by: By) -> MergedList:
    """Return the k best items of m lists.

    offsets: (m + 1,) list i is items[offsets[i]:offsets[i + 1]], best first, without repeated items.
    items: numbers from 0, in the order of their first appearance. Equal values go to the smaller number.
    weights: (m,) above 0.
    by: "rank" adds weight / (60 + rank) over the lists that hold an item, ranks from 1. "score" adds weight * score,
        where the scores of all lists together are scaled to the range 0 to 1.
    """
    lengths = np.diff(offsets)
    shares = weights / weights.sum() if len(weights) else weights
    rank = np.arange(len(items)) - np.repeat(offsets[:-1], lengths) + 1
    part = 1.0 / (RANK_OFFSET + rank) if by == "rank" else _scale_to_unit(scores)
    values: Weights = np.bincount(items, np.repeat(shares, lengths) * part).astype(np.float64)
    quotas = allocate_quotas(np.where(lengths > 0, weights, 0.0), k)
    best = np.argsort(-values, kind="stable")
    kept = np.zeros(len(values), np.bool_)
    kept[items[rank <= np.repeat(quotas, lengths)]] = True
    free = best[~kept[best]][: k - int(kept.sum())]
    kept[free] = True
    chosen = best[kept[best]]
    return MergedList(chosen, values[chosen], quotas)


def allocate_quotas(weights: Weights, k: int) -> IntArray:
    """Return how many of k places each weight gets, in proportion, by the largest remainder method.

    The places add up to k. Equal remainders go to the first weight.
    """
    total = weights.sum()
    if not total > 0:
        return np.zeros(len(weights), np.int64)
    shares = k * (weights / total)
    quotas: IntArray = np.floor(shares + ROUNDING).astype(np.int64)
    remainders = np.where(weights > 0, shares - quotas, -1.0)
    rounded_up = np.argsort(-np.round(remainders, ROUNDING_DIGITS), kind="stable")[: k - int(quotas.sum())]
    quotas[rounded_up] += 1
    return quotas


def _scale_to_unit(scores: FloatArray) -> Weights:
    if len(scores) == 0:
        return np.empty(0)
    numbers: Weights = scores.astype(np.float64)
    low, high = numbers.min(), numbers.max()
    return (numbers - low) / (high - low) if high > low else np.ones(len(numbers))
