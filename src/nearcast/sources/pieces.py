"""Pieces: the rows of one unit of a source that lie in one id range, checked, in the order of the source.

A piece is an Arrow table: id, number of the row in its unit, state and length of the vector, the vector's bytes (null
if there is none to store), and the attributes. On disk it is a file of Arrow streams, one per flush of the writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import DamagedError
from nearcast.sources.matrix import RowState
from nearcast.types import AnyArray, FloatArray, IntArray

__all__ = ["MemoryPieces", "PieceFolder", "PieceSink", "make_piece", "piece_attributes", "piece_name", "piece_vectors"]

ATTRIBUTE = "attribute."  # begins the names of attribute columns
WITH_VECTOR = (RowState.GOOD, RowState.ZERO_VECTOR)


class PieceSink(Protocol):
    """Takes the pieces of one unit."""

    def append(self, number: int, piece: pa.Table) -> None:
        """Add rows to the piece of a range."""
        ...

    def read(self, number: int) -> list[pa.Table]:
        """Return the piece of a range, as it was appended; nothing if the unit has no rows in it."""
        ...


class MemoryPieces:
    """The pieces of one unit in memory."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[pa.Table]] = {}

    def append(self, number: int, piece: pa.Table) -> None:
        """Keep the rows."""
        self._pieces.setdefault(number, []).append(piece)

    def read(self, number: int) -> list[pa.Table]:
        """Return the rows."""
        return self._pieces.get(number, [])


class PieceFolder:
    """The pieces of one unit in a folder: a file per range."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, number: int, piece: pa.Table) -> None:
        """Append a stream to the file of the range."""
        with (self.folder / piece_name(number)).open("ab") as file, pa.ipc.new_stream(file, piece.schema) as writer:
            writer.write_table(piece)

    def read(self, number: int) -> list[pa.Table]:
        """Map the file of the range. Raises DamagedError if it was cut."""
        path = self.folder / piece_name(number)
        if not path.exists():
            return []
        pieces = []
        try:
            with pa.memory_map(str(path)) as file:
                while file.tell() < file.size():
                    pieces.append(pa.ipc.open_stream(file).read_all())
        except (OSError, pa.ArrowException) as error:
            raise DamagedError(f"{path} is damaged ({error}); remove {self.folder} and run again") from error
        return pieces


def piece_name(number: int) -> str:
    """Return the name of the file with a unit's piece of a range."""
    return f"range-{number:06d}.arrows"


def make_piece(
    ids: pa.Array,
    rows: IntArray,
    states: npt.NDArray[np.uint8],
    lengths: FloatArray,
    matrix: AnyArray | None,
    attributes: Mapping[str, pa.ChunkedArray],
) -> pa.Table:
    """Put the columns of some rows together. matrix: (rows, dim) in the dtype that is stored; None without vectors."""
    columns: dict[str, Any] = {
        "id": ids,
        "row": pa.array(rows, pa.int64()),
        "state": pa.array(states, pa.uint8()),
        "length": pa.array(lengths, pa.float32()),
    }
    if matrix is not None:
        columns["vector"] = _to_bytes(matrix, np.isin(states, WITH_VECTOR))
    return pa.table(columns | {ATTRIBUTE + name: column for name, column in attributes.items()})


def _to_bytes(matrix: AnyArray, stored: npt.NDArray[np.bool_]) -> pa.Array:
    """Return rows as binary values of a fixed size, without a copy; null where nothing is stored."""
    flat = np.ascontiguousarray(matrix)
    width = max(1, flat.shape[1] * flat.itemsize)
    valid = None if stored.all() else pa.array(stored).buffers()[1]
    return pa.Array.from_buffers(pa.binary(width), len(flat), [valid, pa.py_buffer(flat)])


def piece_vectors(batch: pa.RecordBatch, dim: int, dtype: np.dtype[Any]) -> AnyArray:
    """Return (rows, dim) the vectors of a batch of a piece, without a copy; any values where none are stored."""
    column = batch.column("vector")
    if column.type.byte_width != dim * dtype.itemsize:  # no row of it has a vector
        return np.zeros((len(column), dim), dtype)
    values = np.frombuffer(column.buffers()[1], dtype, len(column) * dim, column.offset * column.type.byte_width)
    return values.reshape(-1, dim)


def piece_attributes(piece: pa.Table | pa.RecordBatch) -> dict[str, Any]:
    """Return the attribute columns by name."""
    return {
        name.removeprefix(ATTRIBUTE): piece.column(name) for name in piece.schema.names if name.startswith(ATTRIBUTE)
    }
