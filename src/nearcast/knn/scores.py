"""Definition of the score of a query and an item, to the last bit.

All scores that nearcast returns are computed here, whatever an engine scans with. The order of additions depends on the
dimension alone. So two machines, two engines and two batch sizes give the same bytes, and equal vectors tie exactly.

Definition: components are widened to float64; component i goes to lane i mod 16; each lane adds up one
after the other; the 16 lanes are added as a tree (l and l + 8, then l and l + 4, ...); the sum is rounded
to float32 at the end, and a minus zero becomes zero.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearcast.types import AnyArray, FloatArray, IntArray, Metric, Neighbors, Vectors

__all__ = ["LANES", "norms", "pair_scores", "rescore", "top_scores"]

LANES = 16
PAIR_BYTES = 32 << 20  # float64 working set of one chunk of pairs; larger ones fall out of the cache

Float64Array = npt.NDArray[np.float64]


def pair_scores(
    queries: AnyArray, items: AnyArray, metric: Metric, query_norms: Float64Array | None = None
) -> FloatArray:
    """Return (m,) the scores of m pairs: row i of `queries` (m, dim) against row i of `items` (m, dim).

    query_norms: (m,) the `norms` of the queries, if they are known; cosine needs them.
    """
    m, dim = queries.shape
    scores = np.empty(m, np.float32)
    step = max(1, PAIR_BYTES // (3 * 8 * max(dim, LANES)))
    for start in range(0, m, step):
        part = slice(start, start + step)
        known = None if query_norms is None else query_norms[part]
        scores[part] = _score_chunk(queries[part], items[part], metric, known)
    scores += 0  # minus zero becomes zero, so that equal scores have equal bytes
    return scores


def norms(vectors: AnyArray) -> Float64Array:
    """Return (n,) Euclidean lengths, with the same order of additions as the scores."""
    return np.sqrt(_sum_lanes(vectors, vectors, differences=False))


def rescore(queries: AnyArray, items: Vectors, positions: IntArray, metric: Metric) -> Neighbors:
    """Score these (n, k) positions from the full vectors and sort each row, best first.

    Empty slots (-1) stay empty. Equal scores go to the smaller position.
    """
    n, k = positions.shape
    rows, columns = np.nonzero(positions >= 0)
    scores = np.full((n, k), -np.inf, np.float32)
    step = max(1, PAIR_BYTES // (8 * max(items.dim, LANES)))
    query_norms = norms(queries) if metric is Metric.COSINE else None
    for start in range(0, len(rows), step):
        r, c = rows[start : start + step], columns[start : start + step]
        known = None if query_norms is None else query_norms[r]
        scores[r, c] = pair_scores(queries[r], items.take(positions[r, c]), metric, known)
    return top_scores(positions, scores, k)


def top_scores(positions: IntArray, scores: FloatArray, k: int) -> Neighbors:
    """Sort slots (n, any), best first, and keep k of them. Equal scores go to the smaller position.

    Empty slots (-1, -inf) come last.
    """
    ranked = np.where(positions < 0, np.iinfo(np.int64).max, positions)
    order = np.lexsort((ranked, -scores))[:, :k]
    return Neighbors(np.take_along_axis(positions, order, 1), np.take_along_axis(scores, order, 1))


def _score_chunk(queries: AnyArray, items: AnyArray, metric: Metric, query_norms: Float64Array | None) -> FloatArray:
    if metric is Metric.L2:
        return (-_sum_lanes(queries, items, differences=True)).astype(np.float32)
    products = _sum_lanes(queries, items, differences=False)
    if metric is Metric.INNER_PRODUCT:
        return products.astype(np.float32)
    lengths = (norms(queries) if query_norms is None else query_norms) * norms(items)
    # A zero vector has no direction: its cosine is defined as 0.
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return cosines.astype(np.float32)


def _sum_lanes(left: AnyArray, right: AnyArray, *, differences: bool) -> Float64Array:
    """Return row sums of left * right, or of (left - right) ** 2, in the documented order."""
    m, dim = left.shape
    lanes = np.zeros((m, LANES))
    for start in range(0, dim, LANES):
        a = left[:, start : start + LANES].astype(np.float64)
        b = a if right is left else right[:, start : start + LANES].astype(np.float64)
        if differences:
            a -= b
            b = a
        lanes[:, : a.shape[1]] += a * b
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    sums: Float64Array = lanes[:, 0]
    return sums
