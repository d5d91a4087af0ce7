"""Write one side of the join in id order: vectors, ids and attributes, as an artifact that is opened by path.

After this, position p is the p-th smallest id, so "the smaller position" and "the smaller id" are the same.
Works within a memory budget: where the side is larger, the source is read several times, a range of
positions each. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.files import finish, fresh_folder, verify
from nearcast.sources.ids import read_ids, to_ids, write_ids
from nearcast.sources.matrix import RowState, to_matrix
from nearcast.sources.row_source import RowBatch
from nearcast.sources.user_files import changed_error
from nearcast.sources.validate_rows import Kept, Scan
from nearcast.types import ArrayVectors, FileVectors, IntArray, Progress, Vectors, no_progress

__all__ = [
    "IngestedTable",
    "Inputs",
    "ingest",
    "ingest_attributes",
    "ingest_bytes",
    "ingest_memory",
    "open_ingested_table",
]

READ_BYTES = 256 << 20  # what Arrow takes to decode batches of BATCH_BYTES, with what it frees late
ATTRIBUTE_FILE_ROWS = 1 << 20
ATTRIBUTE_GROUP_ROWS = 1 << 14


@dataclass(frozen=True, slots=True)
class IngestedTable:
    """One ingested side, open for reading."""

    folder: Path
    vectors: Vectors
    ids: pa.Array  # (vectors.n,) sorted
    listed_ids: pa.Array  # sorted; `ids`, and rows that are listed without a vector
    attributes: Path  # folder of Parquet files: id and attribute columns, sorted by id


@dataclass(frozen=True, slots=True)
class Inputs:
    """Both sides, ingested. `queries is items` for a join of a set with itself."""

    items: IngestedTable
    queries: IngestedTable


def open_ingested_table(folder: Path) -> IngestedTable:
    """Open what `ingest` has written, once every file has the size that it was written with. Raise DamagedError."""
    verify(folder, contents=False)
    return IngestedTable(
        folder,
        FileVectors.open(folder / "vectors.npy"),
        read_ids(folder / "ids.arrow"),
        read_ids(folder / "listed.arrow"),
        folder / "attributes",
    )


def ingest_memory(seen: Scan, memory_bytes: int) -> int:
    """Peak memory of scanning and ingesting within `memory_bytes`: a range of vectors, batches, ids and marks."""
    block = min(len(seen.states) * max(seen.dim, 1) * seen.dtype.itemsize, memory_bytes // 2)
    batches = min(READ_BYTES, memory_bytes, 4 * len(seen.states) * seen.source.row_bytes)
    return block + batches + 3 * int(seen.ids.nbytes) + 32 * len(seen.states)


def ingest_bytes(seen: Scan, kept: Kept) -> int:
    """Disk that `ingest` will take, attributes estimated from the size of the source's rows."""
    vectors = len(kept.vector_rows) * seen.dim * seen.dtype.itemsize
    return vectors + 2 * int(seen.ids.nbytes) + len(kept.listed_rows) * 16 * len(seen.source.spec.columns)


def ingest(
    seen: Scan,
    kept: Kept,
    folder: Path,
    manifest: dict[str, Any],
    *,
    memory_bytes: int,
    side: str,
    progress: Progress = no_progress,
) -> IngestedTable:
    """Write the kept rows of a scanned source into `folder`, within `memory_bytes`, and open them."""
    fresh_folder(folder)
    (folder / "attributes").mkdir()
    write_ids(folder / "ids.arrow", to_ids(kept.vector_rows, seen.ids))
    write_ids(folder / "listed.arrow", to_ids(kept.listed_rows, seen.ids))
    _write_vectors(seen, kept.vector_rows, folder / "vectors.npy", memory_bytes, side, progress)
    _write_attributes(seen, kept.listed_rows, folder / "attributes", memory_bytes)
    seen.source.check()
    seen.source.check_contents()
    finish(folder, manifest)
    return open_ingested_table(folder)


def ingest_attributes(seen: Scan, kept: Kept, folder: Path, *, memory_bytes: int) -> IngestedTable:
    """Write ids and attributes of the kept rows into `folder`, and open them with vectors of zeros."""
    fresh_folder(folder)
    (folder / "attributes").mkdir()
    _write_attributes(seen, kept.listed_rows, folder / "attributes", memory_bytes)
    seen.source.check()
    zeros = np.broadcast_to(np.zeros(1, seen.dtype), (len(kept.vector_rows), max(seen.dim, 1)))
    ids, listed = to_ids(kept.vector_rows, seen.ids), to_ids(kept.listed_rows, seen.ids)
    return IngestedTable(folder, ArrayVectors(zeros), ids, listed, folder / "attributes")


