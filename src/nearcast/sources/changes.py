"""Changes of an ingested table between two states: which ids still have the same vector.

Both states are in id order, and are merged a block at a time. Vectors are compared by hash, so that old vectors need
not be stored. Knows nothing of joins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.sources.column_roles import one_array
from nearcast.sources.ids import find_ascending, lower_bound
from nearcast.types import AnyArray, IntArray, Vectors

__all__ = [
    "BLOCK_IDS",
    "HASH_BYTES",
    "Hashes",
    "TableChanges",
    "TableState",
    "align_blocks",
    "compare_tables",
    "hash_rows",
    "iterate_hashes",
    "slice_ids",
]

HASH_BYTES = 16
BLOCK_IDS = 1 << 16  # ids compared at a time: a few megabytes
BLOCK_BYTES = 4 << 20  # vectors hashed at a time

Hashes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TableState:
    """The ids and vector hashes of a table at some time."""

    ids: pa.Array | pa.ChunkedArray  # (n,) sorted
    hashes: Vectors  # (n, HASH_BYTES) uint8


@dataclass(frozen=True, slots=True)
class TableChanges:
    """New positions of old rows, and the rows that are new."""

    now: IntArray  # (positions,) new position of each old one; -1 if its id was removed or has another vector
    before: IntArray  # (edges,) number of new ids before the id at each old position
    fresh: IntArray  # ascending new positions whose id is new, or has another vector


def hash_rows(vectors: AnyArray) -> Hashes:
    """Return (n, HASH_BYTES) a hash of each row's bytes. About 1 microsecond per row."""
    rows = np.ascontiguousarray(vectors)
    joined = b"".join([hashlib.blake2b(row, digest_size=HASH_BYTES).digest() for row in rows])
    return np.frombuffer(joined, np.uint8).reshape(len(rows), HASH_BYTES)


def iterate_hashes(vectors: Vectors) -> Iterator[Hashes]:
    """Yield the hashes of all vectors, block by block."""
    rows = max(1, BLOCK_BYTES // (max(1, vectors.dim) * vectors.dtype.itemsize))
    for start in range(0, vectors.n, rows):
        yield hash_rows(vectors.read(start, min(vectors.n, start + rows)))


def compare_tables(
    old: TableState, new: TableState, positions: IntArray, edges: IntArray, *, most: int
) -> TableChanges | None:
    """Compare two states of a table whose ids have one type.

    positions, edges: ascending old positions without repetitions; an edge may be the old n, one past the end.
    Returns None as soon as more than `most` rows are fresh: an update would not be faster than a new join.
    """
    now = np.full(len(positions), -1, np.int64)
    before = np.full(len(edges), len(new.ids), np.int64)
    fresh: list[IntArray] = []
    n_fresh = 0
    for (lo, hi), (start, stop) in align_blocks(old.ids, new.ids):
        matches = find_ascending(slice_ids(new.ids, start, stop), slice_ids(old.ids, lo, hi))
        known = np.flatnonzero(matches >= 0)
        same = (old.hashes.read(lo, hi)[matches[known]] == new.hashes.read(start, stop)[known]).all(axis=1)
        kept = np.full(hi - lo, -1, np.int64)
        kept[matches[known[same]]] = known[same] + start
        part = slice(*np.searchsorted(positions, [lo, hi]))
        now[part] = kept[positions[part] - lo]
        for edge in range(*np.searchsorted(edges, [lo, hi])):
            before[edge] = lower_bound(new.ids, old.ids[int(edges[edge])].as_py(), start, stop)
        changed = np.ones(stop - start, np.bool_)
        changed[known[same]] = False
        fresh.append(np.flatnonzero(changed) + start)
        n_fresh += len(fresh[-1])
        if n_fresh > most:
            return None
    return TableChanges(now, before, np.concatenate(fresh) if fresh else np.empty(0, np.int64))


def align_blocks(old: Any, new: Any) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield ranges of two sorted arrays that hold the same range of ids, at most BLOCK_IDS of each."""
    lo = start = 0
    while lo < len(old) or start < len(new):
        far, ahead = min(len(old), lo + BLOCK_IDS), min(len(new), start + BLOCK_IDS)
        cuts = [ids[at] for ids, at in ((old, far), (new, ahead)) if at < len(ids)]
        if cuts:
            cut = min(one.as_py() for one in cuts)
            far, ahead = lower_bound(old, cut, lo, far), lower_bound(new, cut, start, ahead)
        yield (lo, far), (start, ahead)
        lo, start = far, ahead


def slice_ids(ids: Any, start: int, stop: int) -> pa.Array:
    """Return the ids start..stop-1 as one array. ids: an Arrow array, or ids in ranges."""
    part = ids[start:stop]
    return one_array(part) if isinstance(part, pa.ChunkedArray) else part
