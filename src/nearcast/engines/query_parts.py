"""A join of many queries, some of them at a time: an engine holds the codes of all queries of a call in memory."""

from __future__ import annotations

from nearcast.engines.base import Index, JoinRequest, Resources, SearchParams
from nearcast.types import AnyArray, Neighbors, Progress, no_progress

__all__ = ["join_in_parts"]

QUERIES_SHARE = 4  # queries of a part take so much of the memory, 1/n
COMPONENT_BYTES = 4  # of a query's codes and their copies
BATCH_ROWS = 4_096  # a part is whole batches, since faiss rounds a little differently for batches of other sizes


def join_in_parts(
    index: Index,
    queries: AnyArray,  # (n, dim)
    request: JoinRequest,  # for these queries
    params: SearchParams,
    resources: Resources,
    progress: Progress = no_progress,
) -> Neighbors:
    """Return the lists of `index.join`, with the queries in parts that fit the memory."""
    n = len(queries)
    fitting = resources.memory_bytes // QUERIES_SHARE // (COMPONENT_BYTES * queries.shape[1])
    rows = max(1, fitting // BATCH_ROWS) * BATCH_ROWS
    if n <= rows:
        return index.join(queries, request, params, resources, progress)
    best, start = Neighbors.empty(n, request.k), 0

    def report(stage: str, done: int, _total: int) -> None:
        progress(stage, start + done, n)

    while start < n:
        part = slice(start, min(n, start + rows))
        lists = index.join(queries[part], request.of_queries(part), params, resources, report)
        best.positions[part], best.scores[part] = lists.positions, lists.scores
        start = part.stop
    return best
