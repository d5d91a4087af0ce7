"""Exact lists that are stored longer than needed, and updated when items are added, removed or changed.

A list is stored with a bound: every item that is not in it scores below the bound. After removals, the rest of a list,
with the new items merged in, is exact down to the bound. Arrays only; the caller knows the new positions of the items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.knn.topk import merge
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Neighbors

__all__ = ["KnownLists", "bound_lists", "concat_lists", "move_lists", "update_lists"]


@dataclass(frozen=True, slots=True)
class KnownLists:
    """The best known items of every query, and a bound on the scores of all others.

    An item outside the list scores below `bound_scores`, or equal with a position of at least `bound_edges`. A list of
    all items has the bound -inf.
    """

    best: Neighbors  # (n, width)
    bound_scores: FloatArray  # (n,)
    bound_edges: IntArray  # (n,)

    def complete(self, k: int) -> npt.NDArray[np.bool_]:
        """Return (n,) whether the first k of a list are the k best items, or all items."""
        return (self.best.lengths >= k) | np.isneginf(self.bound_scores)

    def rows(self, chosen: IntArray | npt.NDArray[np.bool_]) -> KnownLists:
        """Return the lists of some of the queries."""
        best = Neighbors(self.best.positions[chosen], self.best.scores[chosen])
        return KnownLists(best, self.bound_scores[chosen], self.bound_edges[chosen])


def bound_lists(best: Neighbors) -> KnownLists:
    """Return the lists of an exact join with bounds. The last slot bounds a full list; a short list has all items."""
    n, width = best.positions.shape
    full = best.lengths == width
    scores = np.full(n, -np.inf, np.float32)
    edges = np.zeros(n, np.int64)
    scores[full], edges[full] = best.scores[full, -1], best.positions[full, -1] + 1
    return KnownLists(best, scores, edges)


def concat_lists(parts: Sequence[KnownLists], order: IntArray | slice) -> KnownLists:
    """Concatenate lists of one width, of several sets of queries, and reorder them."""
    best = Neighbors(
        np.concatenate([part.best.positions for part in parts])[order],
        np.concatenate([part.best.scores for part in parts])[order],
    )
    scores = np.concatenate([part.bound_scores for part in parts])[order]
    return KnownLists(best, scores, np.concatenate([part.bound_edges for part in parts])[order])


def move_lists(known: KnownLists, positions: IntArray, edges: IntArray) -> KnownLists:
    """Return the lists with the positions of a changed set of items.

    positions: (n, width) new position of every slot's item, -1 if it was removed or changed. Items that stay must keep
    their order. edges: (n,) new edges of the bounds.
    """
    removed = positions == EMPTY_POSITION
    best = Neighbors(positions.copy(), np.where(removed, np.float32(-np.inf), known.best.scores))
    gaps = np.flatnonzero((removed[:, :-1] & ~removed[:, 1:]).any(axis=1))  # items that stay are sorted already
    order = np.argsort(removed[gaps], axis=1, kind="stable")
    for slots in (best.positions, best.scores):
        slots[gaps] = np.take_along_axis(slots[gaps], order, 1)
    return KnownLists(best, known.bound_scores, edges)


def update_lists(known: KnownLists, fresh: Neighbors, width: int) -> KnownLists:
    """Merge the exact lists of the new items, `fresh`, into the lists; cut them to `width`.

    fresh: (n, at least width), or less if it has every new item that reaches a list.
    Only slots above the bound stay: an unknown item may precede all others.
    """
    both = merge([known.best, fresh], width)
    bound, edge = known.bound_scores[:, None], known.bound_edges[:, None]
    proven = (both.scores > bound) | ((both.scores == bound) & (both.positions < edge))
    proven &= both.positions != EMPTY_POSITION
    best = Neighbors(
        np.where(proven, both.positions, EMPTY_POSITION), np.where(proven, both.scores, np.float32(-np.inf))
    )
    full = best.lengths == width  # every other item is worse than the last slot
    scores = np.where(full, best.scores[:, -1], known.bound_scores).astype(np.float32)
    edges = np.where(full, best.positions[:, -1] + 1, known.bound_edges).astype(np.int64)
    return KnownLists(best, scores, edges)
