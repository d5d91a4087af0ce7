"""Which ads each item has, in memory: so the second step of a call asks no store. Knows nothing of stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.types import IntArray, flat

__all__ = ["Links", "links_of"]

Offsets = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """The ads of n items: item i has positions[offsets[i]:offsets[i + 1]]."""

    numbers: IntArray | None  # (n,) the ids of the items, ascending, where they are numbers
    places: Mapping[bytes, int]  # of each item's key, where they are text
    offsets: Offsets  # (n + 1,)
    positions: Positions  # of ads: four bytes a link

    def of(self, items: IntArray | Sequence[bytes]) -> tuple[IntArray, IntArray]:
        """(pairs,) places among these items, ascending, and positions of their ads. An item may have none.

        items: ids where ids are numbers, else keys.
        """
        if not isinstance(items, np.ndarray):
            found = np.fromiter((self.places.get(key, -1) for key in items), np.int64, len(items))
            there = np.flatnonzero(found >= 0)
        else:
            assert self.numbers is not None
            found = np.searchsorted(self.numbers, items)
            inside = np.flatnonzero(found < len(self.numbers))
            there = inside[self.numbers[found[inside]] == items[inside]]
        rows = found[there]
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        return np.repeat(there, ends - starts), self.positions[flat(starts, ends)].astype(np.int64)


def links_of(keys: IntArray | Sequence[bytes], lengths: IntArray, positions: IntArray) -> Links:
    """The links of items in any order: item i has the next lengths[i] of the positions."""
    offsets = np.append(0, np.cumsum(lengths))
    if not isinstance(keys, np.ndarray):
        places = {key: place for place, key in enumerate(keys)}
        return Links(None, places, offsets, positions.astype(np.int32))
    order = np.argsort(keys, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        positions = positions[flat(offsets[order], offsets[order + 1])]
        offsets = np.append(0, np.cumsum(lengths[order]))
    return Links(keys[order], {}, offsets, positions.astype(np.int32))
