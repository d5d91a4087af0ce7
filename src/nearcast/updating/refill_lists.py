"""Fill lists up that have lost items, from the reserves of the snapshot and the items that updates have added since.

A reserve knows every item of the snapshot above its bound. Without the items that are gone or changed, and with the
added ones that score above the bound, it has the list that a full join finds, if it is still long enough.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from nearcast.knn.exact_join import exact_join
from nearcast.knn.reserve_lists import Reserve, cut_reserve, update_reserve
from nearcast.types import EMPTY_POSITION, IntArray, Neighbors
from nearcast.updating.snapshot_reserves import SnapshotReserves
from nearcast.updating.updated_tables import UpdatedTables

__all__ = ["refill_lists"]

LISTS_AT_ONCE = 1 << 13
JOINED_PAIRS = 1_000_000_000  # of a list and an added item, per update


def refill_lists(tables: UpdatedTables, reserves: SnapshotReserves, rows: IntArray) -> tuple[IntArray, Neighbors]:
    """Return the numbers in `rows` of the lists that reserves prove complete, and these lists.

    rows: ascending positions of queries. Raises DamagedError.
    """
    queries, items = tables.queries, tables.items
    added = np.flatnonzero(items.source >= items.base.vectors.n)
    numbers = np.flatnonzero(queries.source[rows] < queries.base.vectors.n)  # others were added or changed
    numbers = numbers[: JOINED_PAIRS // max(1, len(added))]
    now = np.full(items.base.vectors.n + 1, EMPTY_POSITION, np.int64)  # the last one is for empty slots
    stays = np.flatnonzero(items.source < items.base.vectors.n)
    now[items.source[stays]] = stays
    find_groups = tables.compile_caps().find_groups if reserves.shape.relaxed else _find_no_groups
    done, lists = [np.empty(0, np.int64)], [Neighbors.empty(0, tables.state.spec.k)]
    for start in range(0, len(numbers), LISTS_AT_ONCE):
        part = numbers[start : start + LISTS_AT_ONCE]
        reserve = reserves.read(queries.source[rows[part]])
        fresh = _join_added(tables, reserves, reserve, rows[part], added)
        moved = now[reserve.known.best.positions], _move_edges(tables, reserve.known.bound_edges)
        updated, complete = update_reserve(reserve, moved, fresh, reserves.shape, find_groups)
        found = cut_reserve(updated.rows(complete), reserves.shape)
        done.append(part[complete])
        lists.append(found)
    return np.concatenate(done), Neighbors(
        np.concatenate([part.positions for part in lists]), np.concatenate([part.scores for part in lists])
    )


def _find_no_groups(_positions: IntArray) -> tuple[IntArray, ...]:
    return ()


def _join_added(
    tables: UpdatedTables, reserves: SnapshotReserves, reserve: Reserve, rows: IntArray, added: IntArray
) -> Neighbors:
    """Return the exact lists of the added items for these queries, above the bounds, as wide as the reserves."""
    shape = reserves.shape
    if not len(added):
        return Neighbors.empty(len(rows), shape.width)
    request, inputs = tables.request(rows, added)
    if shape.relaxed:
        request = replace(request, constraints=request.constraints.with_limits(shape.relaxed))
    request = replace(request, k=shape.width, thresholds=reserve.known.bound_scores)
    found = exact_join(tables.queries.vectors.take(rows), inputs.items.vectors, request, tables.resources)
    positions = np.where(found.positions == EMPTY_POSITION, EMPTY_POSITION, added[found.positions])
    return Neighbors(positions, found.scores)


def _move_edges(tables: UpdatedTables, edges: IntArray) -> IntArray:
    """Return the edges of bounds among the current items: unknown items of the snapshot are not before them."""
    distinct, back = np.unique(edges, return_inverse=True)
    moved = np.zeros(len(distinct), np.int64)
    after = distinct > 0
    moved[after] = tables.items.count_to(tables.items.base_ids.take(pa.array(distinct[after] - 1)))
    return moved[back]
