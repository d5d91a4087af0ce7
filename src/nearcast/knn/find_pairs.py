"""Find the pairs of many queries and few items whose score reaches the query's threshold.

The join of an update: the items are new, and the threshold of a query is the last score of its list. Exact: pairs that
the matrix product cannot exclude are scored by `pair_scores`. Arrays only.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from nearcast.knn.join_request import Resources
from nearcast.knn.scan_block import error_bound, prepare_block, round_down, scan_scores
from nearcast.knn.scores import pair_scores
from nearcast.types import AnyArray, FloatArray, IntArray, Metric, Progress, Vectors, no_progress

__all__ = ["FoundPairs", "find_pairs"]

QUERY_ROWS, ITEM_ROWS = 1_024, 1_024  # a 4 MB block of scores per thread
BLOCKS_AHEAD = 4  # per thread

FoundPairs = tuple[IntArray, IntArray, FloatArray]
"""Row of the query, row of the item, and score of each pair, by query: (m,) each."""


def find_pairs(
    queries: Vectors,
    items: AnyArray,
    thresholds: FloatArray,
    metric: Metric,
    resources: Resources,
    progress: Progress = no_progress,
) -> Iterator[FoundPairs]:
    """Yield the pairs that score at least the query's threshold, by blocks of queries in order.

    items: (m, dim). thresholds: (queries.n,), -inf to find every pair. A caller that has seen too many pairs may stop.
    """
    blocks = [items[start : start + ITEM_ROWS] for start in range(0, len(items), ITEM_ROWS)]
    prepared = [prepare_block(block, metric) for block in blocks]

    def search(start: int) -> FoundPairs:
        stop = min(queries.n, start + QUERY_ROWS)
        vectors = queries.read(start, stop)
        left, wanted = prepare_block(vectors, metric), thresholds[start:stop].astype(np.float64)
        rows, columns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for number, right in enumerate(prepared):
            lowest = round_down(wanted - error_bound(left, right, metric))
            scan = scan_scores(left, right, metric, None)
            row, column = np.divmod(np.flatnonzero(scan >= lowest[:, None]), scan.shape[1])
            rows.append(row)
            columns.append(column + number * ITEM_ROWS)
        row, column = np.concatenate(rows), np.concatenate(columns)
        if len(prepared) > 1:
            order = np.argsort(row, kind="stable")
            row, column = row[order], column[order]
        scores = pair_scores(vectors[row], items[column], metric)
        reached = scores >= thresholds[start:stop][row]
        return row[reached] + start, column[reached], scores[reached]

    starts = list(range(0, queries.n, QUERY_ROWS)) if len(items) else []
    ahead = BLOCKS_AHEAD * resources.threads
    with threadpool_limits(1), ThreadPoolExecutor(resources.threads) as pool:
        for first in range(0, len(starts), ahead):
            yield from pool.map(search, starts[first : first + ahead])
            progress("join", min(queries.n, (first + ahead) * QUERY_ROWS), queries.n)
