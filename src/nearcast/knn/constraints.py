"""The constraints of a join: eligible items per query, caps on groups of items, and a minimum score.

Arrays only. `keep_capped` defines caps: take the best item whose groups all have room, until the list is full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nearcast.knn.eligible import Eligibility
from nearcast.types import IntArray

__all__ = ["FREE", "Cap", "Constraints", "find_crossing", "keep_capped"]

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Cap:
    """A list holds at most `most` items of each group."""

    groups: Int32Array  # (m,) group of each item, from 0; -1 for an item without a group
    most: int

    def of_items(self, start: int, stop: int) -> Cap:
        """Return the cap of the items start..stop-1. Groups keep their numbers."""
        return Cap(self.groups[start:stop], self.most)


@dataclass(frozen=True, slots=True, eq=False)
class Constraints:
    """The constraints on each list. Groups of several caps are nested, smallest first; see `find_crossing`."""

    eligibility: Eligibility | None = None
    caps: tuple[Cap, ...] = ()
    min_score: float | None = None

    @property
    def free(self) -> bool:
        """Return whether there are no constraints."""
        return self.eligibility is None and not self.caps and self.min_score is None

    def of_queries(self, rows: IntArray | slice) -> Constraints:
        """Return the constraints of some of the queries, in this order."""
        if self.eligibility is None:
            return self
        return replace(self, eligibility=self.eligibility.of_queries(rows))

    def ranges(self, n_items: int) -> Sequence[tuple[int, int]]:
        """Return the ranges of items that `of_items` may be called for, in order: all items at once."""
        return [(0, n_items)]

    def without_min_score(self) -> Constraints:
        """Return the constraints without a minimum score."""
        return replace(self, min_score=None)

    def of_items(self, start: int, stop: int) -> Constraints:
        """Return the constraints on lists of the items start..stop-1."""
        eligibility = None if self.eligibility is None else self.eligibility.of_items(slice(start, stop))
        return replace(self, eligibility=eligibility, caps=tuple(cap.of_items(start, stop) for cap in self.caps))

    def with_limits(self, limits: Sequence[int]) -> Constraints:
        """Return the constraints with other limits of the caps."""
        pairs = zip(self.caps, limits, strict=True)
        return replace(self, caps=tuple(Cap(cap.groups, most) for cap, most in pairs))

    def choose_items(self, positions: IntArray) -> Constraints:
        """Return the constraints on lists of the items at these positions, in this order. Groups keep their numbers."""
        eligibility = None if self.eligibility is None else self.eligibility.of_items(positions)
        caps = tuple(Cap(cap.groups[positions], cap.most) for cap in self.caps)
        return replace(self, eligibility=eligibility, caps=caps)

    @property
    def max_per_group(self) -> tuple[int, ...]:
        """Return the limit of each cap."""
        return tuple(cap.most for cap in self.caps)

    def find_groups(self, positions: IntArray) -> tuple[IntArray, ...]:
        """Return the groups of items for each cap, in the shape of `positions`; -1 for none and for position -1."""
        empty = positions < 0
        if empty.all():  # there may be no items
            return tuple(np.full(positions.shape, -1, np.int64) for _ in self.caps)
        return tuple(np.where(empty, -1, cap.groups[np.where(empty, 0, positions)]) for cap in self.caps)


FREE = Constraints()


def find_crossing(inner: Cap, outer: Cap) -> tuple[int, int] | None:
    """Return two items of one inner group that are in different outer groups; None if the groups are nested."""
    grouped = np.flatnonzero(inner.groups >= 0)
    order = grouped[np.argsort(inner.groups[grouped], kind="stable")]
    same = inner.groups[order][1:] == inner.groups[order][:-1]
    crossing = np.flatnonzero(same & (outer.groups[order][1:] != outer.groups[order][:-1]))
    return (int(order[crossing[0]]), int(order[crossing[0] + 1])) if len(crossing) else None


def keep_capped(rows: IntArray, positions: IntArray, caps: Sequence[Cap]) -> npt.NDArray[np.bool_]:
    """Return (m,) flags of the (row, position) pairs that the caps keep. Pairs of a row come best first.

    Nested caps are applied one after the other, smallest groups first: the result is that of greedy selection under
    all caps at once.
    """
    kept = np.ones(len(rows), np.bool_)
    for cap in caps:
        grouped = np.flatnonzero(kept & (cap.groups[positions] >= 0))
        keys = rows[grouped] * (int(cap.groups.max(initial=-1)) + 1) + cap.groups[positions[grouped]]
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else np.empty(0, np.int64)
        rank = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.append(starts, len(ordered))))
        kept[grouped[order[rank >= cap.most]]] = False
    return kept
