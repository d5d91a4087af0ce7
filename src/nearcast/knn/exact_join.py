"""The exact kNN join in plain NumPy: the referee of every engine, for any size that fits on disk.

A float32 matrix product scores a block of queries against a block of items. It may be off by a little, so
it decides nothing: everything that a proven bound on its error cannot exclude is scored again by
`pair_scores`, and those scores decide, ties included. Knows nothing of ids or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from nearcast.knn.constraints import FREE, Cap, Constraints, keep_capped
from nearcast.knn.eligible import eligible_pairs
from nearcast.knn.scores import norms, pair_scores
from nearcast.knn.topk import from_pairs
from nearcast.types import AnyArray, FloatArray, IntArray, Metric, Neighbors, Progress, Vectors, as_score, no_progress

__all__ = ["Blocks", "blocks_for", "exact_join"]

QUERY_ROWS = 512  # with ITEM_ROWS, a 4 MB block of scores per thread: it stays near the core
ITEM_ROWS = 2_048
POOL_LISTS = 4  # the pool is cut when it holds this many lists' worth of pairs: rarely, and still small
PAIR_ROWS_BYTES = 32 << 20  # vectors gathered at a time when true scores are computed
FLOAT32_UNIT = 2.0**-24

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Blocks:
    """How large the blocks of one join are; derived from the memory budget, without effect on the answer."""

    query_rows: int
    item_rows: int
    bytes_per_thread: int


@dataclass(frozen=True, slots=True)
class _Scan:
    """One block of vectors made ready for the matrix product."""

    matrix: FloatArray  # (rows, dim) as the product wants it
    squares: FloatArray  # (rows,) squared Euclidean lengths of the matrix's rows
    lengths: FloatArray  # (rows,) their lengths, rounded up


def blocks_for(dim: int, k: int, memory_bytes: int, threads: int) -> Blocks:
    """Choose block sizes so that `threads` workers stay within `memory_bytes`."""
    query_rows, item_rows = QUERY_ROWS, ITEM_ROWS
    while True:
        # scores and their mask, both blocks as float32, one item block as it was read, survivors of a block
        size = query_rows * item_rows * 6 + (query_rows + item_rows) * dim * 8 + query_rows * k * POOL_LISTS * 64
        if size * threads <= memory_bytes or query_rows <= 16:
            return Blocks(query_rows, item_rows, size)
        query_rows //= 2
        item_rows = max(256, item_rows // 2)


def exact_join(
    queries: AnyArray,
    items: Vectors,
    k: int,
    metric: Metric,
    *,
    exclude: IntArray | None = None,
    constraints: Constraints = FREE,
    threads: int = 1,
    memory_bytes: int = 1 << 30,
    progress: Progress = no_progress,
) -> Neighbors:
    """Find the k best items of every query (n, dim) among all `items`.

    `exclude` (n,) names one item position per query that must not be returned, -1 for none. Lists are
    shorter than k when there are fewer items that they may hold. Costs n * items.n * dim multiplications.
    """
    n = queries.shape[0]
    best = Neighbors.empty(n, k)
    blocks = blocks_for(items.dim, k, memory_bytes, threads)
    if n == 0 or items.n == 0:
        return best
    jobs = [slice(start, min(n, start + blocks.query_rows)) for start in range(0, n, blocks.query_rows)]

    def one(job: slice) -> int:
        barred = None if exclude is None else exclude[job]
        found = _join_block(queries[job], items, k, metric, barred, constraints.of_queries(job), blocks.item_rows)
        best.positions[job], best.scores[job] = found.positions, found.scores
        return len(found.positions)

    # One BLAS thread per worker: our threads are the parallelism, and two pools would fight for the cores.
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(one, job) for job in jobs]
        try:
            done = 0
            for future in futures:
                done += future.result()
                progress("join", done, n)
        finally:
            for future in futures:
                future.cancel()
            wait(futures, return_when=FIRST_EXCEPTION)
    return best


def _join_block(
    queries: AnyArray,
    items: Vectors,
    k: int,
    metric: Metric,
    exclude: IntArray | None,
    constraints: Constraints,
    item_rows: int,
) -> Neighbors:
    left = _prepared(queries, metric)
    pool = _Pool.empty(len(queries), constraints)
    for start, block in _blocks(items, item_rows):
        right = _prepared(block, metric)
        error = _error_bound(left, right, metric)
        scan = _scan_scores(left, right, metric, _barred(exclude, start, block))
        if constraints.eligibility is not None:
            scan[~eligible_pairs(constraints.eligibility.of_items(slice(start, start + len(block))))] = -np.inf
        floor = pool.floor
        if not constraints.caps:  # k items of a block need not be k that obey the caps
            floor = np.maximum(floor, _block_floor(scan, k, floor) - error)
        # flat first: NumPy finds the few set flags of a flat array several times faster than in two dimensions
        rows, columns = np.divmod(np.flatnonzero(scan >= _rounded_down(floor - error)[:, None]), scan.shape[1])
        pool = pool.plus(rows, columns + start, scan[rows, columns], np.maximum(error, pool.error), floor)
        if len(pool.rows) > POOL_LISTS * k * len(queries):
            pool = _cut(pool, k)
            if len(pool.rows) > POOL_LISTS * k * len(queries) // 2:
                # so many within the error of each other (duplicates): let the true scores decide at once
                pool = _resolved(pool, queries, items, k, metric)
    return _final(_cut(pool, k), queries, items, k, metric)


@dataclass(frozen=True, slots=True)
class _Pool:
    """What may still be among the k best of a block of queries: flat, in no order."""

    rows: IntArray  # (m,) the query, counted within its block
    positions: IntArray  # (m,) the item
    scan: FloatArray  # (m,) its score by the matrix product
    error: Float64Array  # (n,) how far any score of the query's pairs can be from the true one
    floor: Float64Array  # (n,) what the true k-th best score reaches at least, as known so far
    caps: tuple[Cap, ...]
    min_score: float

    @classmethod
    def empty(cls, n: int, constraints: Constraints) -> _Pool:
        none = np.empty(0, np.int64)
        least = -np.inf if constraints.min_score is None else float(as_score(constraints.min_score))
        return cls(none, none, np.empty(0, np.float32), np.zeros(n), np.full(n, least), constraints.caps, least)

    def plus(
        self, rows: IntArray, positions: IntArray, scan: FloatArray, error: Float64Array, floor: Float64Array
    ) -> _Pool:
        legal = scan > -np.inf  # a barred pair
        return _Pool(
            np.concatenate([self.rows, rows[legal]]),
            np.concatenate([self.positions, positions[legal]]),
            np.concatenate([self.scan, scan[legal]]),
            error,
            floor,
            self.caps,
            self.min_score,
        )

    def with_pairs(self, rows: IntArray, positions: IntArray, scan: FloatArray, floor: Float64Array) -> _Pool:
        return replace(self, rows=rows, positions=positions, scan=scan, floor=floor)


def _cut(pool: _Pool, k: int) -> _Pool:
    """Raise each query's floor to what k pairs of the pool reach, and drop the pairs that cannot."""
    n = len(pool.floor)
    order = np.lexsort((-pool.scan, pool.rows))
    rows, positions, scan = pool.rows[order], pool.positions[order], pool.scan[order]
    counted = np.flatnonzero(keep_capped(rows, positions, pool.caps)) if pool.caps else np.arange(len(rows))
    kth = np.searchsorted(rows[counted], np.arange(n)) + k - 1
    full = np.searchsorted(rows[counted], np.arange(n), side="right") > kth
    floor = pool.floor.copy()
    floor[full] = np.maximum(floor[full], scan[counted[kth[full]]].astype(np.float64) - pool.error[full])
    kept = scan >= _rounded_down(floor - pool.error)[rows]
    return pool.with_pairs(rows[kept], positions[kept], scan[kept], floor)


