"""Ingested tables: vectors, ids and attributes of the query or item table in id order, in a folder or in a folder per
id range.

Position p is the p-th smallest id, so that the smaller position is the smaller id. Reads tables; knows nothing of how
they are ingested, and nothing of engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nearcast.artifact_files import open_dataset
from nearcast.files import verify
from nearcast.sources.ids import argsort_ids, find_positions, read_ids
from nearcast.sources.ranged_table import IdRanges, RangedIds, RangedVectors, cut_at, edges_of, list_range_files
from nearcast.types import ArrayVectors, FileVectors, Metric, Vectors

__all__ = [
    "IngestedTable",
    "Inputs",
    "iterate_attributes",
    "list_attributes",
    "open_ingested_table",
    "read_attributes",
    "read_rows",
]

ID_TYPES = {"int64": pa.int64(), "string": pa.large_string()}


@dataclass(frozen=True, slots=True)
class IngestedTable:
    """The ingested query or item table, open for reading."""

    folder: Path
    vectors: Vectors
    ids: pa.Array | RangedIds  # (vectors.n,) sorted
    listed_ids: pa.Array | RangedIds  # sorted; `ids`, and ids of rows that are listed without a vector
    attributes: Path  # folder of Parquet files: id and attribute columns, sorted by id. See `attribute_files`
    ranges: IdRanges | None = None  # of a table in several ranges; its attributes are in their folders

    @property
    def fingerprint(self) -> str:
        """Identity of the contents: equal for equal rows, columns, policies and score terms. Names the folder."""
        return self.folder.name

    @property
    def attribute_files(self) -> list[Path]:
        """Parquet files of ids and attributes, in the order of ids. Downloads ranges that are elsewhere."""
        if self.ranges is None:
            return sorted(self.attributes.glob("*.parquet"))
        return list_range_files(self.ranges)

    def hold(self) -> IngestedTable:
        """Return the same table with vectors, and ids in ranges, mapped as long as it is held.

        They stay readable when a run removes the files.
        """
        vectors, ids, listed = self.vectors, self.ids, self.listed_ids
        if isinstance(vectors, RangedVectors):
            return replace(self, vectors=vectors.hold(), ids=ids.hold(), listed_ids=listed.hold())
        return replace(self, vectors=ArrayVectors(np.asarray(vectors.whole())))

    @property
    def artifact_names(self) -> set[str]:
        """Names of the folders below the root of artifacts that hold the table."""
        names = () if self.ranges is None else (*self.ranges.names, *self.ranges.vector_names)
        return {self.folder.name, *(name.split("/")[0] for name in names)}

    @property
    def slices(self) -> list[tuple[int, int]]:
        """First and last position, plus one, of each range: for readers that hold a range at a time."""
        edges = [0, self.vectors.n] if self.ranges is None else edges_of(self.ranges.vectors).tolist()
        return list(pairwise(edges))


@dataclass(frozen=True, slots=True)
class Inputs:
    """The ingested item and query tables. `queries is items` for a join of a table with itself."""

    items: IngestedTable
    queries: IngestedTable
    metric: Metric  # that compares their vectors; score terms change it with the vectors


def open_ingested_table(folder: Path, open_range: Callable[[str], Path] | None = None) -> IngestedTable:
    """Open a table that was ingested. Raises DamagedError if a file is missing or has another size.

    open_range: returns the local folder of a range by its name. Default: folders beside the table's.
    """
    facts = verify(folder, contents=False)
    if "ranges" in facts:
        return _open_ranges(folder, facts, open_range or (lambda name: folder.parent / name))
    return IngestedTable(
        folder,
        FileVectors.open(folder / "vectors.npy"),
        read_ids(folder / "ids.arrow"),
        read_ids(folder / "listed.arrow"),
        folder / "attributes",
    )


def _open_ranges(folder: Path, facts: Mapping[str, Any], open_range: Callable[[str], Path]) -> IngestedTable:
    stored = facts["ranges"]
    ranges = IdRanges(
        tuple(stored["names"]),
        pa.array(stored["bounds"], ID_TYPES[stored["id_type"]]),
        np.array(stored["vectors"], np.int64),
        np.array(stored["listed"], np.int64),
        open_range,
        tuple(stored.get("vector_names", ())),
    )
    return IngestedTable(
        folder,
        RangedVectors(ranges, max(facts["side"]["dim"], 1), np.dtype(facts["side"]["dtype"]), folder.parent),
        RangedIds(ranges, ranges.vectors, "ids.arrow"),
        RangedIds(ranges, ranges.listed, "listed.arrow"),
        folder / "attributes",
        ranges,
    )


def list_attributes(table: IngestedTable) -> list[str]:
    """List the columns of the table beside its ids."""
    files = table.attribute_files if table.ranges is None else list_range_files(table.ranges, [0])
    return [name for name in pq.read_schema(files[0]).names if name != "id"]


def read_attributes(table: IngestedTable, names: Sequence[str], start: int = 0, stop: int | None = None) -> pa.Table:
    """Read columns "id" and `names` of the table's vectors start..stop-1, in the order of positions. Default: all.

    Takes the memory of the rows that are read: for a table in ranges, read slices.
    """
    stop = table.vectors.n if stop is None else stop
    if table.ranges is None:
        rows = open_dataset(table.attributes).to_table(columns=["id", *names], use_threads=False)
        if len(table.ids) != len(rows):
            rows = rows.take(pa.array(find_positions(table.ids, table.listed_ids)))
        return rows if (start, stop) == (0, len(rows)) else rows.slice(start, stop - start)
    parts = [
        _read_range_rows(table.ranges.open(number), names).slice(first, last - first)
        for number, first, last in cut_at(edges_of(table.ranges.vectors), start, stop)
    ]
    return pa.concat_tables(parts) if parts else _read_range_rows(table.ranges.open(0), names).slice(0, 0)


def iterate_attributes(table: IngestedTable, names: Sequence[str]) -> Iterator[pa.Table]:
    """Yield columns "id" and `names` of the table's vectors in the order of positions, a range at a time."""
    for start, stop in table.slices:
        yield read_attributes(table, names, start, stop)


def _read_range_rows(folder: Path, names: Sequence[str]) -> pa.Table:
    """Read columns "id" and `names` of a range's vectors, in the order of positions."""
    rows = open_dataset(folder / "attributes").to_table(columns=["id", *names], use_threads=False)
    ids = read_ids(folder / "ids.arrow")
    return (
        rows if len(ids) == len(rows) else rows.take(pa.array(find_positions(ids, read_ids(folder / "listed.arrow"))))
    )


def read_rows(table: IngestedTable, ids: pa.Array, names: Sequence[str]) -> pa.Table:
    """Read columns "id" and `names` of the rows with these listed ids, in their order."""
    files = table.attribute_files
    if table.ranges is not None:
        ordered = ids.cast(table.listed_ids.type)
        cuts = table.ranges.split(ordered.take(pa.array(argsort_ids(ordered))))
        files = list_range_files(table.ranges, [int(number) for number in np.flatnonzero(np.diff(cuts))] or [0])
    dataset = open_dataset([str(path) for path in files])
    keys = ids.cast(dataset.schema.field("id").type)
    rows = dataset.to_table(columns=["id", *names], filter=pc.field("id").isin(keys), use_threads=False)
    return rows.take(pc.index_in(keys, value_set=rows.column("id").combine_chunks()))
