"""The files of an id range, or of a table of one range: vectors, ids and attributes in the order of ids.

Vectors and attributes are written in blocks that fit the memory; the budget does not change the bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.sources.ids import id_sizes, to_ids, write_ids
from nearcast.sources.pieces import ATTRIBUTE, piece_vectors
from nearcast.sources.range_rows import RangeRows
from nearcast.types import IntArray

__all__ = ["BLOCK_BYTES", "write_attributes", "write_id_files", "write_vectors"]

ATTRIBUTE_FILE_ROWS = 1 << 20
ATTRIBUTE_GROUP_ROWS = 1 << 14
BLOCK_BYTES = 64 << 20  # of vectors; larger blocks are not written any faster
LONG_IDS_BYTES = 8 << 20  # of the texts of ids that are put in order in memory
EMPTY = -1


def write_id_files(rows: RangeRows, folder: Path) -> None:
    """Write the ids of the joined rows and of the listed rows."""
    write_ids(folder / "ids.arrow", _order_ids(rows.vector_rows, rows.ids, folder))
    write_ids(folder / "listed.arrow", _order_ids(rows.listed_rows, rows.ids, folder))


def _order_ids(chosen: IntArray, ids: pa.Array, scratch: Path) -> pa.Array:
    """Return the ids of these rows as one array: long texts in mapped files, which vanish with it."""
    sizes = id_sizes(ids)[chosen]
    total = int(sizes.sum())
    if total <= LONG_IDS_BYTES or not pa.types.is_large_string(ids.type):
        return to_ids(chosen, ids)
    with tempfile.TemporaryFile(dir=scratch) as offset_file, tempfile.TemporaryFile(dir=scratch) as text_file:
        offsets = np.memmap(offset_file, np.int64, "w+", shape=(len(chosen) + 1,))
        text = np.memmap(text_file, np.uint8, "w+", shape=(total,))
    offsets[0] = 0
    np.cumsum(sizes, out=offsets[1:])
    step = max(1, LONG_IDS_BYTES * len(chosen) // total)
    for start in range(0, len(chosen), step):
        part = to_ids(chosen[start : start + step], ids)
        _, ends, data = part.buffers()
        first, last = np.frombuffer(ends, np.int64)[[part.offset, part.offset + len(part)]]
        text[offsets[start] : offsets[start + len(part)]] = np.frombuffer(data or b"", np.uint8)[first:last]
    return pa.LargeStringArray.from_buffers(len(chosen), pa.py_buffer(offsets), pa.py_buffer(text))


def write_vectors(
    rows: RangeRows,
    path: Path,
    dim: int,
    dtype: np.dtype[Any],
    memory_bytes: int,
    progress: Callable[[int], None],
) -> None:
    """Write the vectors of the joined rows as an array, (vectors, dim). progress: called with rows written.

    Pieces without vectors give zeros, which take no disk.
    """
    n, dim = len(rows.vector_rows), max(dim, 1)
    per_block = max(1, min(memory_bytes // 2, BLOCK_BYTES) // (dim * dtype.itemsize))
    target = _target_positions(rows.vector_rows, len(rows.ids))
    row = np.dtype((np.void, dim * dtype.itemsize))  # a row at a time is copied faster than its components
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n, dim)}
    with path.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        if all("vector" not in piece.schema.names for piece in rows.pieces):
            out.truncate(out.tell() + n * dim * dtype.itemsize)
            return
        for start in range(0, n, per_block):
            block = np.empty(min(n, start + per_block) - start, row)
            for first, batch in _read_batches(rows):
                positions = target[first : first + len(batch)] - start
                inside = np.flatnonzero((positions >= 0) & (positions < len(block)))
                if len(inside):
                    vectors = piece_vectors(batch, dim, dtype).view(row)[:, 0]
                    block[positions[inside]] = vectors if len(inside) == len(vectors) else vectors[inside]
            block.tofile(out)
            progress(len(block))


def write_attributes(rows: RangeRows, folder: Path, schema: pa.Schema, memory_bytes: int) -> None:
    """Write ids and attributes of the listed rows into Parquet files of at most ATTRIBUTE_FILE_ROWS rows.

    A block is a number of whole row groups.
    """
    total = sum(piece.select(_attribute_names(schema)).nbytes for piece in rows.pieces)
    row_bytes = 64 + 2 * (total + rows.ids.nbytes) // max(1, len(rows.ids))
    per_block = ATTRIBUTE_FILE_ROWS
    while per_block > ATTRIBUTE_GROUP_ROWS and per_block * row_bytes > memory_bytes // 2:
        per_block //= 2
    n, target = len(rows.listed_rows), _target_positions(rows.listed_rows, len(rows.ids))
    for number, first in enumerate(range(0, max(1, n), ATTRIBUTE_FILE_ROWS)):
        last = min(n, first + ATTRIBUTE_FILE_ROWS)
        writer: pq.ParquetWriter | None = None
        for start in range(first, max(last, first + 1), per_block):
            stop = min(last, start + per_block)
            ids = to_ids(rows.listed_rows[start:stop], rows.ids)
            columns = _take_attributes(rows, target, start, stop, schema)
            table = pa.table({"id": _short_strings(ids), **columns}).combine_chunks()
            path = folder / f"part-{number:05d}.parquet"
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table.cast(writer.schema), row_group_size=ATTRIBUTE_GROUP_ROWS)
        assert writer is not None
        writer.close()


def _attribute_names(schema: pa.Schema) -> list[str]:
    return [ATTRIBUTE + name for name in schema.names]


def _take_attributes(
    rows: RangeRows, target: IntArray, start: int, stop: int, schema: pa.Schema
) -> dict[str, pa.ChunkedArray]:
    """Return the attribute columns of listed rows start..stop-1, in that order."""
    if not schema.names:
        return {}
    parts, positions = [], []
    for first, batch in _read_batches(rows):
        here = target[first : first + len(batch)]
        inside = np.flatnonzero((here >= start) & (here < stop))
        columns = [batch.column(name) for name in _attribute_names(schema)]
        parts.append(pa.Table.from_arrays([column.take(pa.array(inside)) for column in columns], schema=schema))
        positions.append(here[inside])
    order = pa.array(np.argsort(np.concatenate(positions)) if positions else np.empty(0, np.int64))
    table = pa.concat_tables(parts or [schema.empty_table()]).take(order)
    return {name: table.column(name) for name in schema.names}


def _read_batches(rows: RangeRows) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the batches of all pieces, each with the number of its first row."""
    first = 0
    for piece in rows.pieces:
        for batch in piece.to_batches():
            yield first, batch
            first += len(batch)


def _target_positions(chosen: IntArray, n_rows: int) -> IntArray:
    """Return (n_rows,) the position of each row among the chosen ones, EMPTY for the others."""
    target = np.full(n_rows, EMPTY, np.int64)
    target[chosen] = np.arange(len(chosen))
    return target


def _short_strings(ids: pa.Array) -> pa.Array:
    """Convert large_string to string: every reader supports 32-bit offsets."""
    return ids.cast(pa.string()) if ids.type == pa.large_string() else ids
