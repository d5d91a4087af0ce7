"""Ingested tables: vectors, ids and attributes of the query or item table in id order, in a folder.

Position p is the p-th smallest id, so that the smaller position is the smaller id. Ingestion stays within a memory
budget: a larger table is read several times, a range of positions each time. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nearcast.artifact_files import open_dataset
from nearcast.files import finish, fresh_folder, read_manifest, verify
from nearcast.sources.ids import argsort_ids, find_positions, read_ids, to_ids, write_ids
from nearcast.sources.matrix import RowState, to_matrix
from nearcast.sources.ranged_table import IdRanges, RangedIds, RangedVectors, cut_at, edges_of, list_range_files
from nearcast.sources.row_source import RowBatch
from nearcast.sources.scan_rows import KeptRows, Scan
from nearcast.sources.user_files import changed_error
from nearcast.types import ArrayVectors, FileVectors, IntArray, Metric, Progress, Vectors, no_progress

__all__ = [
    "IngestedTable",
    "Inputs",
    "estimate_ingest_disk",
    "estimate_ingest_memory",
    "find_attribute_files",
    "ingest",
    "ingest_attributes",
    "list_attributes",
    "open_ingested_table",
    "read_attributes",
    "read_rows",
    "write_table_files",
]

READ_BYTES = 256 << 20  # memory of Arrow decoding batches of BATCH_BYTES, with the memory that it frees late
ATTRIBUTE_FILE_ROWS = 1 << 20
ATTRIBUTE_GROUP_ROWS = 1 << 14
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

    @property
    def artifact_names(self) -> set[str]:
        """Names of the folders below the root of artifacts that hold the table."""
        return {self.folder.name} | ({name.split("/")[0] for name in self.ranges.names} if self.ranges else set())


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


def find_attribute_files(folder: Path, open_range: Callable[[str], Path]) -> list[Path]:
    """Return the Parquet files of a table's ids and attributes, in the order of ids, without opening the table."""
    ranges = read_manifest(folder).get("ranges")
    folders = [folder] if ranges is None else [open_range(name) for name in ranges["names"]]
    return [path for home in folders for path in sorted((home / "attributes").glob("*.parquet"))]


def _open_ranges(folder: Path, facts: Mapping[str, Any], open_range: Callable[[str], Path]) -> IngestedTable:
    stored = facts["ranges"]
    ranges = IdRanges(
        tuple(stored["names"]),
        pa.array(stored["bounds"], ID_TYPES[stored["id_type"]]),
        np.array(stored["vectors"], np.int64),
        np.array(stored["listed"], np.int64),
        open_range,
    )
    return IngestedTable(
        folder,
        RangedVectors(ranges, max(facts["side"]["dim"], 1), np.dtype(facts["side"]["dtype"]), folder.parent),
        RangedIds(ranges, ranges.vectors, "ids.arrow"),
        RangedIds(ranges, ranges.listed, "listed.arrow"),
        folder / "attributes",
        ranges,
    )


