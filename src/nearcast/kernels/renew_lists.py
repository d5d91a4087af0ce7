"""Update sorted lists after items came, left and moved: the native variant of `knn.update_lists`, in one pass.

Known lists may be mapped from files: only the chosen rows are read, and none is copied.
"""

from __future__ import annotations

import numpy as np

from nearcast.kernels import isa as _isa
from nearcast.knn.update_lists import KnownLists, move_lists, update_lists
from nearcast.types import EMPTY_POSITION, AnyArray, IntArray, Neighbors

__all__ = ["allocate_lists", "count_left", "renew_lists"]

LARGEST = np.iinfo(np.int32).max  # positions of the native lists


def allocate_lists(n: int, width: int, n_items: int) -> KnownLists:
    """Return n lists with any content, to be overwritten. Positions are int32 if all fit."""
    kind = np.int32 if n_items <= LARGEST else np.int64
    best = Neighbors(np.empty((n, width), kind), np.empty((n, width), np.float32))
    return KnownLists(best, np.empty(n, np.float32), np.empty(n, np.int64))


def renew_lists(
    known: KnownLists,
    chosen: IntArray,
    moved: tuple[IntArray, IntArray],
    fresh: Neighbors,
    target: KnownLists,
    rows: IntArray,
    *,
    threads: int = 1,
) -> None:
    """Update the lists at the rows `chosen`, and write them to `rows`, ascending, of the target.

    moved: the new position of each item of the lists, -1 if it was removed or changed; and (chosen,) the new edges of
    the bounds. fresh: of the chosen lists, as in `update_lists`.
    """
    now, edges = moved
    bounds = known.bound_scores[chosen]
    if not _is_native(known.best.positions, now, target.best.positions):
        lists = known.rows(chosen)
        positions = np.append(now, EMPTY_POSITION)[lists.best.positions]
        updated = update_lists(move_lists(lists, positions, edges), fresh, positions.shape[1])
        target.best.positions[rows], target.best.scores[rows] = updated.best.positions, updated.best.scores
        target.bound_scores[rows], target.bound_edges[rows] = updated.bound_scores, updated.bound_edges
        return
    _isa.native().renew_lists(
        _as(known.best.positions, np.int32),
        _as(known.best.scores, np.float32),
        _as(chosen, np.int64),
        _as(bounds, np.float32),
        _as(edges, np.int64),
        _as(now, np.int32),
        _as(fresh.positions, np.int32),
        _as(fresh.scores, np.float32),
        _as(rows, np.int64),
        target.best.positions,
        target.best.scores,
        target.bound_scores,
        target.bound_edges,
        threads,
    )


def count_left(positions: IntArray, chosen: IntArray, now: IntArray, *, threads: int = 1) -> IntArray:
    """Return (chosen,) how many items of the lists at these rows have a new position. now: as in `renew_lists`."""
    if not _is_native(positions, now, positions):
        return np.asarray(np.count_nonzero(np.append(now >= 0, False)[positions[chosen]], axis=1), np.int64)
    counts: IntArray = _isa.native().count_left(
        _as(positions, np.int32), _as(chosen, np.int64), _as(now, np.int32), threads
    )
    return counts


def _is_native(known: IntArray, now: IntArray, target: IntArray) -> bool:
    """Return whether the native lists hold these positions: all are int32."""
    fits = known.dtype == target.dtype == np.int32 and len(now) <= LARGEST
    return fits and _isa.isa_info().taken != _isa.NUMPY


def _as(array: AnyArray, dtype: type) -> AnyArray:
    return np.ascontiguousarray(array, dtype)
