"""What has changed between two states of one side: which ids are there still, with the same vector.

Both states are in id order, so they are compared like two sorted lists, a block at a time; neither is ever held whole.
Vectors are compared by hash, so that nobody has to keep the old ones. Knows nothing of joins.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.sources.ids import positions_of
from nearcast.types import AnyArray, IntArray, Vectors

__all__ = ["HASH_BYTES", "TableChanges", "TableState", "compare_tables", "hash_rows", "iterate_hashes"]

HASH_BYTES = 16
BLOCK_IDS = 1 << 16  # ids compared at a time: a few megabytes
BLOCK_BYTES = 4 << 20  # vectors hashed at a time

Hashes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TableState:
    """One side at some time."""

    ids: pa.Array  # (n,) sorted
    hashes: Vectors  # (n, HASH_BYTES) of its vectors, uint8


@dataclass(frozen=True, slots=True)
class TableChanges:
    """What became of the old state's rows, as far as was asked, and which rows of the new state are new."""

    now: IntArray  # (asked,) where an old position is now; -1 where its id is gone, or has another vector
    before: IntArray  # (edges,) how many ids there are now before the id that was at an old position
    fresh: IntArray  # ascending positions now whose id is new, or has another vector


def hash_rows(vectors: AnyArray) -> Hashes:
    """(n, HASH_BYTES) a hash of each row's bytes. About a microsecond a row."""
    rows = np.ascontiguousarray(vectors)
    joined = b"".join([hashlib.blake2b(row, digest_size=HASH_BYTES).digest() for row in rows])
    return np.frombuffer(joined, np.uint8).reshape(len(rows), HASH_BYTES)


def iterate_hashes(vectors: Vectors) -> Iterator[Hashes]:
    """The hashes of all vectors, block after block."""
    rows = max(1, BLOCK_BYTES // (max(1, vectors.dim) * vectors.dtype.itemsize))
    for start in range(0, vectors.n, rows):
        yield hash_rows(vectors.read(start, min(vectors.n, start + rows)))


def compare_tables(
    old: TableState, new: TableState, asked: IntArray, edges: IntArray, *, most: int
) -> TableChanges | None:
    """Compare two states of a side whose ids are of one type.

    asked, edges: ascending old positions without repetitions; an edge may be the old n, one past the end, before which
    all ids are. None as soon as more than `most` rows are fresh: then nothing is gained by knowing them.
    """
    now = np.full(len(asked), -1, np.int64)
    before = np.full(len(edges), len(new.ids), np.int64)
    fresh: list[IntArray] = []
    found = 0
    for (lo, hi), (start, stop) in _aligned(old.ids, new.ids):
        places = positions_of(new.ids[start:stop], old.ids[lo:hi])  # the ids of both sides are whole here
        there = np.flatnonzero(places >= 0)
        alike = (old.hashes.read(lo, hi)[places[there]] == new.hashes.read(start, stop)[there]).all(axis=1)
        kept = np.full(hi - lo, -1, np.int64)
        kept[places[there[alike]]] = there[alike] + start
        part = slice(*np.searchsorted(asked, [lo, hi]))
        now[part] = kept[asked[part] - lo]
        for place in range(*np.searchsorted(edges, [lo, hi])):
            before[place] = _place(new.ids, old.ids[int(edges[place])], start, stop)
        changed = np.ones(stop - start, np.bool_)
        changed[there[alike]] = False
        fresh.append(np.flatnonzero(changed) + start)
        found += len(fresh[-1])
        if found > most:
            return None
    return TableChanges(now, before, np.concatenate(fresh) if fresh else np.empty(0, np.int64))


def _aligned(old: pa.Array, new: pa.Array) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Stretches of two sorted arrays that hold the same range of ids, at most BLOCK_IDS of each."""
    lo = start = 0
    while lo < len(old) or start < len(new):
        far, ahead = min(len(old), lo + BLOCK_IDS), min(len(new), start + BLOCK_IDS)
        cuts = [ids[at] for ids, at in ((old, far), (new, ahead)) if at < len(ids)]
        if cuts:
            cut = min(cuts, key=lambda one: one.as_py())
            far, ahead = _place(old, cut, lo, far), _place(new, cut, start, ahead)
        yield (lo, far), (start, ahead)
        lo, start = far, ahead


def _place(ids: pa.Array, wanted: pa.Scalar[Any], start: int, stop: int) -> int:
    """The first place from start to stop whose id is not smaller; strings are ordered as their UTF-8 bytes are."""
    return bisect_left(ids, wanted.as_py(), start, stop, key=lambda one: one.as_py())
