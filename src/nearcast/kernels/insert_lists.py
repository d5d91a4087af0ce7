"""Insert a few candidates into many sorted lists, in the bytes in which a store keeps them (docs/store-format.md).

Native only: without the kernels, lists are decoded and merged by `knn.update_lists`. Knows no stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.kernels import isa as _isa
from nearcast.types import FloatArray, IntArray

__all__ = ["EncodedIds", "Entrants", "InsertedLists", "can_insert", "insert_candidates"]

LONGEST_ID = 0xFFFF  # bytes
UNCHANGED, CHANGED = 0, 1


@dataclass(frozen=True, slots=True, eq=False)
class EncodedIds:
    """Ids of items as a store encodes them, in the order of ids."""

    kind: int  # of `stores.value_format`
    numbers: npt.NDArray[np.int64]  # (m,) of integers
    offsets: npt.NDArray[np.uint64]  # (m + 1,) of texts
    texts: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Entrants:
    """Candidates that may enter lists: of list i, those of starts[i]..starts[i + 1]."""

    starts: npt.NDArray[np.uint64]  # (n + 1,)
    items: npt.NDArray[np.uint32]  # rows of `EncodedIds`
    scores: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class InsertedLists:
    """The lists that changed."""

    rows: IntArray  # (c,) ascending
    values: list[bytes]  # (c,)
    last: FloatArray  # (n,) last score of every list, 0 for those of `other`
    other: IntArray  # rows of values that are no full lists of k: they are left as they are


def can_insert(ids: EncodedIds) -> bool:
    """Return whether `insert_candidates` takes these ids on this machine."""
    lengths = np.diff(ids.offsets.astype(np.int64))
    return _isa.isa_info().taken != _isa.NUMPY and int(lengths.max(initial=0)) <= LONGEST_ID


def insert_candidates(
    values: Sequence[bytes], entrants: Entrants, ids: EncodedIds, k: int, threads: int
) -> InsertedLists:
    """Merge entrants into lists of k and keep the k best of each; equal scores go to the smaller id.

    No list may hold one of its entrants already.
    """
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    starts = np.append(0, np.cumsum(sizes)).astype(np.uint64)
    data = np.frombuffer(b"".join(values), np.uint8)
    out, out_starts, out_sizes, states, last = _isa.native().insert_candidates(
        data,
        starts,
        entrants.starts,
        entrants.items,
        entrants.scores,
        ids.kind,
        ids.numbers,
        ids.offsets,
        ids.texts,
        k,
        threads,
    )
    rows = np.flatnonzero(states == CHANGED)
    lists = _split(out, out_starts[rows].astype(np.int64), out_sizes[rows].astype(np.int64))
    return InsertedLists(rows, lists, last, np.flatnonzero(states > CHANGED))


def _split(data: npt.NDArray[np.uint8], starts: IntArray, sizes: IntArray) -> list[bytes]:
    """Return the pieces of these bytes; pieces of one size are split in C."""
    if not len(starts):
        return []
    size = int(sizes[0])
    if (sizes == size).all() and not (starts % size).any():
        pieces: list[bytes] = data[: len(data) // size * size].view(f"V{size}")[starts // size].tolist()
        return pieces
    raw = data.tobytes()
    return [raw[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]
