"""Exact joins of an incremental run: unchanged queries with the new and changed items, and few queries with all items.

Both need no index of cells. The engine's own exact join is used where it has one, else the NumPy join.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nearcast.engines import choose_engine
from nearcast.engines.base import Index, IndexSpec, Workload
from nearcast.join.calibrate import sample_workload
from nearcast.join.prepare_inputs import PreparedInputs
from nearcast.join.reserves import group_finder, open_request, open_shape, widen_request
from nearcast.join.run_mode import COMPARE, read_base
from nearcast.join.run_tasks import open_prepared
from nearcast.join.shard_plan import open_shard_vectors
from nearcast.join.task_context import TaskContext
from nearcast.knn.constraints import Constraints
from nearcast.knn.item_shards import ShardLists, merge_lists
from nearcast.knn.join_request import JoinRequest
from nearcast.knn.reserve_lists import Reserve
from nearcast.measure.sampled_recall import find_own_items
from nearcast.sources.ids import find_sorted_numbers
from nearcast.types import EMPTY_POSITION, AnyArray, ArrayVectors, IntArray, Neighbors, Vectors

__all__ = ["find_own", "join_fresh", "merge_reserves", "open_exact_index"]

OPEN_ITEMS, OPEN_FRESH = "open items", "open fresh items"  # kept by a worker
BLOCK_SHARE = 8  # of the memory: vectors of new items in one index, with its copies
BLOCK_ROWS = 1 << 20  # positions read at a time
MORE = 4  # slots beyond those that new items are expected to take, and standard deviations of their number


def find_own(prepared: PreparedInputs, request: JoinRequest, queries: IntArray) -> IntArray | None:
    """Return the position of each query's own item, -1 for none; None if the request excludes none."""
    return find_own_items(prepared.inputs, queries) if request.exclude_self else None


def open_exact_index(context: TaskContext, start: int, stop: int) -> Index:
    """Return an index of the items start..stop-1 for exact joins. The last one stays open for the next task."""
    key = (start, stop)
    if context.kept.get(OPEN_ITEMS, (key,))[0] != key:
        context.drop(OPEN_ITEMS)

    def build() -> tuple[tuple[int, int], Index]:
        items = open_prepared(context).inputs.items
        whole = (start, stop) == (0, items.vectors.n)
        vectors = items.vectors if whole else open_shard_vectors(context.run.artifacts, items, start, stop)
        return key, _build_exact(context, vectors)

    return context.keep(OPEN_ITEMS, build)[1]


def join_fresh(context: TaskContext, before: IntArray, queries: IntArray, reserve: Reserve) -> Neighbors:
    """Return (n, width) the lists of the new and changed items for these queries, under the relaxed limits.

    before: (items,) old position of each item, -1 for a new or changed one. reserve: of these queries. The lists are
    first joined shorter: few new items score above a bound. Those that are not proven long enough are joined again.
    """
    shape = open_shape(context)
    items = context.read_facts(COMPARE)["changes"]["items"]
    n_fresh = int(items["new"] + items["changed"])
    if n_fresh == 0 or len(queries) == 0:
        return Neighbors.empty(len(queries), shape.width)
    expected = shape.width * n_fresh / len(before)
    width = min(shape.width, int(expected + MORE * np.sqrt(expected)) + MORE)
    lists = _join_blocks(context, before, queries, width)
    if width == shape.width:
        return lists
    wide = Neighbors.empty(len(queries), shape.width)
    wide.positions[:, :width], wide.scores[:, :width] = lists.positions, lists.scores
    last, score = lists.positions[:, -1], lists.scores[:, -1]
    bound, edge = reserve.known.bound_scores, reserve.known.bound_edges
    is_long = (last == EMPTY_POSITION) | (score < bound) | ((score == bound) & (last >= edge))
    again = np.flatnonzero(~is_long)
    if len(again):
        longer = _join_blocks(context, before, queries[again], shape.width)
        wide.positions[again], wide.scores[again] = longer.positions, longer.scores
    return wide


def _join_blocks(context: TaskContext, before: IntArray, queries: IntArray, width: int) -> Neighbors:
    """Join queries with the new items, as many at a time as fit the memory, and merge the lists."""
    prepared, shape = open_prepared(context), open_shape(context)
    request = replace(widen_request(open_request(context), shape), k=width).of_queries(queries)
    request = replace(request, exclude=find_own(prepared, request, queries))
    vectors = prepared.inputs.queries.vectors.take(queries)
    blocks = context.keep("fresh blocks", lambda: _cut_fresh(context, before))
    found = [_join_block(context, number, block, vectors, request) for number, block in enumerate(blocks)]
    return merge_reserves(context, found)


