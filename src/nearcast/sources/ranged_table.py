"""A table that is stored in several id ranges: its ids and vectors, read over ranges that are opened when needed.

Range r holds the ids from its lower bound to the next range's. Position = first position of the range + rank in it, so
that the smaller id is the smaller position. Nothing here holds the ids or vectors of more than a few ranges, except
`whole`. Knows nothing of how ranges are made.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.sources.ids import argsort_ids, find_sorted, lower_bound, read_ids
from nearcast.types import AnyArray, ArrayVectors, FileVectors, IntArray, Vectors

__all__ = ["IdRanges", "RangedIds", "RangedVectors", "cut_at", "edges_of", "group_by_range", "list_range_files"]

OPEN_RANGES = 4  # whose ids stay mapped


@dataclass(frozen=True, slots=True)
class IdRanges:
    """The ranges of a table, in the order of ids."""

    names: tuple[str, ...]  # of the artifacts
    bounds: pa.Array  # (ranges - 1,) the lower bound of every range but the first
    vectors: IntArray  # (ranges,) joined rows of each range
    listed: IntArray  # (ranges,) joined rows, and rows that are listed without a vector
    open_range: Callable[[str], Path]  # returns the local folder of a range; downloads it if it is elsewhere
    vector_names: tuple[str, ...] = ()  # of the artifacts with the vectors, where they are not those of `names`

    def open(self, number: int) -> Path:
        """Return the local folder of a range."""
        return self.open_range(self.names[number])

    def split(self, ids: pa.Array) -> IntArray:
        """Return (ranges + 1,) where the ids of each range begin in sorted ids without nulls, and the end."""
        cuts, start = [0], 0
        for bound in self.bounds:
            start = lower_bound(ids, bound.as_py(), start, len(ids))
            cuts.append(start)
        return np.array([*cuts, len(ids)], np.int64)


def cut_at(edges: IntArray, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield (range, start, stop) of the parts of the positions start..stop-1, counted from each range's first."""
    for number in range(int(np.searchsorted(edges, start, "right")) - 1, len(edges) - 1):
        first, last = int(edges[number]), int(edges[number + 1])
        if first >= stop:
            return
        if last > first:
            yield number, max(start, first) - first, min(stop, last) - first


def edges_of(counts: IntArray) -> IntArray:
    """Return (ranges + 1,) the first position of each range, and the number of all positions."""
    edges: IntArray = np.append(0, np.cumsum(counts))
    return edges


def group_by_range(edges: IntArray, positions: IntArray) -> Iterator[tuple[int, IntArray, IntArray]]:
    """Yield (range, slots, positions in the range): the slots of `positions` that lie in each range."""
    if len(positions) and (positions.min() < 0 or positions.max() >= edges[-1]):
        raise IndexError(f"positions go from 0 to {edges[-1] - 1}, got {positions.min()} to {positions.max()}")
    order = np.argsort(positions, kind="stable")
    cuts = np.searchsorted(positions[order], edges)
    for number in np.flatnonzero(np.diff(cuts)):
        slots = order[cuts[number] : cuts[number + 1]]
        yield int(number), slots, positions[slots] - edges[number]


