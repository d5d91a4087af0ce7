"""The exact kNN join in plain NumPy: the reference of every engine, for any size that fits on disk.

A float32 matrix product scores a block of queries against a block of items. Its error is bounded: every pair that the
bound cannot exclude is scored again by `pair_scores`. Those scores alone decide, ties included. Knows nothing of ids or
files.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from nearcast.knn.constraints import Cap, keep_capped
from nearcast.knn.eligible import eligible_pairs
from nearcast.knn.item_shards import ShardLists, merge_lists, place_lists, restrict_request
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.knn.scan_block import error_bound, prepare_block, round_down, scan_scores
from nearcast.knn.scores import pair_scores
from nearcast.knn.topk import gather_pairs
from nearcast.types import (
    AnyArray,
    FloatArray,
    IntArray,
    Neighbors,
    Progress,
    RangeOfVectors,
    Vectors,
    as_score,
    no_progress,
)

__all__ = ["Blocks", "choose_blocks", "exact_join", "join_ranges"]

QUERY_ROWS = 512  # with ITEM_ROWS, a 4 MB block of scores per thread: it stays near the core
ITEM_ROWS = 2_048
POOL_LISTS = 4  # the pool is cut when it holds this many lists' worth of pairs: rarely, and still small
BLOCKS_SHARE = 4  # blocks of all threads take so much of the memory, 1/n: other parts of a run take the rest
CAPPED_PAIR_BYTES = 64  # of a pair while the pool is cut: under caps all pairs of the first blocks may be in it
PAIR_ROWS_BYTES = 32 << 20  # vectors gathered at a time when true scores are computed
DEFAULT_RESOURCES = Resources()

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Blocks:
    """The block sizes of a join, derived from the memory budget. They do not change the answer."""

    query_rows: int
    item_rows: int
    bytes_per_thread: int


def choose_blocks(dim: int, k: int, resources: Resources, *, capped: bool = False) -> Blocks:
    """Choose block sizes so that the worker threads stay within a share of the memory. capped: lists have caps."""
    query_rows, item_rows = QUERY_ROWS, ITEM_ROWS
    while True:
        # scores and their mask, both blocks as float32, one item block in the type of the table, survivors of a block
        size = query_rows * item_rows * 6 + (query_rows + item_rows) * dim * 8 + query_rows * k * POOL_LISTS * 64
        size += query_rows * item_rows * CAPPED_PAIR_BYTES * capped
        if size * resources.threads <= resources.memory_bytes // BLOCKS_SHARE or query_rows <= 16:
            return Blocks(query_rows, item_rows, size)
        query_rows //= 2
        item_rows = max(256, item_rows // 2)


def exact_join(
    queries: AnyArray,
    items: Vectors,
    request: JoinRequest,
    resources: Resources = DEFAULT_RESOURCES,
    progress: Progress = no_progress,
) -> Neighbors:
    """Return the k best items of every query (n, dim) among all `items`.

    Lists are shorter than k if fewer items are allowed in them. Costs n * items.n * dim multiplications.
    """
    n = queries.shape[0]
    best = Neighbors.empty(n, request.k)
    blocks = choose_blocks(items.dim, request.k, resources, capped=bool(request.constraints.caps))
    if n == 0 or items.n == 0:
        return best
    jobs = [slice(start, min(n, start + blocks.query_rows)) for start in range(0, n, blocks.query_rows)]

    def join_job(job: slice) -> int:
        lists = _join_block(queries[job], items, request.of_queries(job), blocks.item_rows)
        best.positions[job], best.scores[job] = lists.positions, lists.scores
        return len(lists.positions)

    # One BLAS thread per worker: our threads are the parallelism, and two pools would fight for the cores.
    with threadpool_limits(1), ThreadPoolExecutor(resources.threads) as pool:
        futures = [pool.submit(join_job, job) for job in jobs]
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


def join_ranges(
    queries: AnyArray,
    items: Vectors,
    request: JoinRequest,
    resources: Resources = DEFAULT_RESOURCES,
    progress: Progress = no_progress,
) -> Neighbors:
    """Return what `exact_join` returns, for constraints that are compiled for a range of items at a time."""
    constraints = request.constraints
    ranges = list(constraints.ranges(items.n))
    if ranges == [(0, items.n)] or not ranges:
        return exact_join(queries, items, restrict_request(request, 0, items.n), resources, progress)

    def join_range(start: int, stop: int) -> ShardLists:
        own = restrict_request(request, start, stop)
        lists = exact_join(queries, RangeOfVectors(items, start, stop), own, resources, progress)
        return place_lists(lists, start, constraints)

    parts = (join_range(start, stop) for start, stop in ranges)
    return merge_lists(parts, request.k, constraints.max_per_group)


def _join_block(queries: AnyArray, items: Vectors, request: JoinRequest, item_rows: int) -> Neighbors:
    k, constraints = request.k, request.constraints
    left = prepare_block(queries, request.metric)
    pool = _PairPool.empty(len(queries), request)
    for start, block in _read_blocks(items, item_rows):
        right = prepare_block(block, request.metric)
        error = error_bound(left, right, request.metric)
        scan = scan_scores(left, right, request.metric, _excluded_pairs(request.exclude, start, block))
        if constraints.eligibility is not None:
            scan[~eligible_pairs(constraints.eligibility.of_items(slice(start, start + len(block))))] = -np.inf
        threshold = pool.threshold
        if not constraints.caps:  # k items of a block need not be k that satisfy the caps
            threshold = np.maximum(threshold, _block_threshold(scan, k, threshold) - error)
        # flat first: NumPy finds the few set flags of a flat array several times faster than in two dimensions
        rows, columns = np.divmod(np.flatnonzero(scan >= round_down(threshold - error)[:, None]), scan.shape[1])
        pool = pool.add(rows, columns + start, scan[rows, columns], np.maximum(error, pool.error), threshold)
        if len(pool.rows) > POOL_LISTS * k * len(queries):
            pool = _prune(pool, k)
            if len(pool.rows) > POOL_LISTS * k * len(queries) // 2:
                # so many within the error of each other (duplicates): let the true scores decide at once
                pool = _rescore_pool(pool, queries, items, request)
    return _rescore_and_flush(_prune(pool, k), queries, items, request)


@dataclass(frozen=True, slots=True)
class _PairPool:
    """The candidate pairs of a block of queries: flat, in no order."""

    rows: IntArray  # (m,) the query, counted within its block
    positions: IntArray  # (m,) the item
    scan: FloatArray  # (m,) its score by the matrix product
    error: Float64Array  # (n,) largest difference of a scan score from the true score
    threshold: Float64Array  # (n,) lower bound of the true k-th best score, from the blocks scanned so far
    caps: tuple[Cap, ...]
    least: FloatArray  # (n,) score that a pair needs

    @classmethod
    def empty(cls, n: int, request: JoinRequest) -> _PairPool:
        none, constraints = np.empty(0, np.int64), request.constraints
        least = np.full(n, -np.inf if constraints.min_score is None else as_score(constraints.min_score), np.float32)
        if request.thresholds is not None:
            least = np.maximum(least, request.thresholds.astype(np.float32))
        threshold = least.astype(np.float64)
        return cls(none, none, np.empty(0, np.float32), np.zeros(n), threshold, constraints.caps, least)

    def add(
        self, rows: IntArray, positions: IntArray, scan: FloatArray, error: Float64Array, threshold: Float64Array
    ) -> _PairPool:
        allowed = scan > -np.inf
        return _PairPool(
            np.concatenate([self.rows, rows[allowed]]),
            np.concatenate([self.positions, positions[allowed]]),
            np.concatenate([self.scan, scan[allowed]]),
            error,
            threshold,
            self.caps,
            self.least,
        )

    def with_pairs(self, rows: IntArray, positions: IntArray, scan: FloatArray, threshold: Float64Array) -> _PairPool:
        return replace(self, rows=rows, positions=positions, scan=scan, threshold=threshold)


def _prune(pool: _PairPool, k: int) -> _PairPool:
    """Raise each query's threshold to the score that k pairs of the pool reach, and drop the pairs below it."""
    n = len(pool.threshold)
    order = np.lexsort((-pool.scan, pool.rows))
    rows, positions, scan = pool.rows[order], pool.positions[order], pool.scan[order]
    counted = np.flatnonzero(keep_capped(rows, positions, pool.caps)) if pool.caps else np.arange(len(rows))
    kth = np.searchsorted(rows[counted], np.arange(n)) + k - 1
    full = np.searchsorted(rows[counted], np.arange(n), side="right") > kth
    threshold = pool.threshold.copy()
    threshold[full] = np.maximum(threshold[full], scan[counted[kth[full]]].astype(np.float64) - pool.error[full])
    kept = scan >= round_down(threshold - pool.error)[rows]
    return pool.with_pairs(rows[kept], positions[kept], scan[kept], threshold)


