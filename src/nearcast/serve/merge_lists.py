"""Many lists as one: by weighted rank or score, without repetition, and with a share for every list.

The k places are shared out by weight among the lists that are not empty: a list of weight w of W in all is promised
k * w / W of them, rounded down, and those that are left over by the rounding go one each to the lists that lost most
by it. The promise is kept: as many of a list's best candidates as it was promised (all, where it has not so many) are
in the merged list. A candidate that several lists promise takes one place only. Places that this leaves, or a short
list, go to the candidates that are worth most over all lists; and by that all are put in order. Arrays in, arrays out;
knows nothing of keys, items or stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nearcast.types import FloatArray, IntArray

__all__ = ["By", "Merged", "merge", "promised_places"]

By = Literal["rank", "score"]
Weights = npt.NDArray[np.float64]

RANK_OFFSET = 60  # of reciprocal rank fusion: what a first rank is worth beside a second, in the paper's own setting
ROUNDING_DIGITS = 9  # 10 * (0.3 / 1.0) is a share of 3 places, whatever the last bit says
ROUNDING = 10.0**-ROUNDING_DIGITS


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """The merged list, best first, and what each list was promised."""

    items: IntArray  # (n,) numbers of items, as they came in; n <= k
    values: Weights  # (n,) what they are worth: larger is better
    promised: IntArray  # (m,) places of each list


def merge(offsets: IntArray, items: IntArray, scores: FloatArray, weights: Weights, k: int, by: By) -> Merged:
    """The k best items of m lists.

    offsets: (m + 1,) list i is items[offsets[i]:offsets[i + 1]], best first, in which no item is repeated.
    items: numbers from 0 up, in the order of their first appearance: of equal values the smaller number is first.
    weights: (m,) above 0.
    by: "rank" adds weight / (60 + rank) over the lists that hold an item, ranks from 1. "score" adds weight * score,
        with the scores of all lists moved and stretched together so that they lie between 0 and 1.
    """
    lengths = np.diff(offsets)
    shares = weights / weights.sum() if len(weights) else weights
    rank = np.arange(len(items)) - np.repeat(offsets[:-1], lengths) + 1
    worth = 1.0 / (RANK_OFFSET + rank) if by == "rank" else _between_0_and_1(scores)
    values: Weights = np.bincount(items, np.repeat(shares, lengths) * worth).astype(np.float64)
    promised = promised_places(np.where(lengths > 0, weights, 0.0), k)
    best = np.argsort(-values, kind="stable")
    kept = np.zeros(len(values), np.bool_)
    kept[items[rank <= np.repeat(promised, lengths)]] = True
    free = best[~kept[best]][: k - int(kept.sum())]
    kept[free] = True
    chosen = best[kept[best]]
    return Merged(chosen, values[chosen], promised)


def promised_places(weights: Weights, k: int) -> IntArray:
    """Of k places those of each of these weights, 0 or more: its share rounded down or up, k in all.

    Who loses most by rounding down is rounded up first; of equals, the first.
    """
    total = weights.sum()
    if not total > 0:
        return np.zeros(len(weights), np.int64)
    shares = k * (weights / total)
    places: IntArray = np.floor(shares + ROUNDING).astype(np.int64)
    lost = np.where(weights > 0, shares - places, -1.0)
    rounded_up = np.argsort(-np.round(lost, ROUNDING_DIGITS), kind="stable")[: k - int(places.sum())]
    places[rounded_up] += 1
    return places


def _between_0_and_1(scores: FloatArray) -> Weights:
    if len(scores) == 0:
        return np.empty(0)
    numbers: Weights = scores.astype(np.float64)
    low, high = numbers.min(), numbers.max()
    return (numbers - low) / (high - low) if high > low else np.ones(len(numbers))
