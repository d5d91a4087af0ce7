"""Ids in order, to find those of a row group of a table that is sorted by id at a cost that is the group's alone."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.stores.value_format import IdType, parse_key
from nearcast.types import IntArray

__all__ = ["SortedIds", "convert_ids"]


@dataclass(frozen=True, slots=True, eq=False)
class SortedIds:
    """Distinct ids, ascending, with their positions before the sort. Ids that are null are left out."""

    ids: pa.Array  # (n,)
    positions: IntArray  # (n,)

    @classmethod
    def sort(cls, ids: pa.Array) -> Self:
        """Sort distinct ids."""
        known = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))
        kept = ids.take(pa.array(known))
        order = pc.sort_indices(kept)
        return cls(kept.take(order), known[order.to_numpy()])

    def match(self, column: pa.ChunkedArray) -> tuple[IntArray, IntArray]:
        """Return rows of a column of ids that hold one of these ids, and the positions of those ids."""
        ends = pc.min_max(column).as_py()
        if ends["min"] is None or not len(self.ids):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        numbers = range(len(self.ids))
        low = bisect_left(numbers, ends["min"], key=self._read)
        high = bisect_right(numbers, ends["max"], key=self._read)
        if low == high:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        found = pc.index_in(column, value_set=self.ids.slice(low, high - low).cast(column.type), skip_nulls=True)
        places = found.fill_null(-1).to_numpy().astype(np.int64)
        rows = np.flatnonzero(places >= 0)
        return rows, self.positions[low + places[rows]]

    def _read(self, at: int) -> str | int:
        value: str | int = self.ids[at].as_py()
        return value


def convert_ids(ids: pa.Array, kind: IdType) -> pa.Array:
    """Convert ids to int64 or string; null for an id that cannot be of that type. Different ids stay different."""
    if kind == "string":
        return ids.cast(pa.string())
    if pa.types.is_integer(ids.type):
        return ids.cast(pa.int64())
    texts = ids.to_pylist()
    numbers = [None if text is None else parse_key(text, kind) for text in texts]
    same = [n if n is not None and str(n) == text else None for n, text in zip(numbers, texts, strict=True)]  # not 007
    return pa.array(same, pa.int64())
