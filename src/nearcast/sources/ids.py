"""Ids and positions: sort ids, find repeated ids, look up positions, hash ids.

Integers are ordered by value, strings by their UTF-8 bytes: the same on every machine and in every locale. Knows
nothing of vectors.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import DamagedError
from nearcast.kernels.match_rows import Texts, can_match, gather_texts, match_texts
from nearcast.types import IntArray

__all__ = [
    "COMPARED_BYTES",
    "SearchedIds",
    "are_distinct",
    "argsort_ids",
    "find_ascending",
    "find_positions",
    "find_sorted",
    "find_sorted_numbers",
    "hash_ids",
    "id_sizes",
    "lower_bound",
    "read_id_chunks",
    "read_ids",
    "repeats",
    "sample_rows_by_hash",
    "shared_positions",
    "take_ids",
    "to_ids",
    "write_ids",
]

HASH_BASE = 0x5851F42D4C957F2D
IDS_AT_ONCE = 1 << 20  # of ids in ranges
HASHED_BYTES = 1 << 20  # of texts that are hashed at a time
LONG_ID_BYTES = 72  # of an id and its offset: a hash table would hold a copy of longer ones
COMPARED_BYTES = 8 << 20  # of ids in their order, which are compared with their neighbors
MOST_VALIDATED = 64  # files whose ids are known to be whole
FEW_KEYS = 16  # a hash table of the ids is slower for fewer keys than a 16th of them

FileState = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of the last change of contents and of status."""

_validated: dict[FileState, None] = {}  # in the order of their validation


def argsort_ids(ids: pa.Array) -> IntArray:
    """Return (n,) row numbers in the order of ids. Equal ids keep the order of rows; nulls go last."""
    order: IntArray = pc.array_sort_indices(ids).to_numpy().astype(np.int64)
    return order


def are_distinct(ids: pa.Array) -> bool:
    """Return whether all ids differ. ids: without nulls."""
    if pa.types.is_integer(ids.type):
        ordered = np.sort(ids.to_numpy(zero_copy_only=False))
        return not (ordered[1:] == ordered[:-1]).any()
    if ids.nbytes > LONG_ID_BYTES * len(ids):
        return not repeats(ids, argsort_ids(ids)).any()
    return bool(pc.count_distinct(ids).as_py() == len(ids))


