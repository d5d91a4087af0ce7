"""The items or queries of a version with all updates, in id order: the table that a run on the same rows would ingest.

Rows of the snapshot's ingested table stay where they are; rows of updates are in memory. Positions are those of the
merged table. Knows nothing of lists and patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.sources.ids import argsort_ids, find_positions, find_sorted, lower_bound
from nearcast.sources.ingest import IngestedTable, read_attributes
from nearcast.types import AnyArray, IntArray, Vectors

__all__ = ["LiveRows", "LiveTable", "LiveVectors"]


@dataclass(frozen=True, slots=True, eq=False)
class LiveRows:
    """Rows in memory, in id order."""

    ids: pa.Array  # (n,) sorted
    vectors: AnyArray  # (n, dim) with score terms in them
    attributes: pa.Table  # (n,) without the ids

    def take(self, rows: IntArray) -> LiveRows:
        """Return some of the rows, in this order."""
        at = pa.array(rows)
        return LiveRows(self.ids.take(at), self.vectors[rows], self.attributes.take(at))

    def with_ids(self, names: Sequence[str]) -> pa.Table:
        """Return columns "id" and `names`."""
        return pa.table({"id": self.ids, **{name: self.attributes.column(name) for name in names}})

    def replace_rows(self, newer: LiveRows, removed: pa.Array) -> LiveRows:
        """Return the rows without those of `removed`, and with newer ones in place of rows with their ids."""
        out = pa.concat_arrays([newer.ids, removed.cast(newer.ids.type)])
        kept = self.take(np.flatnonzero(find_positions(self.ids, out) < 0))
        both = LiveRows(
            pa.concat_arrays([kept.ids, newer.ids]),
            np.concatenate([kept.vectors, newer.vectors]),
            pa.concat_tables([kept.attributes, newer.attributes]),
        )
        return both.take(argsort_ids(both.ids))


@dataclass(frozen=True, slots=True, eq=False)
class LiveVectors:
    """Vectors of a snapshot's table and of updates, in id order."""

    base: Vectors
    added: AnyArray  # (a, dim)
    source: IntArray  # (n,) row of each vector: in `base`, or base.n plus the row in `added`

    @property
    def n(self) -> int:
        """Number of vectors."""
        return len(self.source)

    @property
    def dim(self) -> int:
        """Components per vector."""
        return self.base.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of the snapshot's vectors."""
        return self.base.dtype

    def read(self, start: int, stop: int) -> AnyArray:
        """Return the vectors start..stop-1; a block without updates is read at once."""
        rows = self.source[start:stop]
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and rows.max() < self.base.n:
            return self.base.read(int(rows[0]), int(rows[-1]) + 1)
        return self._gather(rows)

    def take(self, positions: IntArray) -> AnyArray:
        """Return a copy of these vectors."""
        return self._gather(self.source[positions])

    def whole(self) -> AnyArray:
        """Return a copy of all vectors."""
        return self._gather(self.source)

    def _gather(self, rows: IntArray) -> AnyArray:
        is_added = rows >= self.base.n
        vectors = np.empty((len(rows), self.dim), self.dtype)
        vectors[~is_added] = self.base.take(rows[~is_added])
        vectors[is_added] = self.added[rows[is_added] - self.base.n]
        return vectors


@dataclass(frozen=True, eq=False)
class LiveTable:
    """The current items or queries of a version."""

    base: IngestedTable  # of the snapshot, with score terms in its vectors
    columns: tuple[str, ...]  # attribute and display columns
    added: LiveRows  # of updates
    removed: npt.NDArray[np.bool_]  # (base rows,) removed, or replaced by a row of `added`
    ids: pa.Array  # (n,) sorted
    source: IntArray  # (n,) as in LiveVectors

    @classmethod
    def open(cls, base: IngestedTable, columns: Sequence[str]) -> LiveTable:
        """Return the table of a snapshot without updates."""
        n = base.vectors.n
        attributes = read_attributes(base, columns, 0, 0).drop_columns(["id"])
        added = LiveRows(base.ids.slice(0, 0), np.empty((0, base.vectors.dim), base.vectors.dtype), attributes)
        return cls(base, tuple(columns), added, np.zeros(n, np.bool_), base.ids.slice(), np.arange(n))

    @property
    def n(self) -> int:
        """Rows of the table."""
        return len(self.ids)

    @property
    def vectors(self) -> LiveVectors:
        """The vectors, with score terms in them."""
        return LiveVectors(self.base.vectors, self.added.vectors, self.source)

    @cached_property
    def base_ids(self) -> pa.Array:
        """(base rows,) ids of the snapshot's table."""
        return self.base.ids.slice()

    def find(self, ids: pa.Array) -> IntArray:
        """Return (len(ids),) the position of each id, -1 for a missing one."""
        return find_sorted(ids.cast(self.ids.type), self.ids)

    def count_to(self, ids: pa.Array) -> IntArray:
        """Return (len(ids),) the number of rows whose id is not larger than each of these, which may be missing."""
        counts = find_positions(ids.cast(self.ids.type), self.ids) + 1
        for row in np.flatnonzero(counts == 0).tolist():
            counts[row] = lower_bound(self.ids, ids[row].as_py(), 0, self.n)
        return counts

    def attributes(self, names: Sequence[str], positions: IntArray | None = None) -> pa.Table:
        """Return columns "id" and `names` of these positions. Default: of all."""
        rows = self.source if positions is None else self.source[positions]
        base = read_attributes(self.base, names)
        added = self.added.with_ids(names)
        both = pa.concat_tables([base, added.cast(base.schema)]).take(pa.array(rows))
        return both.combine_chunks()

    def rows(self, positions: IntArray) -> LiveRows:
        """Return the rows at these positions."""
        attributes = self.attributes(self.columns, positions).drop_columns(["id"])
        return LiveRows(self.ids.take(pa.array(positions)), self.vectors.take(positions), attributes)

    def update(self, newer: LiveRows, removed: pa.Array) -> LiveTable:
        """Return the table without the removed ids, and with these rows, which replace rows with their ids."""
        if not len(newer.ids) and not len(removed):
            return self
        added = self.added.replace_rows(newer, removed)
        flags = self.removed.copy()
        for ids in (newer.ids, removed):
            found = find_positions(ids.cast(self.base_ids.type), self.base_ids)
            flags[found[found >= 0]] = True
        alive = np.flatnonzero(~flags)
        source = np.concatenate([alive, len(flags) + np.arange(len(added.ids))])
        ids = pa.concat_arrays([self.base_ids.take(pa.array(alive)), added.ids])
        order = argsort_ids(ids)
        return replace(self, added=added, removed=flags, ids=ids.take(pa.array(order)), source=source[order])

    def as_ingested(self, positions: IntArray | None = None) -> IngestedTable:
        """Return ids and vectors, or some of them, as measures take a table; its attributes cannot be read."""
        at = np.arange(self.n) if positions is None else positions
        ids, vectors = self.ids.take(pa.array(at)), self.vectors
        some = LiveVectors(vectors.base, vectors.added, self.source[at])
        return IngestedTable(Path("live"), some, ids, ids, Path("live"))
