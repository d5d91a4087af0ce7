"""Groups of near-duplicate items: the connected components of the pairs whose cosine is at least a threshold.

Exact joins of the distinct vectors with themselves find the pairs. A join lists LIST_LENGTH neighbors per item. If all
of them are near-duplicates there may be more: the next join searches the items of other groups only, until no list is
full. This is Boruvka's algorithm for connected components, with a join as the search for edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.engines import choose_engine
from nearcast.engines.base import Index, IndexSpec, JoinRequest, Resources
from nearcast.knn import eligible
from nearcast.knn.constraints import Constraints
from nearcast.knn.eligible import Eligibility, Interval
from nearcast.knn.identical_vectors import Copies, find_copies
from nearcast.knn.scores import norms, pair_scores
from nearcast.types import AnyArray, IntArray, Metric, PartOfVectors, Progress, Vectors, as_score

__all__ = ["group_near_duplicates", "merge_groups"]

LIST_LENGTH = 32  # neighbors that one join lists per item
LEADERS = 256  # random items that all others are compared with first: finds large groups without long lists
FIRST_ROWS, BLOCK_ROWS = 1 << 10, 1 << 15

Int32Array = npt.NDArray[np.int32]


def group_near_duplicates(items: Vectors, min_cosine: float, resources: Resources, progress: Progress) -> Int32Array:
    """Return (m,) the group of every item that has a near-duplicate, -1 for the others.

    Groups are numbered by their first items. Costs about an exact join of the distinct vectors with themselves.
    """
    copies = find_copies(items)
    distinct = PartOfVectors(items, copies.first) if len(copies.first) < items.n else items
    labels = _link(distinct, min_cosine, resources, progress)
    return _number_groups(labels, copies, distinct)


def _link(vectors: Vectors, min_cosine: float, resources: Resources, progress: Progress) -> IntArray:
    """Return (n,) a label per vector: the smallest position of its group."""
    labels = _link_to_leaders(vectors, min_cosine)
    if vectors.n < 2:
        return labels
    engine = choose_engine("dense")
    spec = IndexSpec(Metric.COSINE, engine.settings.model_validate({"cells": 1}))
    index = engine.build(vectors, spec, resources, progress=progress)
    join = _DuplicateJoin(index, vectors, min_cosine, resources, progress)
    waiting = np.arange(vectors.n)
    while len(waiting):
        full = []
        for rows in _growing_blocks(waiting):
            large = np.bincount(labels, minlength=vectors.n)[labels[rows]] > LIST_LENGTH
            for part, outside in ((rows[large], True), (rows[~large], False)):
                neighbors = join.find_neighbors(part, labels if outside else None)
                row, slot = np.nonzero(neighbors >= 0)
                labels = merge_groups(labels, part[row], neighbors[row, slot])
                full.append(part[(neighbors >= 0).all(axis=1)])
        waiting = np.sort(np.concatenate(full))
    return labels


def _growing_blocks(rows: IntArray) -> Iterator[IntArray]:
    """Yield blocks of rows, small ones first: pairs that they link need not be listed for the others."""
    start, size = 0, FIRST_ROWS
    while start < len(rows):
        yield rows[start : start + size]
        start, size = start + size, min(BLOCK_ROWS, 2 * size)


@dataclass(frozen=True, slots=True)
class _DuplicateJoin:
    """Exact joins of vectors with themselves."""

    index: Index
    vectors: Vectors
    min_cosine: float
    resources: Resources
    progress: Progress

    def find_neighbors(self, rows: IntArray, labels: IntArray | None) -> IntArray:
        """Return (rows, LIST_LENGTH) the best near-duplicates, -1 for none; with labels, of other groups only."""
        if not len(rows) or (labels is not None and labels.max() == labels.min()):
            return np.full((len(rows), LIST_LENGTH), -1, np.int64)
        other_groups = None if labels is None else _pairs_across_groups(rows, labels)
        constraints = Constraints(other_groups, min_score=self.min_cosine)
        request = JoinRequest(Metric.COSINE, LIST_LENGTH, exclude=rows, constraints=constraints)
        exact = self.index.operating_points(LIST_LENGTH)[-1]
        return self.index.join(self.vectors.take(rows), request, exact, self.resources, self.progress).positions


def _pairs_across_groups(rows: IntArray, labels: IntArray) -> Eligibility:
    """Return the pairs of a row and an item of another group."""
    codes = labels.astype(np.int32)
    own, lowest, highest = codes[rows], np.zeros(len(rows), np.int32), np.full(len(rows), codes.max(), np.int32)
    below, above = Interval(codes, lowest, own - 1), Interval(codes, own + 1, highest)
    return Eligibility(len(rows), len(labels), (below, above), eligible.AnyOf((0, 1)))


def _link_to_leaders(vectors: Vectors, min_cosine: float) -> IntArray:
    """Return (n,) labels after each vector was linked to the most similar of a few random ones."""
    n = vectors.n
    chosen = np.sort(np.random.default_rng(0).choice(n, min(n, LEADERS), replace=False))
    leaders = vectors.take(chosen)
    directions = _normalize(leaders)
    one, other = np.triu_indices(len(chosen), 1)
    close = pair_scores(leaders[one], leaders[other], Metric.COSINE) >= as_score(min_cosine)
    lefts, rights = [chosen[one[close]]], [chosen[other[close]]]
    for start in range(0, n, BLOCK_ROWS):
        block = vectors.read(start, min(n, start + BLOCK_ROWS))
        nearest = np.argmax(_normalize(block) @ directions.T, axis=1)
        close_ones = pair_scores(block, leaders[nearest], Metric.COSINE) >= as_score(min_cosine)
        lefts.append(start + np.flatnonzero(close_ones))
        rights.append(chosen[nearest[close_ones]])
    return merge_groups(np.arange(n), np.concatenate(lefts), np.concatenate(rights))


def _normalize(vectors: AnyArray) -> npt.NDArray[np.float32]:
    lengths = norms(vectors)
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return (vectors * scale[:, None]).astype(np.float32)


def _number_groups(labels: IntArray, copies: Copies, distinct: Vectors) -> Int32Array:
    """Return (m,) the groups of the items, from the labels of distinct vectors. A zero vector has no duplicate."""
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

    Every label takes the smallest label that it is linked with, then the label of that, until nothing changes: few
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
