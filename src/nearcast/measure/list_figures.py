"""Figures of sampled lists against their true neighbors: numbers per query, computed for a block of queries at a time.

Arrays and vectors in, figures out. Blocks bound the memory, whatever k is; they do not change a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.measure.drift import find_repeats
from nearcast.measure.recall import recall_at, recall_per_query, regret_per_query
from nearcast.measure.sampled_recall import RANGE_SLOTS, SampledLists
from nearcast.measure.ties import count_ties
from nearcast.types import FloatArray, IntArray, Neighbors, Vectors

__all__ = ["DEPTHS", "ListFigures", "compare_lists", "concat_figures", "cut_blocks", "find_hits"]

DEPTHS = (1, 10)  # beside k

Float64Array = npt.NDArray[np.float64]
FindNew = Callable[[IntArray], npt.NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class ListFigures:
    """Figures of the lists of n queries."""

    recalls: tuple[Float64Array, ...]  # (n,) each: of whole lists, then at DEPTHS below the width of the truth
    regrets: Float64Array  # (n,)
    best: Float64Array  # (n,) score of the first candidate; -inf for an empty list
    slots: (
        IntArray  # (n, 4) slots: filled, with the vector of the slot before; beyond the first: filled, with its score
    )
    extremes: FloatArray  # (any,) scores, with the smallest and the largest
    new: IntArray  # (n, 4) true neighbors: new items, of these found, other items, of these found


def cut_blocks(n: int, width: int, most_slots: int = RANGE_SLOTS) -> Iterator[slice]:
    """Yield slices of n queries with lists of this width; one, even if there are no queries."""
    step = max(1, most_slots // max(1, width))
    for start in range(0, max(1, n), step):
        yield slice(start, min(n, start + step))


def compare_lists(lists: SampledLists, truth: Neighbors, items: Vectors, find_new: FindNew | None) -> ListFigures:
    """Return the figures of lists of some queries.

    find_new: returns which item positions (ascending, each once) are of new items. None: they are not told apart.
    """
    width = truth.positions.shape[1]
    recalls = [recall_per_query(lists.scores, truth)]
    recalls += [recall_at(lists.scores, truth, depth) for depth in DEPTHS if depth < width]
    n = len(truth.positions)
    best = lists.scores[:, 0].astype(np.float64) if lists.scores.shape[1] else np.full(n, -np.inf)
    scores = lists.scores[lists.scores > -np.inf]
    return ListFigures(
        tuple(recalls),
        regret_per_query(lists.scores, truth),
        best,
        np.column_stack([*find_repeats(lists.positions, lists.scores, items), *count_ties(lists.scores)]),
        np.array([scores.min(), scores.max()] if len(scores) else [], np.float32),
        np.zeros((n, 4), np.int64) if find_new is None else _count_new(lists, truth, find_new),
    )


def concat_figures(parts: Sequence[ListFigures]) -> ListFigures:
    """Concatenate the figures of several blocks of queries."""
    return ListFigures(
        tuple(np.concatenate(arrays) for arrays in zip(*(part.recalls for part in parts), strict=True)),
        np.concatenate([part.regrets for part in parts]),
        np.concatenate([part.best for part in parts]),
        np.concatenate([part.slots for part in parts]),
        np.concatenate([part.extremes for part in parts]),
        np.concatenate([part.new for part in parts]),
    )


def find_hits(lists: SampledLists, truth: Neighbors) -> npt.NDArray[np.bool_]:
    """Return (n, k) which true neighbors are in the lists. An item that ties with the last true one counts as a hit."""
    n_items = int(max(lists.positions.max(initial=0), truth.positions.max(initial=0))) + 1
    row = np.arange(len(truth.positions))[:, None] * n_items
    there = np.isin(row + truth.positions, (row + lists.positions)[lists.positions >= 0])
    last = np.take_along_axis(truth.scores, np.maximum(truth.lengths - 1, 0)[:, None], 1)
    tied = (truth.scores == last) & (recall_per_query(lists.scores, truth) == 1.0)[:, None]
    hits: npt.NDArray[np.bool_] = (there | tied) & (truth.positions >= 0)
    return hits


def _count_new(lists: SampledLists, truth: Neighbors, find_new: FindNew) -> IntArray:
    """Return (n, 4) the true neighbors that are new items, those of them that are found, and the same of others."""
    listed = np.unique(truth.positions[truth.positions >= 0])
    if not len(listed):
        return np.zeros((len(truth.positions), 4), np.int64)
    new = find_new(listed)
    number = np.searchsorted(listed, np.maximum(truth.positions, listed[0]))  # of each slot's item
    hits, counts = find_hits(lists, truth), []
    for members in (new, ~new):
        true_members = (truth.positions >= 0) & members[number]
        counts += [true_members.sum(axis=1), (hits & true_members).sum(axis=1)]
    return np.column_stack(counts)
