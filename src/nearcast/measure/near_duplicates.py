"""Groups of near-duplicate items: all that a chain of pairs of at least some cosine connects, however long it is.

The pairs are found by exact joins of the distinct vectors with themselves. A join lists LIKES neighbors of each; where
all of those are near-duplicates there may be more, and the next join looks among the items of other groups only, until
no list is full. This is Boruvka's algorithm for connected components, with a join as the search for edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.engines.base import Resources
from nearcast.engines.dense import DenseEngine, DenseIndex, DenseSettings
from nearcast.knn import eligible
from nearcast.knn.constraints import Constraints
from nearcast.knn.eligible import Eligibility, Interval
from nearcast.knn.identical_vectors import Copies, find_copies
from nearcast.knn.scores import norms, pair_scores
from nearcast.types import AnyArray, IntArray, Metric, Neighbors, PartOfVectors, Progress, Vectors, as_score

__all__ = ["alike_groups", "merge_groups"]

LIKES = 32  # neighbors that one join lists for an item
LEADERS = 256  # random items that all others are compared with first: large groups are found without long lists
FIRST_ROWS, BLOCK_ROWS = 1 << 10, 1 << 15

Int32Array = npt.NDArray[np.int32]


def alike_groups(items: Vectors, least: float, resources: Resources, progress: Progress) -> Int32Array:
    """Return (m,) a group for every item that has a near-duplicate, -1 for the others.

    Groups are numbered by their first items. Costs about an exact join of the distinct vectors with themselves.
    """
    copies = find_copies(items)
    distinct = PartOfVectors(items, copies.first) if len(copies.first) < items.n else items
    labels = _linked(distinct, least, resources, progress)
    return _numbered(labels, copies, distinct)


def _linked(vectors: Vectors, least: float, resources: Resources, progress: Progress) -> IntArray:
    """(n,) a label for each vector: the smallest position of its group."""
    labels = _link_to_leaders(vectors, least)
    if vectors.n < 2:
        return labels
    settings = DenseSettings(cells=1)
    index = DenseEngine().build(vectors, Metric.COSINE, settings, seed=0, resources=resources, progress=progress)
    join = _Search(index, vectors, least, resources, progress)
    waiting = np.arange(vectors.n)
    while len(waiting):
        full = []
        for rows in _growing(waiting):
            large = np.bincount(labels, minlength=vectors.n)[labels[rows]] > LIKES
            for part, outside in ((rows[large], True), (rows[~large], False)):
                found = join.neighbors(part, labels if outside else None)
                places, slots = np.nonzero(found >= 0)
                labels = merge_groups(labels, part[places], found[places, slots])
                full.append(part[(found >= 0).all(axis=1)])
        waiting = np.sort(np.concatenate(full))
    return labels


def _growing(rows: IntArray) -> Iterator[IntArray]:
    """Blocks of rows, small ones first: what they link need not be listed for the others."""
    start, size = 0, FIRST_ROWS
    while start < len(rows):
        yield rows[start : start + size]
        start, size = start + size, min(BLOCK_ROWS, 2 * size)


@dataclass(frozen=True, slots=True)
class _Search:
    """Exact joins of vectors with themselves."""

    index: DenseIndex
    vectors: Vectors
    least: float
    resources: Resources
    progress: Progress

    def neighbors(self, rows: IntArray, labels: IntArray | None) -> IntArray:
        """(rows, LIKES) the best near-duplicates of these, -1 for none; with labels, those of other groups only."""
        if not len(rows) or (labels is not None and labels.max() == labels.min()):
            return np.full((len(rows), LIKES), -1, np.int64)
        found: Neighbors = self.index.join(
            self.vectors.take(rows),
            LIKES,
            effort=self.index.efforts(LIKES)[-1],
            exclude=rows,
            constraints=Constraints(None if labels is None else _outside(rows, labels), min_score=self.least),
            resources=self.resources,
            progress=self.progress,
        )
        return found.positions


def _outside(rows: IntArray, labels: IntArray) -> Eligibility:
    """The pairs of a row and an item of another group."""
    codes = labels.astype(np.int32)
    own, lowest, highest = codes[rows], np.zeros(len(rows), np.int32), np.full(len(rows), codes.max(), np.int32)
    below, above = Interval(codes, lowest, own - 1), Interval(codes, own + 1, highest)
    return Eligibility(len(rows), len(labels), (below, above), eligible.Any((0, 1)))


def _link_to_leaders(vectors: Vectors, least: float) -> IntArray:
    """(n,) labels after each vector was linked to the most similar of a few random ones."""
    n = vectors.n
    chosen = np.sort(np.random.default_rng(0).choice(n, min(n, LEADERS), replace=False))
    leaders = vectors.take(chosen)
    directions = _directions(leaders)
    one, other = np.triu_indices(len(chosen), 1)
    close = pair_scores(leaders[one], leaders[other], Metric.COSINE) >= as_score(least)
    lefts, rights = [chosen[one[close]]], [chosen[other[close]]]
    for start in range(0, n, BLOCK_ROWS):
        block = vectors.read(start, min(n, start + BLOCK_ROWS))
        nearest = np.argmax(_directions(block) @ directions.T, axis=1)
        alike = pair_scores(block, leaders[nearest], Metric.COSINE) >= as_score(least)
        lefts.append(start + np.flatnonzero(alike))
        rights.append(chosen[nearest[alike]])
    return merge_groups(np.arange(n), np.concatenate(lefts), np.concatenate(rights))


def _directions(vectors: AnyArray) -> npt.NDArray[np.float32]:
    lengths = norms(vectors)
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return (vectors * scale[:, None]).astype(np.float32)


def _numbered(labels: IntArray, copies: Copies, distinct: Vectors) -> Int32Array:
    """(m,) groups of the items, from the labels of their distinct vectors. Vectors of zeros are like nothing."""
    sizes = np.diff(copies.starts)
    linked = np.bincount(labels, weights=sizes, minlength=len(labels))[labels] > 1
    repeated = np.flatnonzero(sizes > 1)
    for start in range(0, len(repeated), BLOCK_ROWS):
        rows = repeated[start : start + BLOCK_ROWS]
        linked[rows] &= norms(distinct.take(rows)) > 0
    numbers = np.full(len(labels), -1, np.int32)
    numbers[linked] = np.unique(labels[linked], return_inverse=True)[1]
    groups = np.empty(len(copies.members), np.int32)
    groups[copies.members] = np.repeat(numbers, sizes)
    return groups


def merge_groups(labels: IntArray, lefts: IntArray, rights: IntArray) -> IntArray:
    """Return (n,) labels after the groups of each pair of nodes were joined: the smallest node of each group.

    Every label takes the smallest one that it is linked with, and then that one's label, until nothing changes: few
    rounds.
    """
    first, second = labels[lefts], labels[rights]
    pairs = np.unique(np.stack([first, second], axis=1)[first != second], axis=0)
    parents = np.arange(len(labels))
    while len(pairs):
        low, high = pairs.min(axis=1), pairs.max(axis=1)
        np.minimum.at(parents, high, low)
        while (parents[parents] != parents).any():
            parents = parents[parents]
        pairs = parents[pairs]
        pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    return parents[labels]
