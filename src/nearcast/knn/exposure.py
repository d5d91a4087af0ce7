"""An exposure cap: limit the number of lists that one item is in.

Queries and items are matched stably: each query takes the best candidates that accept it, and each item keeps the
queries that score it highest (deferred acceptance, the queries propose). An item is missing from a list only if queries
that score it higher fill its limit. The result is the one stable matching that is best for every query, whatever the
order. Knows positions and scores only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.errors import SpecError
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Neighbors

__all__ = [
    "AdmissionThresholds",
    "CappedLists",
    "cap_exposure",
    "find_admitted",
    "list_score_losses",
    "pack_lists",
    "sum_losses",
]

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class AdmissionThresholds:
    """The score a query must exceed to get an item: that of the last query that each full item keeps."""

    scores: FloatArray  # (m,) -inf for an item with room
    queries: IntArray  # (m,) position of that query; at an equal score the smaller position has the item

    @classmethod
    def free(cls, n_items: int) -> AdmissionThresholds:
        """Return thresholds without a full item."""
        return cls(np.full(n_items, -np.inf, np.float32), np.full(n_items, np.iinfo(np.int64).max))


@dataclass(frozen=True, slots=True, eq=False)
class CappedLists:
    """Lists under an exposure cap, and their loss against the k best of each query."""

    lists: Neighbors  # (n, k)
    thresholds: AdmissionThresholds
    score_lost: float  # mean loss of a slot's score, over the slots that both fill
    fill_lost: float  # share of all slots that became empty
    full_items: int  # items at their limit
    rounds: int


def cap_exposure(candidates: Neighbors, k: int, max_lists: int, *, n_items: int) -> CappedLists:
    """Choose k of each query's candidates (n, width), best first, so that no item is in more than `max_lists` lists.

    At equal scores an item keeps the smaller query position. A list is short if too few of its candidates accept the
    query; wider candidates make this rarer. Memory: some arrays of (n, width). Time: a pass over them per round; the
    number of rounds is the longest chain of refusals.
    """
    if max_lists < 1:
        raise SpecError(f"exposure.max_lists_per_item is {max_lists}; give at least 1")
    filled = candidates.positions != EMPTY_POSITION
    uncapped = filled & (np.arange(filled.shape[1]) < k)
    contested = np.bincount(candidates.positions[filled], minlength=n_items) > max_lists
    order, starts = _order_by_item(candidates, filled, contested)
    admitted_pairs, rounds = filled.copy(), 0
    while True:
        rounds += 1
        picked = admitted_pairs & (np.cumsum(admitted_pairs, axis=1) <= k)
        refused = order[_find_excess(picked.ravel()[order], starts, max_lists)]
        if not len(refused):
            break
        admitted_pairs.ravel()[refused] = False
    lists = pack_lists(candidates, picked, k)
    thresholds, full = _find_thresholds(candidates, picked, max_lists, n_items)
    losses = list_score_losses(candidates, uncapped, picked)
    lost = sum_losses([losses]) / max(1, len(losses))
    fill_lost = (np.count_nonzero(uncapped) - np.count_nonzero(picked)) / max(1, len(picked) * k)
    return CappedLists(lists, thresholds, lost, float(fill_lost), full, rounds)


def find_admitted(
    positions: IntArray, scores: FloatArray, queries: IntArray, thresholds: AdmissionThresholds
) -> BoolArray:
    """Return (n, width) flags of the candidates that accept these queries (n,): those above their thresholds."""
    rows, slots = np.nonzero(positions != EMPTY_POSITION)
    items, own_scores = positions[rows, slots], scores[rows, slots]
    threshold, last = thresholds.scores[items], thresholds.queries[items]
    admitted = np.zeros(positions.shape, np.bool_)
    admitted[rows, slots] = (own_scores > threshold) | ((own_scores == threshold) & (queries[rows] <= last))
    return admitted


def _order_by_item(candidates: Neighbors, filled: BoolArray, contested: BoolArray) -> tuple[IntArray, IntArray]:
    """Return the flat indices of the pairs of contested items, by item, best query first; and each item's start."""
    pairs = np.flatnonzero(filled & contested[candidates.positions])
    items, scores = candidates.positions.ravel()[pairs], candidates.scores.ravel()[pairs]
    order = np.lexsort((pairs, -scores, items))  # pairs rise with the query's position
    items = items[order]
    starts = np.flatnonzero(np.append(True, items[1:] != items[:-1])) if len(items) else np.empty(0, np.int64)
    return pairs[order], starts


def _find_excess(picked: BoolArray, starts: IntArray, max_lists: int) -> IntArray:
    """Return the picked pairs, ordered by item, beyond the limit of their item."""
    counts = np.cumsum(picked)
    before: IntArray = np.repeat(counts[starts] - picked[starts], np.diff(np.append(starts, len(picked))))
    return np.flatnonzero(picked & (counts - before > max_lists))


def pack_lists(candidates: Neighbors, picked: BoolArray, k: int) -> Neighbors:
    """Return the picked pairs without gaps, at most k per row."""
    lists = Neighbors.empty(len(picked), k)
    rows, columns = np.nonzero(picked)
    slots = (np.cumsum(picked, axis=1) - 1)[rows, columns]
    lists.positions[rows, slots] = candidates.positions[rows, columns]
    lists.scores[rows, slots] = candidates.scores[rows, columns]
    return lists


def _find_thresholds(
    candidates: Neighbors, picked: BoolArray, max_lists: int, n_items: int
) -> tuple[AdmissionThresholds, int]:
    rows, columns = np.nonzero(picked)
    items, scores = candidates.positions[rows, columns], candidates.scores[rows, columns]
    full = np.bincount(items, minlength=n_items) >= max_lists
    thresholds = AdmissionThresholds.free(n_items)
    order = np.lexsort((-rows, scores, items))  # the query with the lowest score first
    order = order[full[items[order]]]
    first = order[np.append(True, items[order][1:] != items[order][:-1])] if len(order) else order
    thresholds.scores[items[first]] = scores[first]
    thresholds.queries[items[first]] = rows[first]
    return thresholds, int(np.count_nonzero(full))


def list_score_losses(candidates: Neighbors, uncapped: BoolArray, picked: BoolArray) -> npt.NDArray[np.float64]:
    """Return the loss of score of each slot that is filled before and after."""
    before = _rank_scores(candidates, uncapped)
    after = _rank_scores(candidates, picked)
    width = min(before.shape[1], after.shape[1])
    both = np.isfinite(before[:, :width]) & np.isfinite(after[:, :width])
    lost: npt.NDArray[np.float64] = before[:, :width][both] - after[:, :width][both]
    return lost


def sum_losses(parts: Iterable[npt.NDArray[np.float64]]) -> float:
    """Return the sum of all losses, rounded once: it does not depend on how they are cut."""
    return math.fsum(loss for part in parts for loss in part[part != 0].tolist())


def _rank_scores(candidates: Neighbors, chosen: BoolArray) -> npt.NDArray[np.float64]:
    width = int(np.count_nonzero(chosen, axis=1).max(initial=0))
    return pack_lists(candidates, chosen, width).scores.astype(np.float64)