def _rescore_pool(pool: _PairPool, queries: AnyArray, items: Vectors, request: JoinRequest) -> _PairPool:
    """Return the pool with the k best pairs per query by true score; true scores replace the scan scores."""
    best = _rescore_and_flush(pool, queries, items, request)
    rows, slots = np.nonzero(best.positions >= 0)
    return pool.with_pairs(rows, best.positions[rows, slots], best.scores[rows, slots], pool.threshold)


def _rescore_and_flush(pool: _PairPool, queries: AnyArray, items: Vectors, request: JoinRequest) -> Neighbors:
    scores = np.empty(len(pool.rows), np.float32)
    step = max(1, PAIR_ROWS_BYTES // (8 * items.dim))
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        vectors = items.take(pool.positions[part])
        scores[part] = pair_scores(queries[pool.rows[part]], vectors, request.metric)
    rows, positions = pool.rows, pool.positions
    if (pool.least > -np.inf).any():
        good = scores >= pool.least[rows]
        rows, positions, scores = rows[good], positions[good], scores[good]
    if pool.caps:
        order = np.lexsort((positions, -scores, rows))
        order = order[keep_capped(rows[order], positions[order], pool.caps)]
        rows, positions, scores = rows[order], positions[order], scores[order]
    return gather_pairs(rows, positions, scores, n=len(queries), k=request.k)


def _read_blocks(items: Vectors, rows: int) -> Iterator[tuple[int, AnyArray]]:
    for start in range(0, items.n, rows):
        yield start, items.read(start, min(items.n, start + rows))


def _block_threshold(scan: FloatArray, k: int, threshold: Float64Array) -> Float64Array:
    """Return (n,) the scan score that k pairs of this block reach, for the queries without a threshold yet."""
    own = np.full(len(threshold), -np.inf)
    new = np.isneginf(threshold)
    if scan.shape[1] >= k and new.any():
        own[new] = np.partition(scan[new], -k, axis=1)[:, -k]
    return own


def _excluded_pairs(exclude: IntArray | None, start: int, block: AnyArray) -> tuple[IntArray, IntArray] | None:
    if exclude is None:
        return None
    rows = np.nonzero((exclude >= start) & (exclude < start + len(block)))[0]
    return (rows, exclude[rows] - start) if len(rows) else None