def repeats(ids: pa.Array, order: IntArray) -> npt.NDArray[np.bool_]:
    """Return (n,) whether an earlier row has the same id. False for nulls."""
    repeated = np.zeros(len(ids), np.bool_)
    step = max(1, COMPARED_BYTES * len(ids) // max(1, ids.nbytes))
    for start in range(0, len(ids) - 1, step):
        rows = order[start : start + step + 1]
        ordered = ids.take(pa.array(rows))
        same = pc.fill_null(pc.equal(ordered[1:], ordered[:-1]), False).to_numpy(zero_copy_only=False)
        repeated[rows[1:][same]] = True
    return repeated


class SearchedIds(Protocol):
    """Sorted ids that are too many for one array, and search themselves."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any:
        """Return one id as an Arrow scalar, or the ids of a slice as an Arrow array."""
        ...

    @property
    def type(self) -> pa.DataType:
        """int64 or large_string."""
        ...

    def find(self, keys: pa.Array) -> IntArray:
        """Return (len(keys),) the position of each key, -1 for a missing one."""
        ...


def find_positions(keys: pa.Array, ids: pa.Array | SearchedIds) -> IntArray:
    """Return (len(keys),) the position of each key in `ids`, -1 for a missing key."""
    if not isinstance(ids, pa.Array | pa.ChunkedArray):
        return ids.find(keys)
    positions: IntArray = (
        pc.fill_null(pc.index_in(keys.cast(ids.type), value_set=ids), -1).to_numpy(zero_copy_only=False)
    ).astype(np.int64)
    return positions


def find_sorted_numbers(values: IntArray, ordered: IntArray) -> IntArray:
    """Return the index of each value in an ascending array of at least one number, -1 if it is not there."""
    slots = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.where(ordered[slots] == values, slots, -1)


def find_sorted(keys: pa.Array, ids: pa.Array | SearchedIds) -> IntArray:
    """Return (len(keys),) the position of each key in sorted ids of the same type, -1 for a missing key.

    keys: without nulls. Few keys are searched for by halving; many strings through a hash table of `ids`, long ones in
    their order.
    """
    if not isinstance(ids, pa.Array):
        return ids.find(keys)
    if len(ids) == 0 or len(keys) == 0:
        return np.full(len(keys), -1, np.int64)
    if pa.types.is_integer(ids.type):
        return find_sorted_numbers(*(part.to_numpy(zero_copy_only=False) for part in (keys, ids)))
    if len(keys) * FEW_KEYS > len(ids) and ids.nbytes > LONG_ID_BYTES * len(ids) and can_match():
        encoded = keys.dictionary_encode()
        order = argsort_ids(encoded.dictionary)
        found = np.empty(len(order), np.int64)
        found[order] = find_ascending(encoded.dictionary.take(pa.array(order)), ids)
        positions: IntArray = found[encoded.indices.to_numpy()]
        return positions
    if len(keys) * FEW_KEYS > len(ids):
        return find_positions(keys, ids)
    low, high = np.zeros(len(keys), np.int64), np.full(len(keys), len(ids), np.int64)
    while (low < high).any():
        middle = np.minimum((low + high) // 2, len(ids) - 1)
        is_less = pc.less(ids.take(pa.array(middle)), keys).to_numpy(zero_copy_only=False) & (low < high)
        low, high = np.where(is_less, middle + 1, low), np.where(is_less, high, np.minimum(high, middle))
    at = np.minimum(low, len(ids) - 1)
    is_found = pc.equal(ids.take(pa.array(at)), keys).to_numpy(zero_copy_only=False)
    return np.where(is_found, at, -1)


def find_ascending(keys: pa.Array, ids: pa.Array) -> IntArray:
    """Return (len(keys),) the position of each key in `ids`, -1 for a missing key: one pass over both.

    Both are sorted, of the same type, and hold each id once.
    """
    if len(keys) and len(ids) and pa.types.is_large_string(ids.type) and can_match():
        return match_texts(_split_texts(keys), _split_texts(ids))
    return find_sorted(keys, ids)


def _split_texts(ids: pa.Array) -> Texts:
    """Return the offsets and the bytes of large strings, without a copy."""
    _, offset_bytes, text = ids.buffers()
    offsets = np.frombuffer(offset_bytes, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    return offsets, np.frombuffer(text or b"", np.uint8)


def id_sizes(ids: pa.Array) -> IntArray:
    """Return (n,) the bytes of each id: of its text, or 8 of an integer."""
    if not pa.types.is_large_string(ids.type):
        return np.full(len(ids), 8, np.int64)
    sizes: IntArray = np.diff(_split_texts(ids)[0])
    return sizes


def lower_bound(ids: pa.Array, key: Any, start: int, stop: int) -> int:
    """Return the first position in start..stop of sorted ids whose id is not smaller than `key`."""
    return bisect_left(ids, key, start, stop, key=lambda one: one.as_py())  # code points sort as UTF-8 bytes do


def shared_positions(query_ids: pa.Array, item_ids: pa.Array | SearchedIds) -> IntArray:
    """Return (queries,) the position of the item with the query's id, -1 if there is none."""
    if query_ids.type != item_ids.type:
        return np.full(len(query_ids), -1, np.int64)
    return find_positions(query_ids, item_ids)


def to_ids(positions: IntArray, ids: Any) -> pa.Array:
    """Return the ids at these positions."""
    return ids.take(pa.array(positions))


def take_ids(positions: IntArray, ids: pa.Array | SearchedIds) -> pa.Array:
    """Return the ids at these positions, several times faster than `to_ids`: texts as `string` where that can be."""
    if len(positions) and isinstance(ids, pa.Array) and pa.types.is_large_string(ids.type) and can_match():
        gathered = gather_texts(_split_texts(ids), positions)
        if gathered is not None:
            return pa.StringArray.from_buffers(len(positions), *(pa.py_buffer(part) for part in gathered))
    return to_ids(positions, ids)


def hash_ids(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """Return (n,) a 64-bit hash of each id, equal on every machine. ids: int64 or strings, without nulls.

    A string is a polynomial of its bytes in an odd number, plus its length; then the mixer of SplitMix64. Not
    cryptographic.
    """
    if pa.types.is_integer(ids.type):
        return _mix(ids.to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64))
    ids = ids.cast(pa.large_string())
    if len(ids) == 0:
        return np.empty(0, np.uint64)
    offsets, text = _split_texts(ids)
    hashes, start = np.empty(len(ids), np.uint64), 0
    while start < len(ids):  # the numbers of a text take many times its bytes
        stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + HASHED_BYTES, "right")) - 1)
        hashes[start:stop] = _hash_texts(offsets[start : stop + 1], text)
        start = min(len(ids), stop)
    return _mix(hashes)


