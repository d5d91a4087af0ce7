"""Ids and positions: the order of ids, which of them occur twice, and where an id is.

The order is that of integers, or of the UTF-8 bytes of strings: the same on every machine and in every
locale. Knows nothing of vectors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.types import IntArray

__all__ = ["order_of", "positions_of", "read_ids", "repeats", "shared_positions", "to_ids", "write_ids"]


def order_of(ids: pa.Array) -> IntArray:
    """(n,) the rows in the order of their ids; equal ids stay in the order of their rows; nulls go last."""
    order: IntArray = pc.array_sort_indices(ids).to_numpy().astype(np.int64)
    return order


def repeats(ids: pa.Array, order: IntArray) -> npt.NDArray[np.bool_]:
    """(n,) whether each row's id has occurred in a row before it. Nulls repeat nothing."""
    repeated = np.zeros(len(ids), np.bool_)
    if len(ids) > 1:
        ordered = ids.take(pa.array(order))
        same = pc.fill_null(pc.equal(ordered[1:], ordered[:-1]), False).to_numpy(zero_copy_only=False)
        repeated[order[1:][same]] = True
    return repeated


def positions_of(wanted: pa.Array, ids: pa.Array) -> IntArray:
    """(len(wanted),) the position of each wanted id among `ids`, -1 where it is not there."""
    found: IntArray = (
        pc.fill_null(pc.index_in(wanted.cast(ids.type), value_set=ids), -1).to_numpy(zero_copy_only=False)
    ).astype(np.int64)
    return found


def shared_positions(query_ids: pa.Array, item_ids: pa.Array) -> IntArray:
    """(queries,) the position of the item that has the query's own id, -1 where none has."""
    if query_ids.type != item_ids.type:
        return np.full(len(query_ids), -1, np.int64)
    return positions_of(query_ids, item_ids)


def to_ids(positions: IntArray, ids: pa.Array) -> pa.Array:
    """The ids at these positions."""
    return ids.take(pa.array(positions))


def write_ids(path: Path, ids: pa.Array) -> None:
    """Keep ids in an Arrow file that `read_ids` maps."""
    table = pa.table({"id": ids})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read_ids(path: Path) -> pa.Array:
    """Ids as one array, mapped from the file rather than read."""
    column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("id")
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
