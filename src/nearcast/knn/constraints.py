"""What a list must obey besides being nearest: which items a query may get, how many of a group, and how good.

Arrays only. `keep_capped` is the definition of caps: take the best item whose groups all have room, again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nearcast.knn.eligible import Eligibility
from nearcast.types import IntArray

__all__ = ["FREE", "Cap", "Constraints", "crossing_items", "keep_capped"]

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Cap:
    """A list holds at most `most` items of each group."""

    groups: Int32Array  # (m,) group of each item, from 0; -1 for an item that no cap concerns
    most: int


@dataclass(frozen=True, slots=True, eq=False)
class Constraints:
    """All that a list must obey. Groups of several caps are nested, the smallest first; see `crossing_items`."""

    eligibility: Eligibility | None = None
    caps: tuple[Cap, ...] = ()
    min_score: float | None = None

    @property
    def free(self) -> bool:
        """Whether there is nothing to obey."""
        return self.eligibility is None and not self.caps and self.min_score is None

    def of_queries(self, rows: IntArray | slice) -> Constraints:
        """The same for some of the queries, in this order."""
        if self.eligibility is None:
            return self
        return replace(self, eligibility=self.eligibility.of_queries(rows))


FREE = Constraints()


def crossing_items(inner: Cap, outer: Cap) -> tuple[int, int] | None:
    """Two items of one inner group that are in different outer groups, or None where the groups are nested."""
    grouped = np.flatnonzero(inner.groups >= 0)
    order = grouped[np.argsort(inner.groups[grouped], kind="stable")]
    same = inner.groups[order][1:] == inner.groups[order][:-1]
    crossing = np.flatnonzero(same & (outer.groups[order][1:] != outer.groups[order][:-1]))
    return (int(order[crossing[0]]), int(order[crossing[0] + 1])) if len(crossing) else None


def keep_capped(rows: IntArray, positions: IntArray, caps: Sequence[Cap]) -> npt.NDArray[np.bool_]:
    """(m,) which of these (row, position) pairs stay. Pairs of a row come best first; rows may be mixed.

    Nested caps can be applied one after the other, the smallest groups first: what stays is what taking greedily
    under all of them at once would take.
    """
    kept = np.ones(len(rows), np.bool_)
    for cap in caps:
        places = np.flatnonzero(kept & (cap.groups[positions] >= 0))
        keys = rows[places] * (int(cap.groups.max(initial=-1)) + 1) + cap.groups[positions[places]]
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else np.empty(0, np.int64)
        rank = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.append(starts, len(ordered))))
        kept[places[order[rank >= cap.most]]] = False
    return kept
