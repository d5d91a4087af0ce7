"""The ads of each item in memory, so that a call reads no store for its second step. Knows nothing of stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.types import IntArray, flat

__all__ = ["ItemLinks", "build_links"]

Offsets = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class ItemLinks:
    """The ads of n items: item i has positions[offsets[i]:offsets[i + 1]]."""

    numbers: IntArray | None  # (n,) the ids of the items, ascending; None for ids that are text
    rows: Mapping[bytes, int]  # of each item's key; empty for ids that are numbers
    offsets: Offsets  # (n + 1,)
    positions: Positions  # (links,) of the ads, in 4 bytes each

    def find(self, items: IntArray | Sequence[bytes]) -> tuple[IntArray, IntArray]:
        """Return (pairs,) indices into `items`, ascending, and (pairs,) positions of their ads.

        items: ids that are numbers, else keys. An item may have no ads.
        """
        if not isinstance(items, np.ndarray):
            found = np.fromiter((self.rows.get(key, -1) for key in items), np.int64, len(items))
            known = np.flatnonzero(found >= 0)
        else:
            assert self.numbers is not None
            found = np.searchsorted(self.numbers, items)
            in_range = np.flatnonzero(found < len(self.numbers))
            known = in_range[self.numbers[found[in_range]] == items[in_range]]
        rows = found[known]
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        return np.repeat(known, ends - starts), self.positions[flat(starts, ends)].astype(np.int64)


def build_links(keys: IntArray | Sequence[bytes], lengths: IntArray, positions: IntArray) -> ItemLinks:
    """Return the links of items in any order: item i has the next lengths[i] of the positions."""
    offsets = np.append(0, np.cumsum(lengths))
    if not isinstance(keys, np.ndarray):
        rows = {key: row for row, key in enumerate(keys)}
        return ItemLinks(None, rows, offsets, positions.astype(np.int32))
    order = np.argsort(keys, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        positions = positions[flat(offsets[order], offsets[order + 1])]
        offsets = np.append(0, np.cumsum(lengths[order]))
    return ItemLinks(keys[order], {}, offsets, positions.astype(np.int32))
