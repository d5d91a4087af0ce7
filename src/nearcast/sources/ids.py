"""Ids and positions: the order of ids, which of them occur twice, and where an id is.

The order is that of integers, or of the UTF-8 bytes of strings: the same on every machine and in every
locale. Knows nothing of vectors.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import DamagedError
from nearcast.types import IntArray

__all__ = [
    "hash_ids",
    "order_of",
    "positions_of",
    "read_ids",
    "repeats",
    "sample_rows_by_hash",
    "shared_positions",
    "to_ids",
    "write_ids",
]

HASH_BASE = 0x5851F42D4C957F2D


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


def hash_ids(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """(n,) a 64-bit hash of each id, the same on every machine; ids are int64 or strings without nulls.

    Of a string: the sum of its bytes, each times a power of an odd number by its place, and its length. Mixed as in
    SplitMix64. Not made to withstand an attacker.
    """
    if pa.types.is_integer(ids.type):
        return _mixed(ids.to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64))
    ids = ids.cast(pa.large_string())
    if len(ids) == 0:
        return np.empty(0, np.uint64)
    _, places, data = ids.buffers()
    offsets = np.frombuffer(places, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    text = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]].astype(np.uint64) + np.uint64(1)
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    powers = np.cumprod(np.full(int(lengths.max(initial=0)) + 1, HASH_BASE, np.uint64))
    text *= powers[np.arange(len(text)) - np.repeat(starts, lengths)]
    sums = np.append(np.uint64(0), np.cumsum(text, dtype=np.uint64))
    return _mixed(sums[starts + lengths] - sums[starts] + lengths.astype(np.uint64))


def sample_rows_by_hash(ids: Iterable[pa.Array], size: int) -> IntArray:
    """(up to size,) the rows with the smallest hashes of their ids, the smallest first: the same ids from day to day.

    ids: of all rows, in pieces.
    """
    rows, hashes, first = np.empty(0, np.int64), np.empty(0, np.uint64), 0
    for piece in ids:
        rows = np.concatenate([rows, np.arange(first, first + len(piece))])
        hashes = np.concatenate([hashes, hash_ids(piece)])
        order = np.argsort(hashes, kind="stable")[:size]
        rows, hashes, first = rows[order], hashes[order], first + len(piece)
    return rows


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's last steps: numbers that are near each other become far from each other."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def write_ids(path: Path, ids: pa.Array) -> None:
    """Keep ids in an Arrow file that `read_ids` maps."""
    table = pa.table({"id": ids})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read_ids(path: Path) -> pa.Array:
    """Return ids as one array, mapped from the file rather than read. Raise DamagedError where it is not whole."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # offsets beyond the text would be read beyond the file
        column = table.column("id")
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DamagedError(f"{path} is damaged ({error}); remove {path.parent} and run again") from error
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