def _write_vectors(seen: Scan, rows: IntArray, path: Path, memory_bytes: int, side: str, progress: Progress) -> None:
    n, dim = len(rows), max(seen.dim, 1)
    per_range = max(1, memory_bytes // 2 // (dim * seen.dtype.itemsize))
    target = _targets(rows, len(seen.states))
    header = {"descr": np.lib.format.dtype_to_descr(seen.dtype), "fortran_order": False, "shape": (n, dim)}
    with path.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, n, per_range):
            block = np.empty((min(n, start + per_range) - start, dim), seen.dtype)
            filled = 0
            for first, matrix in _matrices(seen, memory_bytes // 4):
                places = target[first : first + len(matrix)]
                inside = (places >= start) & (places < start + len(block))
                block[places[inside] - start] = matrix[inside]
                filled += int(np.count_nonzero(inside))
                passed = start // per_range * len(seen.states) + first + len(matrix)
                progress(f"read {side}", passed, -(-n // per_range) * len(seen.states))
            if filled != len(block):
                raise changed_error(seen.source.name, f"{filled:,} of {len(block):,} vectors came")
            block.tofile(out)


def _targets(rows: IntArray, n_rows: int) -> IntArray:
    """(n_rows,) the position that each source row takes, -1 for none."""
    target = np.full(n_rows, -1, np.int64)
    target[rows] = np.arange(len(rows))
    return target


def _matrices(seen: Scan, memory_bytes: int) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    for first, batch in _same_rows(seen, memory_bytes, vectors=True):
        matrix, states = to_matrix(batch.vectors, seen.dim or 1)
        if not np.array_equal(states == RowState.GOOD, _has_components(seen.states[first : first + len(states)])):
            raise changed_error(seen.source.name, "vectors have other lengths")
        yield first, matrix


def _has_components(states: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    return np.isin(states, (RowState.NULL_VECTOR, RowState.WRONG_DIMENSION), invert=True)


def _same_rows(seen: Scan, memory_bytes: int, *, vectors: bool) -> Iterator[tuple[int, RowBatch]]:
    """Read the source once more, with the first row of each batch: InputError unless it has the ids of the scan."""
    first = 0
    for batch in seen.source.batches(vectors=vectors, attributes=not vectors, memory_bytes=memory_bytes):
        if not batch.ids.equals(seen.ids[first : first + len(batch.ids)]):
            raise changed_error(seen.source.name, "ids are others than at the first look")
        yield first, batch
        first += len(batch.ids)
    if first != len(seen.ids):
        raise changed_error(seen.source.name, f"{first:,} rows came where there were {len(seen.ids):,}")


def _write_attributes(seen: Scan, rows: IntArray, folder: Path, memory_bytes: int) -> None:
    """Write id and attribute columns, sorted by id, reading the source once per range that fits the budget.

    Files and row groups are cut by rows alone; a range is some whole row groups, so that the budget cannot
    change the bytes.
    """
    row_bytes = max(64, seen.source.row_bytes - seen.dim * seen.dtype.itemsize * 2)
    per_range = ATTRIBUTE_FILE_ROWS
    while per_range > ATTRIBUTE_GROUP_ROWS and per_range * row_bytes > memory_bytes // 4:
        per_range //= 2
    target = _targets(rows, len(seen.states))
    for number, first in enumerate(range(0, max(1, len(rows)), ATTRIBUTE_FILE_ROWS)):
        last = min(len(rows), first + ATTRIBUTE_FILE_ROWS)
        writer: pq.ParquetWriter | None = None
        for start in range(first, max(last, first + 1), per_range):
            stop = min(last, start + per_range)
            ids = _plain_strings(to_ids(rows[start:stop], seen.ids))
            columns = _range_of_attributes(seen, target, start, stop, memory_bytes // 4)
            table = pa.table({"id": ids, **columns}).combine_chunks()
            path = folder / f"part-{number:05d}.parquet"
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table.cast(writer.schema), row_group_size=ATTRIBUTE_GROUP_ROWS)
        assert writer is not None
        writer.close()


def _range_of_attributes(
    seen: Scan, target: IntArray, start: int, stop: int, memory_bytes: int
) -> dict[str, pa.ChunkedArray]:
    """The attribute columns of the rows that take positions start..stop-1, in that order."""
    names = seen.source.spec.columns
    if not names:
        return {}
    pieces, places = [], []
    for first, batch in _same_rows(seen, memory_bytes, vectors=False):
        here = target[first : first + len(batch.ids)]
        inside = np.flatnonzero((here >= start) & (here < stop))
        pieces.append(batch.attributes.take(pa.array(inside)))
        places.append(here[inside])
    order = pa.array(np.argsort(np.concatenate(places)) if places else np.empty(0, np.int64))
    schema = pa.schema([(name, seen.source.attribute_types[name]) for name in names])
    whole = pa.concat_tables([piece.cast(schema) for piece in pieces] or [schema.empty_table()]).take(order)
    return {name: whole.column(name) for name in names}


def _plain_strings(ids: pa.Array) -> pa.Array:
    """Strings with 32-bit offsets, which every reader knows."""
    return ids.cast(pa.string()) if ids.type == pa.large_string() else ids
