"""The rows that two ingestions of a table have in common: the same id, vector and attributes, bit for bit.

Both tables are in id order and are read a block at a time, ranges or not. Their values are compared, not hashes: the
artifacts of the last snapshot are there until the next one is finished. Knows nothing of joins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.kernels.match_rows import find_equal_rows
from nearcast.sources.attribute_rows import read_attribute_range
from nearcast.sources.changes import align_blocks, slice_ids
from nearcast.sources.ids import find_ascending
from nearcast.sources.ingest import IngestedTable
from nearcast.types import EMPTY_POSITION, IntArray

__all__ = ["RowChanges", "match_rows"]

BoolArray = npt.NDArray[np.bool_]
VECTOR_ROWS = 1 << 14  # compared at a time: they stay in the processor's cache


@dataclass(frozen=True, slots=True)
class RowChanges:
    """How many rows of a table are new, gone, and changed: the same id with another vector or attribute."""

    rows: int  # of the new table
    new: int
    gone: int
    changed: int

    @property
    def fresh(self) -> int:
        """Rows that the old table did not have so."""
        return self.new + self.changed


def match_rows(old: IngestedTable, new: IngestedTable, columns: Sequence[str], folder: Path) -> RowChanges:
    """Find the rows that are the same in both tables; write their positions into `folder`.

    before.npy: (new n,) old position of each row, -1 for a new or changed one. now.npy: (old n,) the reverse.
    edges.npy: (old n + 1,) a new position that all unchanged rows from this old position on have at least.
    columns: attributes that both tables have, with equal types.
    """
    n_old, n_new = old.vectors.n, new.vectors.n
    before, now, edges = (
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.int64, (size,))
        for name, size in (("before", n_new), ("now", n_old), ("edges", n_old + 1))
    )
    known = same = edge = 0
    for (lo, hi), (start, stop) in align_blocks(old.ids, new.ids):
        matches = find_ascending(slice_ids(new.ids, start, stop), slice_ids(old.ids, lo, hi))
        rows = np.flatnonzero(matches >= 0)
        is_same = _have_equal_vectors(old, new, np.where(matches >= 0, matches + lo, EMPTY_POSITION), start)[rows]
        if columns:
            parts = read_attribute_range(old, columns, lo, hi), read_attribute_range(new, columns, start, stop)
            for name in columns:
                is_same &= _are_equal(parts[0].column(name), parts[1].column(name), matches[rows], rows)
        matches[rows[~is_same]] = EMPTY_POSITION
        kept = rows[is_same]
        before[start:stop] = np.where(matches >= 0, matches + lo, EMPTY_POSITION)
        here = np.full(hi - lo, EMPTY_POSITION, np.int64)
        here[matches[kept]] = kept + start
        now[lo:hi] = here
        edges[lo:hi] = np.maximum.accumulate(np.append(edge, here[:-1] + 1))[: hi - lo]
        edge = max(edge, int(here.max(initial=EMPTY_POSITION)) + 1)
        known, same = known + len(rows), same + len(kept)
    edges[n_old] = edge
    return RowChanges(n_new, n_new - known, n_old - known, known - same)


def _have_equal_vectors(old: IngestedTable, new: IngestedTable, matches: IntArray, start: int) -> BoolArray:
    """Return (len(matches),) whether the vectors from `start` on are those of their old positions, bit for bit.

    matches: ascending old positions, -1 for rows without one.
    """
    same = np.zeros(len(matches), np.bool_)
    for at in range(0, len(matches), VECTOR_ROWS):
        part = matches[at : at + VECTOR_ROWS]
        known = part[part != EMPTY_POSITION]
        if len(known):
            first = int(known[0])
            before = old.vectors.read(first, int(known[-1]) + 1)
            now = new.vectors.read(start + at, start + at + len(part))
            here = np.where(part == EMPTY_POSITION, EMPTY_POSITION, part - first)
            same[at : at + len(part)] = find_equal_rows(now, before, here)
    return same


def _are_equal(old: pa.ChunkedArray, new: pa.ChunkedArray, old_rows: IntArray, new_rows: IntArray) -> BoolArray:
    """Return (rows,) whether values are equal; two nulls are, and two NaN."""
    left, right = _one(old).take(pa.array(old_rows)), _one(new).take(pa.array(new_rows))
    if pa.types.is_nested(left.type):
        pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)
        return np.fromiter((repr(one) == repr(other) for one, other in pairs), np.bool_, len(left))
    codes = pc.fill_null(pa.concat_arrays([left, right]).dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
    same: BoolArray = codes[: len(left)] == codes[len(left) :]
    return same


def _one(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array of plain values."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return pa.concat_arrays(column.chunks or [pa.array([], column.type)])
