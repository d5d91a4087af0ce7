"""Keep the best: merge lists, gather flat pairs into k per query, exclude an item.

Knows nothing of vectors: positions and scores only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nearcast.knn.scores import top_scores
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Neighbors

__all__ = ["cut_lists", "drop_excluded", "gather_pairs", "merge"]


def merge(parts: Sequence[Neighbors], k: int) -> Neighbors:
    """Keep the k best slots of several lists for the same queries; equal scores go to the smaller position.

    The parts must hold different items, as the shards of an index do.
    """
    positions = np.concatenate([p.positions for p in parts], axis=1)
    scores = np.concatenate([p.scores for p in parts], axis=1)
    return _pad_lists(top_scores(positions, scores, k), k)


def gather_pairs(rows: IntArray, positions: IntArray, scores: FloatArray, *, n: int, k: int) -> Neighbors:
    """Gather flat (row, position, score) triples, in any order, into the k best of each of n queries."""
    order = np.lexsort((positions, -scores, rows))
    rows, positions, scores = rows[order], positions[order], scores[order]
    starts = np.searchsorted(rows, np.arange(n))
    rank = np.arange(len(rows)) - starts[rows]
    kept = rank < k
    best = Neighbors.empty(n, k)
    best.positions[rows[kept], rank[kept]] = positions[kept]
    best.scores[rows[kept], rank[kept]] = scores[kept]
    return best


def drop_excluded(neighbors: Neighbors, exclude: IntArray | None, k: int) -> Neighbors:
    """Remove each query's excluded position from its list, then cut the lists to k.

    `exclude` (n,) holds one position per query, or -1 for none. Lists of k + 1 become full lists of k.
    """
    if exclude is None:
        return _pad_lists(Neighbors(neighbors.positions[:, :k], neighbors.scores[:, :k]), k)
    excluded = (neighbors.positions == exclude[:, None]) & (exclude[:, None] >= 0)
    positions = np.where(excluded, EMPTY_POSITION, neighbors.positions)
    scores = np.where(excluded, np.float32(-np.inf), neighbors.scores)
    return _pad_lists(top_scores(positions, scores, k), k)


def cut_lists(neighbors: Neighbors, lengths: IntArray) -> Neighbors:
    """Return the first `lengths` (n,) slots of each list; empty the others."""
    beyond = np.arange(neighbors.positions.shape[1]) >= lengths[:, None]
    positions = np.where(beyond, EMPTY_POSITION, neighbors.positions)
    return Neighbors(positions, np.where(beyond, np.float32(-np.inf), neighbors.scores))


def _pad_lists(neighbors: Neighbors, k: int) -> Neighbors:
    n, width = neighbors.positions.shape
    if width >= k:
        return neighbors
    wide = Neighbors.empty(n, k)
    wide.positions[:, :width] = neighbors.positions
    wide.scores[:, :width] = neighbors.scores
    return wide
