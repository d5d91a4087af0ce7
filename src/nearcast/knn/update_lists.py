"""Exact lists that are kept longer than they are needed, and renewed when items come, go or change.

A list is known with what bounds it: every item that is not in it is worse than its bound. So after items have gone,
what is left of a list, with the items that came merged in, is exact as far down as the bound. Arrays only; whoever
calls knows where the items have gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.knn.topk import merge
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Neighbors

__all__ = ["KnownLists", "all_lists", "known_lists", "moved_lists", "renewed_lists"]


@dataclass(frozen=True, slots=True)
class KnownLists:
    """The best items of every query, as far as they are known, and a bound on all others.

    An item that is not listed has a score below `scores`, or that very score and a position of `edges` or more. A list
    that leaves out nothing has the bound -inf.
    """

    best: Neighbors  # (n, width)
    bound_scores: FloatArray  # (n,)
    bound_edges: IntArray  # (n,)

    def complete(self, k: int) -> npt.NDArray[np.bool_]:
        """(n,) whether the first k of a list are the k best items, or all there are."""
        return (self.best.lengths >= k) | np.isneginf(self.bound_scores)

    def rows(self, chosen: IntArray | npt.NDArray[np.bool_]) -> KnownLists:
        """The lists of some of the queries."""
        best = Neighbors(self.best.positions[chosen], self.best.scores[chosen])
        return KnownLists(best, self.bound_scores[chosen], self.bound_edges[chosen])


def known_lists(best: Neighbors) -> KnownLists:
    """What an exact join found. The last slot of a full list bounds all others; a shorter one holds all there are."""
    n, width = best.positions.shape
    full = best.lengths == width
    scores = np.full(n, -np.inf, np.float32)
    edges = np.zeros(n, np.int64)
    scores[full], edges[full] = best.scores[full, -1], best.positions[full, -1] + 1
    return KnownLists(best, scores, edges)


def all_lists(parts: Sequence[KnownLists], order: IntArray) -> KnownLists:
    """Lists of one width, of several sets of queries after each other, in another order."""
    best = Neighbors(
        np.concatenate([part.best.positions for part in parts])[order],
        np.concatenate([part.best.scores for part in parts])[order],
    )
    scores = np.concatenate([part.bound_scores for part in parts])[order]
    return KnownLists(best, scores, np.concatenate([part.bound_edges for part in parts])[order])


def moved_lists(known: KnownLists, positions: IntArray, edges: IntArray) -> KnownLists:
    """The lists among the items of another time.

    positions: (n, width) where every slot's item is then, -1 where it is gone or has changed. Items that stay must keep
    their order. edges: (n,) the bounds' edges then.
    """
    gone = positions == EMPTY_POSITION
    order = np.argsort(gone, axis=1, kind="stable")  # what stays is in order already
    scores = np.where(gone, np.float32(-np.inf), known.best.scores)
    best = Neighbors(np.take_along_axis(positions, order, 1), np.take_along_axis(scores, order, 1))
    return KnownLists(best, known.bound_scores, edges)


def renewed_lists(known: KnownLists, fresh: Neighbors, width: int) -> KnownLists:
    """The lists with the items that came: their exact lists, `fresh` (n, at least width), merged in; cut to `width`.

    Kept is what the bound proves: an item that was left out of the old list may come before anything that is worse.
    """
    both = merge([known.best, fresh], width)
    bound, edge = known.bound_scores[:, None], known.bound_edges[:, None]
    proven = (both.scores > bound) | ((both.scores == bound) & (both.positions < edge))
    proven &= both.positions != EMPTY_POSITION
    best = Neighbors(
        np.where(proven, both.positions, EMPTY_POSITION), np.where(proven, both.scores, np.float32(-np.inf))
    )
    full = best.lengths == width  # whatever is not listed now is worse than the last that is
    scores = np.where(full, best.scores[:, -1], known.bound_scores).astype(np.float32)
    edges = np.where(full, best.positions[:, -1] + 1, known.bound_edges).astype(np.int64)
    return KnownLists(best, scores, edges)