def merge_reserves(context: TaskContext, lists: Sequence[Neighbors]) -> Neighbors:
    """Merge lists of one width, at least one, that were joined with disjoint parts of the items."""
    if len(lists) == 1:
        return lists[0]
    shape, width = open_shape(context), lists[0].positions.shape[1]
    groups: tuple[IntArray, ...] = ()
    if shape.relaxed:
        groups = group_finder(context)(np.concatenate([each.positions for each in lists], axis=1))
    parts = (
        ShardLists(each, tuple(of_cap[:, n * width : (n + 1) * width] for of_cap in groups))
        for n, each in enumerate(lists)
    )
    return merge_lists(parts, width, shape.relaxed)


def _cut_fresh(context: TaskContext, before: IntArray) -> list[IntArray]:
    """Return the positions of the new items, in blocks that fit the memory, each in one range of the constraints."""
    prepared = open_prepared(context)
    items = prepared.inputs.items.vectors
    rows = max(1, context.run.resources.memory_bytes // BLOCK_SHARE // (items.dim * 8))
    blocks = []
    for start, stop in open_request(context).constraints.ranges(items.n):
        parts = [
            np.flatnonzero(before[first : min(stop, first + BLOCK_ROWS)] == EMPTY_POSITION) + first
            for first in range(start, stop, BLOCK_ROWS)
        ]
        fresh = np.concatenate(parts)
        blocks += [fresh[at : at + rows] for at in range(0, len(fresh), rows)]
    return blocks


def _join_block(
    context: TaskContext, number: int, block: IntArray, vectors: AnyArray, request: JoinRequest
) -> Neighbors:
    """Join queries with the items of a block; return positions among all items."""
    items = open_prepared(context).inputs.items.vectors
    if context.kept.get(OPEN_FRESH, (number,))[0] != number:
        context.drop(OPEN_FRESH)
    _, index = context.keep(
        OPEN_FRESH, lambda: (number, _build_fresh(context, ArrayVectors(items.take(block)), request))
    )
    exclude = None if request.exclude is None else find_sorted_numbers(request.exclude, block)
    own = replace(request, exclude=exclude, constraints=_choose_items(request.constraints, block, items.n))
    points, params = index.operating_points(request.k), read_base(context)["params"]
    lists = index.join(vectors, own, params if params in points else points[-1], context.run.resources)
    filled = lists.positions != EMPTY_POSITION
    placed = np.where(filled, block[np.where(filled, lists.positions, 0)], EMPTY_POSITION)
    return Neighbors(placed, lists.scores)


def _choose_items(constraints: Constraints, block: IntArray, n_items: int) -> Constraints:
    """Return the constraints on lists of the items of a block."""
    if constraints.free:
        return constraints
    start, stop = next((lo, hi) for lo, hi in constraints.ranges(n_items) if lo <= block[0] < hi)
    return constraints.of_items(start, stop).choose_items(block - start)


def _build_fresh(context: TaskContext, items: Vectors, request: JoinRequest) -> Index:
    """Return an index of new items: with cells where the last join was pruned, and cells are cheaper for these items.

    A list of new items is as long as their share of a reserve, so that its threshold is about that of the reserve, and
    the probe radius of the last join finds about the same share of the best.
    """
    run, queries = context.run, open_prepared(context).inputs.queries.vectors
    if read_base(context)["is_exact"] or not run.engine.exact or not request.constraints.free:
        return _build_exact(context, items)
    rows = sample_workload(queries.n, run.spec.seed)
    workload = Workload(replace(request, exclude=None), queries.n, queries.take(rows))
    spec = IndexSpec(open_prepared(context).inputs.metric, run.settings, run.spec.seed)
    return run.engine.build(items, spec, run.resources, workload=workload)


def _build_exact(context: TaskContext, items: Vectors) -> Index:
    """Return an index with one block of all items."""
    run = context.run
    engine = run.engine if run.engine.exact else choose_engine("exact")
    spec = IndexSpec(open_prepared(context).inputs.metric, engine.settings(), run.spec.seed)
    return engine.build(items, spec, run.resources)
