"""Update sorted lists after items came, left and moved: the native variant of `knn.update_lists`, in one pass."""

from __future__ import annotations

import numpy as np

from nearcast.kernels import isa as _isa
from nearcast.knn.update_lists import KnownLists, move_lists, update_lists
from nearcast.types import EMPTY_POSITION, AnyArray, IntArray, Neighbors

__all__ = ["renew_lists"]

LARGEST = np.iinfo(np.int32).max  # positions of the native lists


def renew_lists(
    known: KnownLists, moved: tuple[IntArray, IntArray], fresh: Neighbors, rows: IntArray, n: int, *, threads: int = 1
) -> KnownLists:
    """Return n lists: those of `rows`, ascending, updated; the others are empty, with bound -inf.

    moved: the new position of each item of the lists, -1 if it was removed or changed; and (n_known,) the new edges of
    the bounds. fresh: as in `update_lists`. Positions are int32 where they fit.
    """
    now, edges = moved
    if _isa.isa_info().taken == _isa.NUMPY or max(len(now), int(fresh.positions.max(initial=0))) > LARGEST:
        slots = known.best.positions
        positions = np.append(now, EMPTY_POSITION)[slots]
        updated = update_lists(move_lists(known, positions, edges), fresh, slots.shape[1])
        return _place_rows(updated, rows, n)
    positions, scores, bounds, new_edges = _isa.native().renew_lists(
        _as(known.best.positions, np.int32),
        _as(known.best.scores, np.float32),
        _as(known.bound_scores, np.float32),
        _as(edges, np.int64),
        _as(now, np.int32),
        _as(fresh.positions, np.int32),
        _as(fresh.scores, np.float32),
        _as(rows, np.int64),
        n,
        threads,
    )
    return KnownLists(Neighbors(positions, scores), bounds, new_edges)


def _as(array: AnyArray, dtype: type) -> AnyArray:
    return np.ascontiguousarray(array, dtype)


def _place_rows(known: KnownLists, rows: IntArray, n: int) -> KnownLists:
    """Return n lists, those of `known` at the given rows."""
    best = Neighbors.empty(n, known.best.positions.shape[1])
    placed = KnownLists(best, np.full(n, -np.inf, np.float32), np.zeros(n, np.int64))
    best.positions[rows], best.scores[rows] = known.best.positions, known.best.scores
    placed.bound_scores[rows], placed.bound_edges[rows] = known.bound_scores, known.bound_edges
    return placed
