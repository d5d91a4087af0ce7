"""Attributes of some rows of an ingested table, read by position: memory grows with the rows that are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.sources.ids import find_sorted, read_ids
from nearcast.sources.ingest import IngestedTable
from nearcast.sources.ranged_table import edges_of, group_by_range, list_range_files
from nearcast.types import IntArray

__all__ = ["read_attribute_range", "take_attributes"]


def read_attribute_range(table: IngestedTable, names: Sequence[str], start: int, stop: int) -> pa.Table:
    """Read columns "id" and `names` of the vectors at positions start..stop-1, in that order."""
    return _read_distinct(table, names, np.arange(start, stop))


def take_attributes(table: IngestedTable, names: Sequence[str], positions: IntArray) -> pa.Table:
    """Read columns "id" and `names` of the vectors at these positions, in their order. A position may repeat."""
    distinct, back = np.unique(positions, return_inverse=True)
    return _read_distinct(table, names, distinct).take(pa.array(back.reshape(-1)))


@dataclass(frozen=True, slots=True)
class _StoredRows:
    """The files of a table, or of a range of it, and ids that tell the rows of its vectors."""

    files: list[Path]
    ids: pa.Array
    listed_ids: pa.Array

    def read(self, columns: list[str], positions: IntArray) -> Iterator[pa.Table]:
        """Yield the rows of vectors at ascending positions."""
        rows = positions
        if len(self.ids) != len(self.listed_ids):  # rows without a vector lie between
            rows = find_sorted(self.ids.take(pa.array(positions)), self.listed_ids)
        return _read_groups(self.files, columns, rows)


def _read_distinct(table: IngestedTable, names: Sequence[str], positions: IntArray) -> pa.Table:
    """Read the rows of vectors at ascending positions."""
    columns, pieces = ["id", *names], []
    if table.ranges is None:
        pieces = list(_StoredRows(table.attribute_files, table.ids, table.listed_ids).read(columns, positions))
    else:
        for number, _, inside in group_by_range(edges_of(table.ranges.vectors), positions):
            folder = table.ranges.open(number)
            ids, listed = (read_ids(folder / name) for name in ("ids.arrow", "listed.arrow"))
            pieces += _StoredRows(list_range_files(table.ranges, [number]), ids, listed).read(columns, inside)
    if pieces:
        return pa.concat_tables(pieces)
    files = table.attribute_files if table.ranges is None else list_range_files(table.ranges, [0])
    return pq.read_schema(files[0]).empty_table().select(columns)


def _read_groups(files: Sequence[Path], columns: list[str], rows: IntArray) -> Iterator[pa.Table]:
    """Yield these ascending rows of the files, read by row groups."""
    first = 0
    for path in files:
        with pq.ParquetFile(path, memory_map=True) as file:
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                begin, end = np.searchsorted(rows, (first, last))
                if begin < end:
                    part = file.read_row_group(group, columns=columns, use_threads=False).select(columns)
                    yield part if end - begin == last - first else part.take(pa.array(rows[begin:end] - first))
                first = last
