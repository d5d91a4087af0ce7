"""An exposure cap: no item fills more than so many queries' lists.

Queries and items are matched stably: each query takes the best candidates that will have it, and each item keeps the
queries that score it highest (deferred acceptance, the queries propose). So an item is missing from a list only where
queries that score it higher have filled it. There is one such answer that is best for every query, so it depends on no
order. Knows positions and scores only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.errors import SpecError
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Neighbors

__all__ = ["Bars", "Exposure", "admitted", "cap_exposure"]

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """What a query must beat to get an item: the last query that each full item has kept."""

    scores: FloatArray  # (m,) -inf for an item with room
    queries: IntArray  # (m,) position of that query; at an equal score the smaller position has the item

    @classmethod
    def free(cls, n_items: int) -> Bars:
        """No item is full."""
        return cls(np.full(n_items, -np.inf, np.float32), np.full(n_items, np.iinfo(np.int64).max))


@dataclass(frozen=True, slots=True, eq=False)
class Exposure:
    """Lists in which no item appears too often, and what that costs against the k best of each query."""

    lists: Neighbors  # (n, k)
    bars: Bars
    score_lost: float  # mean score that a slot lost, over the slots that both have
    fill_lost: float  # share of all slots that are empty now and were not
    full_items: int  # items that fill as many lists as they may
    rounds: int


def cap_exposure(found: Neighbors, k: int, most: int, *, n_items: int) -> Exposure:
    """Choose k of each query's candidates (n, wide), best first, so that no item is in more than `most` lists.

    At equal scores an item keeps the smaller query position. Lists end short where too few of the candidates will have
    the query; a wider `found` leaves fewer so. Memory: some arrays of (n, wide); time: a pass over them each round, and
    rounds are as many as refusals hang on one another.
    """
    if most < 1:
        raise SpecError(
            f"exposure.max_lists_per_item is {most}; an item that may be in no list is no item: give at least 1"
        )
    there = found.positions != EMPTY_POSITION
    uncapped = there & (np.arange(there.shape[1]) < k)
    contested = np.bincount(found.positions[there], minlength=n_items) > most
    order, starts = _by_item(found, there, contested)
    admitted_pairs, rounds = there.copy(), 0
    while True:
        rounds += 1
        picked = admitted_pairs & (np.cumsum(admitted_pairs, axis=1) <= k)
        refused = order[_beyond(picked.ravel()[order], starts, most)]
        if not len(refused):
            break
        admitted_pairs.ravel()[refused] = False
    lists = _packed(found, picked, k)
    bars, full = _bars(found, picked, most, n_items)
    lost = float(_mean_score(found, uncapped, picked))
    fill_lost = (np.count_nonzero(uncapped) - np.count_nonzero(picked)) / max(1, len(picked) * k)
    return Exposure(lists, bars, lost, float(fill_lost), full, rounds)


def admitted(positions: IntArray, scores: FloatArray, queries: IntArray, bars: Bars) -> BoolArray:
    """(n, wide) which candidates would have these queries (n,), empty slots aside: those that score above the bar."""
    wall = np.append(bars.scores, np.float32(np.inf))[positions]
    last = np.append(bars.queries, -1)[positions]
    beats = (scores > wall) | ((scores == wall) & (queries[:, None] <= last))
    through: BoolArray = beats & (positions != EMPTY_POSITION)
    return through


def _by_item(found: Neighbors, there: BoolArray, contested: BoolArray) -> tuple[IntArray, IntArray]:
    """Flat places of the pairs of contested items, item by item, its best query first; where each item starts."""
    places = np.flatnonzero(there & contested[found.positions])
    items, scores = found.positions.ravel()[places], found.scores.ravel()[places]
    order = np.lexsort((places, -scores, items))  # places rise with the query's position
    items = items[order]
    starts = np.flatnonzero(np.append(True, items[1:] != items[:-1])) if len(items) else np.empty(0, np.int64)
    return places[order], starts


def _beyond(picked: BoolArray, starts: IntArray, most: int) -> IntArray:
    """Which of the picked pairs, ordered by item, an item has too many of."""
    counts = np.cumsum(picked)
    before: IntArray = np.repeat(counts[starts] - picked[starts], np.diff(np.append(starts, len(picked))))
    return np.flatnonzero(picked & (counts - before > most))


def _packed(found: Neighbors, picked: BoolArray, k: int) -> Neighbors:
    """The picked pairs, moved together; at most k a row."""
    lists = Neighbors.empty(len(picked), k)
    rows, columns = np.nonzero(picked)
    slots = (np.cumsum(picked, axis=1) - 1)[rows, columns]
    lists.positions[rows, slots] = found.positions[rows, columns]
    lists.scores[rows, slots] = found.scores[rows, columns]
    return lists


def _bars(found: Neighbors, picked: BoolArray, most: int, n_items: int) -> tuple[Bars, int]:
    rows, columns = np.nonzero(picked)
    items, scores = found.positions[rows, columns], found.scores[rows, columns]
    full = np.bincount(items, minlength=n_items) >= most
    bars = Bars.free(n_items)
    order = np.lexsort((-rows, scores, items))  # the query that an item likes least first
    order = order[full[items[order]]]
    first = order[np.append(True, items[order][1:] != items[order][:-1])] if len(order) else order
    bars.scores[items[first]] = scores[first]
    bars.queries[items[first]] = rows[first]
    return bars, int(np.count_nonzero(full))


def _mean_score(found: Neighbors, uncapped: BoolArray, picked: BoolArray) -> np.float64:
    """By how much the scores of slots fell, over the slots that are filled before and after."""
    before = _ranked(found, uncapped)
    after = _ranked(found, picked)
    width = min(before.shape[1], after.shape[1])
    both = np.isfinite(before[:, :width]) & np.isfinite(after[:, :width])
    lost = before[:, :width][both] - after[:, :width][both]
    return lost.mean() if len(lost) else np.float64(0)


def _ranked(found: Neighbors, chosen: BoolArray) -> npt.NDArray[np.float64]:
    width = int(np.count_nonzero(chosen, axis=1).max(initial=0))
    return _packed(found, chosen, width).scores.astype(np.float64)
