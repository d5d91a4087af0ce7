"""True neighbors among the items that are left when some were removed. Arrays only; knows no stores and no overlays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nearcast.types import EMPTY_POSITION, IntArray, Neighbors

__all__ = ["truth_without"]


def truth_without(
    removed: npt.NDArray[np.bool_],
    rows: IntArray,
    depths: IntArray,
    ask: Callable[[IntArray, int], Neighbors],
) -> Neighbors:
    """Return the exact neighbors of queries among the items that are not removed, `depths[i]` of query i.

    removed: (items,) which items do not count. rows, depths: (n,) the queries, and how many neighbors each needs.
    ask(rows, width): exact neighbors among all items. Queries whose first `width` hold too many removed items are
    asked for twice as many, until enough are left or the items are exhausted.
    """
    most = int(depths.max(initial=1))
    positions = np.full((len(rows), most), EMPTY_POSITION, np.int64)
    scores = np.full((len(rows), most), -np.inf, np.float32)
    open_rows, width = np.arange(len(rows)), most
    while len(open_rows):
        found = ask(rows[open_rows], width)
        there = found.positions != EMPTY_POSITION
        keep = there & ~removed[np.where(there, found.positions, 0)]
        place = np.cumsum(keep, axis=1) - 1
        keep &= place < depths[open_rows][:, None]
        enough = (keep.sum(axis=1) >= depths[open_rows]) | (there.sum(axis=1) < width) | (width >= len(removed))
        row, column = np.nonzero(keep & enough[:, None])
        positions[open_rows[row], place[row, column]] = found.positions[row, column]
        scores[open_rows[row], place[row, column]] = found.scores[row, column]
        open_rows, width = open_rows[~enough], min(2 * width, len(removed))
    return Neighbors(positions, scores)
