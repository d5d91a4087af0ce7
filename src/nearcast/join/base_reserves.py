"""The reserves of the last run, for the queries that are still there: checked, and updated with the new items.

Without caps they stay mapped, and a native pass reads each of them once. Knows no tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nearcast.artifact_files import map_array
from nearcast.join.reserve_folders import concat_reserves, map_reserve_folder, read_reserve_folder
from nearcast.join.reserves import group_finder, open_shape
from nearcast.join.run_mode import COMPARE, read_base
from nearcast.join.run_tasks import open_prepared
from nearcast.join.task_context import TaskContext
from nearcast.kernels.renew_lists import allocate_lists, count_left, renew_lists
from nearcast.knn.reserve_lists import Reserve, are_enough, make_reserve, update_reserve, wrap_free
from nearcast.knn.update_lists import KnownLists
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Neighbors

__all__ = ["BaseRows", "find_base", "find_enough", "list_others", "read_bounds", "update_ranges"]

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BaseRows:
    """Queries whose last reserves are in one folder."""

    folder: Path
    part: slice  # of the queries
    rows: IntArray  # of the folder


def find_base(context: TaskContext, positions: IntArray) -> list[BaseRows]:
    """Return the folders with the reserves of queries, by their ascending positions in the last run."""
    base, found = read_base(context), []
    for number, (start, stop) in enumerate(base["splits"]):
        first, last = np.searchsorted(positions, (start, stop))
        if first < last:
            folder = context.run.artifacts.open(f"{base['name']}/{number:06d}")
            found.append(BaseRows(folder, slice(int(first), int(last)), positions[first:last] - start))
    return found


def find_enough(context: TaskContext, positions: IntArray) -> BoolArray:
    """Return whether the list of each query is proven complete, by its position in the last run.

    Raises DamagedError if a file differs from its hash.
    """
    shape, (now, _), enough = open_shape(context), _map_moves(context), np.zeros(len(positions), np.bool_)
    for found in find_base(context, positions):
        if shape.relaxed:
            reserve = read_reserve_folder(found.folder, found.rows, contents=True)
            left = np.append(now >= 0, False)[reserve.known.best.positions]
            enough[found.part] = are_enough(reserve, left, shape)
            continue
        known = map_reserve_folder(found.folder, contents=True).known
        counts = count_left(known.best.positions, found.rows, now, threads=context.run.resources.threads)
        enough[found.part] = (counts >= shape.k) | np.isneginf(known.bound_scores[found.rows])
    return enough


def read_bounds(context: TaskContext, base: Sequence[BaseRows]) -> tuple[FloatArray, IntArray]:
    """Read the bounds of reserves: scores, and edges among the items of this run."""
    _, edges = _map_moves(context)
    scores, moved = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for found in base:
        known = map_reserve_folder(found.folder).known
        scores.append(known.bound_scores[found.rows])
        moved.append(edges[known.bound_edges[found.rows]])
    return np.concatenate(scores), np.concatenate(moved)


def update_ranges(
    context: TaskContext, base: Sequence[BaseRows], fresh: Neighbors, rows: IntArray, joined: Neighbors
) -> Reserve:
    """Return the reserves of a range of queries: at `rows` updated ones, at the others those joined with all items.

    fresh: (len(rows), any) lists of the new and changed items. joined: (others, width).
    """
    shape, n = open_shape(context), len(rows) + len(joined.positions)
    others = list_others(n, rows)
    reserve = make_reserve(joined, shape, group_finder(context))
    if shape.relaxed:
        order = np.argsort(np.concatenate([rows, others]), kind="stable")
        return concat_reserves([_update_capped(context, base, fresh), reserve], order)
    target = allocate_lists(n, shape.width, open_prepared(context).inputs.items.vectors.n)
    _update_free(context, base, fresh, rows, target)
    target.best.positions[others], target.best.scores[others] = joined.positions, joined.scores
    target.bound_scores[others], target.bound_edges[others] = reserve.known.bound_scores, reserve.known.bound_edges
    return wrap_free(target)


def list_others(n: int, rows: IntArray) -> IntArray:
    """Return the numbers from 0 to n - 1 that are not in `rows`, ascending."""
    is_other = np.ones(n, np.bool_)
    is_other[rows] = False
    return np.flatnonzero(is_other)


def _map_moves(context: TaskContext) -> tuple[IntArray, IntArray]:
    """Map the new position of each old item, -1 for none, and the new edge of each old one."""
    compared = context.run.results.open(COMPARE) / "items"
    return map_array(compared / "now.npy"), map_array(compared / "edges.npy")


def _update_free(
    context: TaskContext, base: Sequence[BaseRows], fresh: Neighbors, rows: IntArray, target: KnownLists
) -> None:
    """Write updated reserves without caps to these rows of the target."""
    now, edges = _map_moves(context)
    for found in base:
        known, part = map_reserve_folder(found.folder).known, found.part
        moved = now, edges[known.bound_edges[found.rows]]
        of_part = Neighbors(fresh.positions[part], fresh.scores[part])
        renew_lists(known, found.rows, moved, of_part, target, rows[part], threads=context.run.resources.threads)


def _update_capped(context: TaskContext, base: Sequence[BaseRows], fresh: Neighbors) -> Reserve:
    """Return updated reserves under caps."""
    now, edges = _map_moves(context)
    shape, find_groups = open_shape(context), group_finder(context)
    parts = [read_reserve_folder(found.folder, found.rows) for found in base]
    if not parts:
        return make_reserve(Neighbors.empty(0, shape.width), shape, find_groups)
    reserve = concat_reserves(parts, slice(None))
    moved = np.append(now, EMPTY_POSITION)[reserve.known.best.positions], np.array(edges[reserve.known.bound_edges])
    updated, complete = update_reserve(reserve, moved, fresh, shape, find_groups)
    assert complete.all(), "a list that was enough became too short"
    return updated
