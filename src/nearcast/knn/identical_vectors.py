"""Groups of vectors with equal bytes. Knows nothing of scores: zero vectors are equal here, too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nearcast.types import IntArray, Vectors

__all__ = ["Copies", "find_copies"]

BLOCK_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Copies:
    """Groups of items with equal vectors. Group g holds members[starts[g]:starts[g + 1]], positions ascending."""

    members: IntArray  # (n,)
    starts: IntArray  # (groups + 1,)

    @property
    def first(self) -> IntArray:
        """Return (groups,) the smallest position of each group."""
        return self.members[self.starts[:-1]]


def find_copies(items: Vectors) -> Copies:
    """Group the items by equal bytes of their vectors, in the order of the smallest positions."""
    hashes = _hash_rows(items)
    order = np.argsort(hashes, kind="stable")
    new = np.ones(len(order), np.bool_)
    for start in range(1, len(order), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        before, here = order[start - 1 : start - 1 + len(order[part])], order[part]
        new[part] = hashes[here] != hashes[before]
        maybe = np.flatnonzero(~new[part])
        equal = (items.take(here[maybe]) == items.take(before[maybe])).all(axis=1)
        new[part][maybe[~equal]] = True  # different vectors with one hash; at worst a group is split
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, len(order)))
    by_first = np.argsort(order[starts], kind="stable")
    sizes = sizes[by_first]
    ends = np.cumsum(sizes)
    moved = np.repeat(starts[by_first] - (ends - sizes), sizes)
    return Copies(order[np.arange(len(order)) + moved], np.append(0, ends))


def _hash_rows(items: Vectors) -> IntArray:
    """Return (n,) a 64-bit hash of each vector: a fixed random combination of its components' bits."""
    factors = np.random.default_rng(0).integers(1, 1 << 62, items.dim, dtype=np.int64) | 1
    hashes = np.empty(items.n, np.int64)
    bits = {1: np.int8, 2: np.int16, 4: np.int32}[items.dtype.itemsize]
    for start in range(0, items.n, BLOCK_ROWS):
        block = np.ascontiguousarray(items.read(start, min(items.n, start + BLOCK_ROWS)))
        total = np.zeros(len(block), np.int64)
        for column, factor in zip(block.view(bits).T, factors, strict=True):
            total += column.astype(np.int64) * factor  # overflow wraps around
        hashes[start : start + len(block)] = total
    return hashes
