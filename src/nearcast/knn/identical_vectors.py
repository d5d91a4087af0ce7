"""Which vectors of a set are equal to the byte. Knows nothing of scores: a zero vector equals itself here too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nearcast.types import IntArray, Vectors

__all__ = ["Copies", "find_copies"]

BLOCK_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Copies:
    """Which items share one vector. Group g holds members[starts[g]:starts[g + 1]], positions ascending."""

    members: IntArray  # (n,)
    starts: IntArray  # (groups + 1,)

    @property
    def first(self) -> IntArray:
        """(groups,) the smallest position of each group: the one that enters the graph."""
        return self.members[self.starts[:-1]]


def find_copies(items: Vectors) -> Copies:
    """Group the items by equal bytes of their vectors; groups come in the order of their smallest position."""
    hashes = _row_hashes(items)
    order = np.argsort(hashes, kind="stable")
    new = np.ones(len(order), np.bool_)
    for start in range(1, len(order), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        before, here = order[start - 1 : start - 1 + len(order[part])], order[part]
        new[part] = hashes[here] != hashes[before]
        maybe = np.flatnonzero(~new[part])
        equal = (items.take(here[maybe]) == items.take(before[maybe])).all(axis=1)
        new[part][maybe[~equal]] = True  # two vectors of one hash: apart, at worst a group is split
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, len(order)))
    by_first = np.argsort(order[starts], kind="stable")
    sizes = sizes[by_first]
    ends = np.cumsum(sizes)
    moved = np.repeat(starts[by_first] - (ends - sizes), sizes)
    return Copies(order[np.arange(len(order)) + moved], np.append(0, ends))


def _row_hashes(items: Vectors) -> IntArray:
    """(n,) a 64-bit hash of each vector, by a fixed random combination of its components' bits."""
    factors = np.random.default_rng(0).integers(1, 1 << 62, items.dim, dtype=np.int64) | 1
    hashes = np.empty(items.n, np.int64)
    bits = {1: np.int8, 2: np.int16, 4: np.int32}[items.dtype.itemsize]
    for start in range(0, items.n, BLOCK_ROWS):
        block = np.ascontiguousarray(items.read(start, min(items.n, start + BLOCK_ROWS)))
        total = np.zeros(len(block), np.int64)
        for column, factor in zip(block.view(bits).T, factors, strict=True):
            total += column.astype(np.int64) * factor  # wraps around, as a hash may
        hashes[start : start + len(block)] = total
    return hashes