def estimate_ingest_memory(scan: Scan, memory_bytes: int) -> int:
    """Estimate the peak memory of scan and ingestion, in bytes: a range of vectors, batches, ids and row states."""
    block = min(len(scan.states) * max(scan.dim, 1) * scan.dtype.itemsize, memory_bytes // 2)
    batches = min(READ_BYTES, memory_bytes, 4 * len(scan.states) * scan.source.row_bytes)
    return block + batches + 3 * int(scan.ids.nbytes) + 32 * len(scan.states)


def estimate_ingest_disk(scan: Scan, kept: KeptRows) -> int:
    """Estimate the disk use of `ingest`, in bytes; 16 bytes per attribute value."""
    vectors = len(kept.vector_rows) * scan.dim * scan.dtype.itemsize
    return vectors + 2 * int(scan.ids.nbytes) + len(kept.listed_rows) * 16 * len(scan.source.spec.columns)


def ingest(
    scan: Scan,
    kept: KeptRows,
    folder: Path,
    manifest: dict[str, Any],
    *,
    memory_bytes: int,
    table: str,
    progress: Progress = no_progress,
) -> IngestedTable:
    """Write the kept rows of a scanned source into `folder`, within `memory_bytes`, and open the table.

    table: "items" or "queries", for progress. Raises InputError if the source changed since the scan.
    """
    write_table_files(scan, kept, fresh_folder(folder), memory_bytes=memory_bytes, table=table, progress=progress)
    finish(folder, manifest)
    return open_ingested_table(folder)


def write_table_files(
    scan: Scan,
    kept: KeptRows,
    folder: Path,
    *,
    memory_bytes: int,
    table: str,
    progress: Progress = no_progress,
) -> None:
    """Write the files of an ingested table into an empty folder. Raises the errors of `ingest`."""
    (folder / "attributes").mkdir()
    write_ids(folder / "ids.arrow", to_ids(kept.vector_rows, scan.ids))
    write_ids(folder / "listed.arrow", to_ids(kept.listed_rows, scan.ids))
    _write_vectors(scan, kept.vector_rows, folder / "vectors.npy", memory_bytes, partial(progress, f"read {table}"))
    _write_attributes(scan, kept.listed_rows, folder / "attributes", memory_bytes)
    scan.source.check()
    scan.source.check_contents()


def ingest_attributes(scan: Scan, kept: KeptRows, folder: Path, *, memory_bytes: int) -> IngestedTable:
    """Write ids and attributes of the kept rows into `folder`, and open the table with vectors of zeros."""
    fresh_folder(folder)
    (folder / "attributes").mkdir()
    _write_attributes(scan, kept.listed_rows, folder / "attributes", memory_bytes)
    scan.source.check()
    zeros = np.broadcast_to(np.zeros(1, scan.dtype), (len(kept.vector_rows), max(scan.dim, 1)))
    ids, listed = to_ids(kept.vector_rows, scan.ids), to_ids(kept.listed_rows, scan.ids)
    return IngestedTable(folder, ArrayVectors(zeros), ids, listed, folder / "attributes")


def _write_vectors(
    scan: Scan, rows: IntArray, path: Path, memory_bytes: int, progress: Callable[[int, int], None]
) -> None:
    n, dim = len(rows), max(scan.dim, 1)
    per_range = max(1, memory_bytes // 2 // (dim * scan.dtype.itemsize))
    target = _target_positions(rows, len(scan.states))
    header = {"descr": np.lib.format.dtype_to_descr(scan.dtype), "fortran_order": False, "shape": (n, dim)}
    with path.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, n, per_range):
            block = np.empty((min(n, start + per_range) - start, dim), scan.dtype)
            filled = 0
            for first, matrix in _read_matrices(scan, memory_bytes // 4):
                positions = target[first : first + len(matrix)]
                inside = (positions >= start) & (positions < start + len(block))
                block[positions[inside] - start] = matrix[inside]
                filled += int(np.count_nonzero(inside))
                rows_read = start // per_range * len(scan.states) + first + len(matrix)
                progress(rows_read, -(-n // per_range) * len(scan.states))
            if filled != len(block):
                raise changed_error(scan.source.name, f"{filled:,} of {len(block):,} vectors came")
            block.tofile(out)


def _target_positions(rows: IntArray, n_rows: int) -> IntArray:
    """Return (n_rows,) the position of each source row in the ingested table, -1 for a row that is not kept."""
    target = np.full(n_rows, -1, np.int64)
    target[rows] = np.arange(len(rows))
    return target


def _read_matrices(scan: Scan, memory_bytes: int) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    for first, batch in _read_again(scan, memory_bytes, vectors=True):
        matrix, states = to_matrix(batch.vectors, scan.dim or 1)
        if not np.array_equal(states == RowState.GOOD, _has_components(scan.states[first : first + len(states)])):
            raise changed_error(scan.source.name, "vectors have other lengths")
        yield first, matrix


def _has_components(states: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    return np.isin(states, (RowState.NULL_VECTOR, RowState.WRONG_DIMENSION), invert=True)


def _read_again(scan: Scan, memory_bytes: int, *, vectors: bool) -> Iterator[tuple[int, RowBatch]]:
    """Read the source again. Yield first row number and batch. Raises InputError if ids differ from the scan."""
    first = 0
    for batch in scan.source.batches(vectors=vectors, attributes=not vectors, memory_bytes=memory_bytes):
        if not batch.ids.equals(scan.ids[first : first + len(batch.ids)]):
            raise changed_error(scan.source.name, "its ids differ from those of the scan")
        yield first, batch
        first += len(batch.ids)
    if first != len(scan.ids):
        raise changed_error(scan.source.name, f"{first:,} rows came where there were {len(scan.ids):,}")


def _write_attributes(scan: Scan, rows: IntArray, folder: Path, memory_bytes: int) -> None:
    """Write id and attribute columns, sorted by id. Reads the source once per range that fits the budget.

    Rows per file and row group are constant, and a range is a number of row groups: the budget does not change the
    bytes.
    """
    row_bytes = max(64, scan.source.row_bytes - scan.dim * scan.dtype.itemsize * 2)
    per_range = ATTRIBUTE_FILE_ROWS
    while per_range > ATTRIBUTE_GROUP_ROWS and per_range * row_bytes > memory_bytes // 4:
        per_range //= 2
    target = _target_positions(rows, len(scan.states))
    for number, first in enumerate(range(0, max(1, len(rows)), ATTRIBUTE_FILE_ROWS)):
        last = min(len(rows), first + ATTRIBUTE_FILE_ROWS)
        writer: pq.ParquetWriter | None = None
        for start in range(first, max(last, first + 1), per_range):
            stop = min(last, start + per_range)
            ids = _short_strings(to_ids(rows[start:stop], scan.ids))
            columns = _read_attribute_range(scan, target, start, stop, memory_bytes // 4)
            table = pa.table({"id": ids, **columns}).combine_chunks()
            path = folder / f"part-{number:05d}.parquet"
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table.cast(writer.schema), row_group_size=ATTRIBUTE_GROUP_ROWS)
        assert writer is not None
        writer.close()


def _read_attribute_range(
    scan: Scan, target: IntArray, start: int, stop: int, memory_bytes: int
) -> dict[str, pa.ChunkedArray]:
    """Return the attribute columns of positions start..stop-1, in that order."""
    names = scan.source.spec.columns
    if not names:
        return {}
    pieces, positions = [], []
    for first, batch in _read_again(scan, memory_bytes, vectors=False):
        batch_positions = target[first : first + len(batch.ids)]
        inside = np.flatnonzero((batch_positions >= start) & (batch_positions < stop))
        pieces.append(batch.attributes.take(pa.array(inside)))
        positions.append(batch_positions[inside])
    order = pa.array(np.argsort(np.concatenate(positions)) if positions else np.empty(0, np.int64))
    schema = pa.schema([(name, scan.source.attribute_types[name]) for name in names])
    table = pa.concat_tables([piece.cast(schema) for piece in pieces] or [schema.empty_table()]).take(order)
    return {name: table.column(name) for name in names}


def _short_strings(ids: pa.Array) -> pa.Array:
    """Convert large_string to string: every reader supports 32-bit offsets."""
    return ids.cast(pa.string()) if ids.type == pa.large_string() else ids


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
