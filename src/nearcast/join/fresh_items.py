"""Joins of an incremental run: unchanged queries with the new and changed items, and few queries with all items.

Few queries are joined with the index of the last full join, which has most items, and with the other items. Where
there is none, they are joined exactly: by the engine where it has an exact join, else by the NumPy join.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nearcast.engines import choose_engine
from nearcast.engines.base import Index, IndexSpec, Workload
from nearcast.join.calibrate import sample_workload
from nearcast.join.earlier_index import open_earlier_index
from nearcast.join.prepare_inputs import PreparedInputs
from nearcast.join.reserves import group_finder, open_request, open_shape, widen_request
from nearcast.join.run_mode import COMPARE, read_base
from nearcast.join.run_tasks import open_prepared
from nearcast.join.shard_plan import open_shard_vectors
from nearcast.join.task_context import TaskContext
from nearcast.knn.constraints import Constraints
from nearcast.knn.item_shards import ShardLists, merge_lists, move_positions, restrict_request
from nearcast.knn.join_request import JoinRequest
from nearcast.measure.sampled_recall import find_own_items
from nearcast.sources.ids import find_sorted_numbers
from nearcast.types import EMPTY_POSITION, AnyArray, ArrayVectors, FloatArray, IntArray, Neighbors, Vectors

__all__ = ["find_own", "join_all", "join_fresh", "merge_reserves"]

OPEN_ITEMS, OPEN_FRESH, EARLIER = "open items", "open fresh items", "earlier index"  # kept by a worker
FRESH, OTHERS = "fresh items", "items beside the index"  # sets of items
BLOCK_SHARE = 8  # of the memory: vectors of new items in one index, with its copies
DENSE_READ = 1.5  # rows that are read for each one that is used, at most
MORE = 4  # slots beyond those that new items are expected to take, and standard deviations of their number


def find_own(prepared: PreparedInputs, request: JoinRequest, queries: IntArray) -> IntArray | None:
    """Return the position of each query's own item, -1 for none; None if the request excludes none."""
    return find_own_items(prepared.inputs, queries) if request.exclude_self else None


def join_all(context: TaskContext, queries: IntArray, start: int, stop: int) -> Neighbors:
    """Return (n, width) the lists of these queries among the items start..stop-1, under the relaxed limits."""
    earlier = context.keep(EARLIER, lambda: open_earlier_index(context))
    request, vectors = _make_request(context, queries), open_prepared(context).inputs.queries.vectors.take(queries)
    if earlier is None:
        index = _open_exact_index(context, start, stop)
        own, exact = restrict_request(request, start, stop), index.operating_points(request.k)[-1]
        return move_positions(index.join(vectors, own, exact, context.run.resources), start)
    index, others = earlier
    points, params = index.operating_points(request.k), read_base(context)["params"]
    lists = index.join(vectors, request, params if params in points else points[-1], context.run.resources)
    if len(others) == 0:
        return lists
    name = OTHERS if read_base(context)["index"]["moved"] else FRESH  # an index of the last run lacks the new items
    request = replace(request, thresholds=lists.scores[:, -1])
    return merge_reserves(context, [lists, *_join_blocks(context, others, name, vectors, request)])


def _open_exact_index(context: TaskContext, start: int, stop: int) -> Index:
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


def join_fresh(
    context: TaskContext, before: IntArray, queries: IntArray, bounds: tuple[FloatArray, IntArray]
) -> Neighbors:
    """Return (n, any) the lists of the new and changed items for these queries, under the relaxed limits.

    before: (items,) old position of each item, -1 for a new or changed one. bounds: (n,) scores and edges of the
    reserves, among the items of this run; items below them are left out. The lists are first joined short: few new
    items score above a bound. Those that may go on are joined again, as long as a reserve.
    """
    shape = open_shape(context)
    items = context.read_facts(COMPARE)["changes"]["items"]
    n_fresh = int(items["new"] + items["changed"])
    if n_fresh == 0 or len(queries) == 0:
        return Neighbors.empty(len(queries), 1)
    fresh = context.keep("fresh items", lambda: np.flatnonzero(np.asarray(before) == EMPTY_POSITION))
    expected = shape.width * n_fresh / len(before)
    width = min(shape.width, int(expected + MORE * np.sqrt(expected)) + MORE)

    def join(rows: IntArray | slice, k: int) -> Neighbors:
        request = replace(_make_request(context, queries[rows]), k=k, thresholds=bounds[0][rows])
        vectors = _read_vectors(open_prepared(context).inputs.queries.vectors, queries[rows])
        return merge_reserves(context, _join_blocks(context, fresh, FRESH, vectors, request))

    lists = join(slice(None), width)
    last, score, (bound, edge) = lists.positions[:, -1], lists.scores[:, -1], bounds
    is_long = (last == EMPTY_POSITION) | (score < bound) | ((score == bound) & (last >= edge))
    again = np.flatnonzero(~is_long)
    if len(again) == 0 or width == shape.width:
        return lists
    longer = join(again, shape.width)
    wide = Neighbors.empty(len(queries), max(width, int(longer.lengths.max())))
    wide.positions[:, :width], wide.scores[:, :width] = lists.positions, lists.scores
    for mine, theirs in ((wide.positions, longer.positions), (wide.scores, longer.scores)):
        mine[again] = theirs[:, : mine.shape[1]]
    return wide


def _read_vectors(vectors: Vectors, positions: IntArray) -> AnyArray:
    """Return the vectors at ascending positions. Nearly all of a range are read in a row."""
    first, last = int(positions[0]), int(positions[-1]) + 1
    if last - first > DENSE_READ * len(positions):
        return vectors.take(positions)
    block = vectors.read(first, last)
    return block if len(block) == len(positions) else block[positions - first]


def _make_request(context: TaskContext, queries: IntArray) -> JoinRequest:
    """Return the request for the reserves of these queries among all items."""
    request = widen_request(open_request(context), open_shape(context)).of_queries(queries)
    return replace(request, exclude=find_own(open_prepared(context), request, queries))


def _join_blocks(
    context: TaskContext, items: IntArray, name: str, vectors: AnyArray, request: JoinRequest
) -> list[Neighbors]:
    """Join queries with the items at these positions, as many at a time as fit the memory: a list per block of items.

    name: of the set of items.
    """
    blocks = context.keep(f"blocks of {name}", lambda: _cut_blocks(context, items))
    return [_join_block(context, f"{name} {n}", block, vectors, request) for n, block in enumerate(blocks)]


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


def _cut_blocks(context: TaskContext, chosen: IntArray) -> list[IntArray]:
    """Return ascending positions of items in blocks that fit the memory, each in one range of the constraints."""
    items = open_prepared(context).inputs.items.vectors
    rows = max(1, context.run.resources.memory_bytes // BLOCK_SHARE // (items.dim * 8))
    blocks = []
    for bounds in open_request(context).constraints.ranges(items.n):
        here = chosen[slice(*np.searchsorted(chosen, bounds))]
        blocks += [here[at : at + rows] for at in range(0, len(here), rows)]
    return blocks


def _join_block(context: TaskContext, name: str, block: IntArray, vectors: AnyArray, request: JoinRequest) -> Neighbors:
    """Join queries with the items of a block; return positions among all items."""
    items = open_prepared(context).inputs.items.vectors
    if context.kept.get(OPEN_FRESH, (name,))[0] != name:
        context.drop(OPEN_FRESH)
    _, index = context.keep(OPEN_FRESH, lambda: (name, _build_fresh(context, ArrayVectors(items.take(block)), request)))
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