def _resolved(pool: _Pool, queries: AnyArray, items: Vectors, k: int, metric: Metric) -> _Pool:
    """The pool cut to k pairs a query by their true scores, which then stand where the scan's stood."""
    best = _final(pool, queries, items, k, metric)
    rows, slots = np.nonzero(best.positions >= 0)
    return pool.with_pairs(rows, best.positions[rows, slots], best.scores[rows, slots], pool.floor)


def _final(pool: _Pool, queries: AnyArray, items: Vectors, k: int, metric: Metric) -> Neighbors:
    scores = np.empty(len(pool.rows), np.float32)
    step = max(1, PAIR_ROWS_BYTES // (8 * items.dim))
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        found = items.take(pool.positions[part])
        scores[part] = pair_scores(queries[pool.rows[part]], found, metric)
    rows, positions = pool.rows, pool.positions
    if pool.min_score > -np.inf:
        good = scores >= pool.min_score
        rows, positions, scores = rows[good], positions[good], scores[good]
    if pool.caps:
        order = np.lexsort((positions, -scores, rows))
        order = order[keep_capped(rows[order], positions[order], pool.caps)]
        rows, positions, scores = rows[order], positions[order], scores[order]
    return from_pairs(rows, positions, scores, n=len(queries), k=k)


def _blocks(items: Vectors, rows: int) -> Iterator[tuple[int, AnyArray]]:
    for start in range(0, items.n, rows):
        yield start, items.read(start, min(items.n, start + rows))


def _prepared(vectors: AnyArray, metric: Metric) -> _Scan:
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if metric is Metric.COSINE:
        lengths = norms(vectors)
        scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        matrix = (matrix * scale[:, None]).astype(np.float32)
    squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    return _Scan(matrix, squares.astype(np.float32), (np.sqrt(squares) * (1 + 1e-6)).astype(np.float32))


def _scan_scores(left: _Scan, right: _Scan, metric: Metric, barred: tuple[IntArray, IntArray] | None) -> FloatArray:
    scan = left.matrix @ right.matrix.T
    if metric is Metric.L2:
        scan *= 2
        scan -= right.squares[None, :]
        scan -= left.squares[:, None]
    if barred is not None:
        scan[barred] = -np.inf
    return scan


def _block_floor(scan: FloatArray, k: int, floor: Float64Array) -> Float64Array:
    """(n,) what k pairs of this block reach by their scan scores, for the queries that have no floor yet."""
    own = np.full(len(floor), -np.inf)
    new = np.isneginf(floor)
    if scan.shape[1] >= k and new.any():
        own[new] = np.partition(scan[new], -k, axis=1)[:, -k]
    return own


def _error_bound(left: _Scan, right: _Scan, metric: Metric) -> Float64Array:
    """(rows of left,) how far a scan score of this block can be from the score that we report.

    A float32 sum of d products, added in any order, is off by at most g * |q| * |x| with
    g = d * u / (1 - d * u), u = 2**-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
    section 3.1, with Cauchy-Schwarz). A few more units cover what is rounded before and after: the
    normalization under cosine (three roundings a component), the norms and the sums under L2, and the
    final rounding of the reported score. A factor of 2 is left on top.
    """
    dim = left.matrix.shape[1]
    units = (dim + 8) * FLOAT32_UNIT
    g = 2 * units / (1 - units)
    q: Float64Array = left.lengths.astype(np.float64)
    x = float(right.lengths.max(initial=0))
    scale = (q + x) ** 2 if metric is Metric.L2 else q * x
    bound: Float64Array = g * scale + 1e-37  # the constant covers what float32 flushes to zero
    return bound


def _rounded_down(thresholds: Float64Array) -> FloatArray:
    with np.errstate(over="ignore"):
        rounded = thresholds.astype(np.float32)
    return np.nextafter(rounded, np.float32(-np.inf))


def _barred(exclude: IntArray | None, start: int, block: AnyArray) -> tuple[IntArray, IntArray] | None:
    if exclude is None:
        return None
    rows = np.nonzero((exclude >= start) & (exclude < start + len(block)))[0]
    return (rows, exclude[rows] - start) if len(rows) else None