def _hash_texts(offsets: IntArray, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return (len(offsets) - 1,) the polynomials of the texts between the offsets, plus their lengths."""
    text = data[offsets[0] : offsets[-1]].astype(np.uint64) + np.uint64(1)
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    powers = np.cumprod(np.full(int(lengths.max(initial=0)) + 1, HASH_BASE, np.uint64))
    text *= powers[np.arange(len(text)) - np.repeat(starts, lengths)]
    sums = np.append(np.uint64(0), np.cumsum(text, dtype=np.uint64))
    hashes: npt.NDArray[np.uint64] = sums[starts + lengths] - sums[starts] + lengths.astype(np.uint64)
    return hashes


def sample_rows_by_hash(ids: Iterable[pa.Array], size: int, seed: int = 0) -> IntArray:
    """Return up to `size` rows with the smallest hashes of ids, the smallest first: the same ids every day.

    ids: of all rows, in pieces. seed: of another order.
    """
    rows, hashes, first = np.empty(0, np.int64), np.empty(0, np.uint64), 0
    salt = np.uint64(seed * HASH_BASE % 2**64)
    for piece in ids:
        rows = np.concatenate([rows, np.arange(first, first + len(piece))])
        hashes = np.concatenate([hashes, hash_ids(piece) ^ salt])
        order = np.argsort(hashes, kind="stable")[:size]
        rows, hashes, first = rows[order], hashes[order], first + len(piece)
    return rows


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply the mixer of SplitMix64, so that similar numbers get unrelated hashes."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def write_ids(path: Path, ids: pa.Array | SearchedIds) -> None:
    """Write ids to an Arrow file that `read_ids` can map. Those in ranges are written in several batches."""
    step = max(1, len(ids)) if isinstance(ids, pa.Array) else IDS_AT_ONCE
    schema = pa.schema([("id", ids.type)])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, max(1, len(ids)), step):
            writer.write_table(pa.table({"id": ids[start : start + step]}, schema))


def read_ids(path: Path) -> pa.Array:
    """Map the ids of a file as one array. Raises DamagedError if the file is not whole."""
    column = read_id_chunks(path)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def read_id_chunks(path: Path) -> pa.ChunkedArray:
    """Map the ids of a file, in the batches that were written. Raises DamagedError if the file is not whole."""
    try:
        state = _read_state(path)
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if state not in _validated or _read_state(path) != state:
            table.validate(full=True)  # offsets beyond the text would be read beyond the file
            _validated[state] = None
            for oldest in list(_validated)[:-MOST_VALIDATED]:
                _validated.pop(oldest, None)  # another thread may have done it
        return table.column("id")
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DamagedError(f"{path} is damaged ({error}); remove {path.parent} and run again") from error


def _read_state(path: Path) -> FileState:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