class RangedIds:
    """Sorted ids in ranges, with the methods of an Arrow array that readers of a table use."""

    def __init__(self, ranges: IdRanges, counts: IntArray, file: str) -> None:
        """counts: (ranges,) ids of each range. file: name of their file in a range's folder."""
        self._ranges = ranges
        self._edges = edges_of(counts)
        self._file = file
        self._opened: OrderedDict[int, pa.Array] = OrderedDict()
        self._most_open = OPEN_RANGES

    @property
    def type(self) -> pa.DataType:
        """int64 or large_string."""
        return self._ranges.bounds.type

    def __len__(self) -> int:
        return int(self._edges[-1])

    def __getitem__(self, key: int | slice) -> Any:
        """Return one id as an Arrow scalar, or the ids of a slice as an Arrow array."""
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise IndexError(f"ids are read in steps of 1, got {step}")
            return self.slice(start, max(0, stop - start))
        position = int(key) + (len(self) if key < 0 else 0)
        if not 0 <= position < len(self):
            raise IndexError(f"position {key} of {len(self)} ids")
        number = int(np.searchsorted(self._edges, position, "right")) - 1
        return self._open(number)[position - int(self._edges[number])]

    def slice(self, offset: int = 0, length: int | None = None) -> pa.Array:
        """Return `length` ids from `offset` on, or all that follow, as one Arrow array."""
        stop = len(self) if length is None else min(len(self), offset + length)
        parts = [self._open(number)[first:last] for number, first, last in cut_at(self._edges, offset, stop)]
        return parts[0] if len(parts) == 1 else pa.concat_arrays(parts or [pa.array([], self.type)])

    def take(self, positions: Any) -> pa.Array:
        """Return the ids at these positions, in their order."""
        rows = np.asarray(positions, np.int64)
        parts, slots = [pa.array([], self.type)], [np.empty(0, np.int64)]
        for number, at, inside in group_by_range(self._edges, rows):
            parts.append(self._open(number).take(pa.array(inside)))
            slots.append(at)
        back = np.empty(len(rows), np.int64)
        back[np.concatenate(slots)] = np.arange(len(rows))
        return pa.concat_arrays(parts).take(pa.array(back))

    def find(self, keys: pa.Array) -> IntArray:
        """Return (len(keys),) the position of each key, -1 for a missing one. Opens the ranges that hold keys."""
        keys = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
        keys = keys.cast(self.type)
        order = argsort_ids(keys)[: len(keys) - keys.null_count]
        ordered = keys.take(pa.array(order))
        cuts = self._ranges.split(ordered)
        found = np.full(len(keys), -1, np.int64)
        for number in np.flatnonzero(np.diff(cuts)):
            part = slice(int(cuts[number]), int(cuts[number + 1]))
            if self._edges[number] == self._edges[number + 1]:
                continue
            inside = find_sorted(ordered[part], self._open(int(number)))
            found[order[part]] = np.where(inside < 0, -1, inside + self._edges[number])
        return found

    def hold(self) -> RangedIds:
        """Return the same ids, all mapped now: they stay readable when the files are removed."""
        held = RangedIds(self._ranges, np.diff(self._edges), self._file)
        held._opened = OrderedDict((number, self._read(number)) for number in range(len(self._ranges.names)))
        held._most_open = len(held._opened)
        return held

    def to_pylist(self) -> list[Any]:
        """Return all ids as a list: for small tables."""
        return [one for number in range(len(self._edges) - 1) for one in self._open(number).to_pylist()]

    def _open(self, number: int) -> pa.Array:
        if number not in self._opened:
            self._opened[number] = self._read(number)
            while len(self._opened) > self._most_open:
                self._opened.popitem(last=False)
        self._opened.move_to_end(number)
        return self._opened[number]

    def _read(self, number: int) -> pa.Array:
        return read_ids(self._ranges.open(number) / self._file)


class RangedVectors:
    """Vectors in ranges, as `Vectors`."""

    def __init__(self, ranges: IdRanges, dim: int, dtype: np.dtype[Any], scratch: Path) -> None:
        """scratch: a folder of this machine, where `whole` joins the ranges."""
        self._ranges = ranges
        self._edges = edges_of(ranges.vectors)
        self._dim = dim
        self._dtype = dtype
        self._scratch = scratch
        self._whole: AnyArray | None = None
        self._held: list[ArrayVectors] = []

    @property
    def n(self) -> int:
        """Number of vectors."""
        return int(self._edges[-1])

    @property
    def dim(self) -> int:
        """Components per vector."""
        return self._dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """One of VECTOR_DTYPES."""
        return self._dtype

    def read(self, start: int, stop: int) -> AnyArray:
        """Return a copy of the vectors start..stop-1."""
        parts = [self._open(number).read(first, last) for number, first, last in cut_at(self._edges, start, stop)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, self._dim), self._dtype)

    def take(self, positions: IntArray) -> AnyArray:
        """Return a copy of the vectors at these positions, in their order."""
        rows = np.empty((len(positions), self._dim), self._dtype)
        for number, slots, inside in group_by_range(self._edges, np.asarray(positions, np.int64)):
            rows[slots] = self._open(number).take(inside)
        return rows

    def whole(self) -> AnyArray:
        """Return all vectors as one mapped (n, dim) array.

        The ranges are joined once per object, in a file of the scratch folder that vanishes with the process. It takes
        as much disk as the vectors; an item shard of one range needs none.
        """
        if self._whole is None:
            if self.n == 0:
                self._whole = np.empty((0, self._dim), self._dtype)
            else:
                with tempfile.TemporaryFile(dir=self._scratch, prefix=".joined-") as file:
                    for number in range(len(self._ranges.names)):
                        if self._ranges.vectors[number]:
                            np.ascontiguousarray(self._open(number).whole()).tofile(file)
                    file.flush()
                    self._whole = np.memmap(file, self._dtype, "r", shape=(self.n, self._dim))
        return self._whole

    def hold(self) -> RangedVectors:
        """Return the same vectors, all mapped now: they stay readable when the files are removed."""
        held = RangedVectors(self._ranges, self._dim, self._dtype, self._scratch)
        held._held = [ArrayVectors(self._open(number).whole()) for number in range(len(self._ranges.names))]
        return held

    def _open(self, number: int) -> Vectors:
        if self._held:
            return self._held[number]
        ranges = self._ranges
        folder = ranges.open_range(ranges.vector_names[number]) if ranges.vector_names else ranges.open(number)
        return FileVectors.open(folder / "vectors.npy")


def list_range_files(ranges: IdRanges, numbers: Sequence[int] | None = None) -> list[Path]:
    """Return the attribute files of these ranges, or of all, in the order of ids. Downloads the ranges."""
    chosen = range(len(ranges.names)) if numbers is None else numbers
    return [path for number in chosen for path in sorted((ranges.open(number) / "attributes").glob("*.parquet"))]
