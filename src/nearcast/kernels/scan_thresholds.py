"""Find the pairs of many queries and few items that reach the query's threshold: the fast variant of `knn.find_pairs`.

A native join with the thresholds as minimum scores, for as many items per query as an update expects. Queries with
more, and those without a threshold, are scanned by the reference.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nearcast.kernels import isa as _isa
from nearcast.kernels.index import build_ruled_index
from nearcast.kernels.join import MAX_DIMENSIONS, CellIndex
from nearcast.knn.find_pairs import FoundPairs, find_pairs
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.types import AnyArray, ArrayVectors, FloatArray, Metric, Progress, Vectors, no_progress

__all__ = ["scan_thresholds"]

QUERY_ROWS = 1 << 14
SLOTS = 32  # items per query that the native join returns
LARGEST = np.finfo(np.float32).max


def scan_thresholds(
    queries: Vectors,
    items: AnyArray,
    thresholds: FloatArray,
    metric: Metric,
    resources: Resources,
    progress: Progress = no_progress,
) -> Iterator[FoundPairs]:
    """Yield what `find_pairs` does, in other blocks; the pairs of a query may have another order."""
    if _isa.isa_info().taken == _isa.NUMPY or items.shape[1] > MAX_DIMENSIONS or not len(items):
        yield from find_pairs(queries, items, thresholds, metric, resources, progress)
        return
    index = build_ruled_index(items, metric, None, threads=resources.threads)
    for start in range(0, queries.n, QUERY_ROWS):
        stop = min(queries.n, start + QUERY_ROWS)
        rows, columns, scores = _scan(index, queries.read(start, stop), thresholds[start:stop], resources)
        yield rows + start, columns, scores
        progress("join", stop, queries.n)


def _scan(index: CellIndex, vectors: AnyArray, thresholds: FloatArray, resources: Resources) -> FoundPairs:
    """Return the pairs of a block of queries."""
    metric, slots = Metric(index.metric), min(SLOTS, len(index.items))
    limits = np.where(np.isneginf(thresholds), LARGEST, np.minimum(thresholds, LARGEST)).astype(np.float32)
    found = index.join(vectors, JoinRequest(metric, slots, thresholds=limits), resources=resources)
    filled = found.positions >= 0
    others = np.isneginf(thresholds)
    if slots < len(index.items):
        others |= filled[:, -1]
    filled[others] = False
    rows, slot = np.nonzero(filled)
    pairs = rows, found.positions[rows, slot], found.scores[rows, slot]
    scanned = np.flatnonzero(others)
    if not len(scanned):
        return pairs
    parts = [pairs]
    some = ArrayVectors(np.ascontiguousarray(vectors[scanned]))
    for row, column, score in find_pairs(some, index.items, thresholds[scanned], metric, resources):
        parts.append((scanned[row], column, score))
    rows, columns, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(rows, kind="stable")
    return rows[order], columns[order], scores[order]
