"""Items in shards: ranges of positions that are joined one by one, and the exact merge of their lists.

Arrays only. Shard s of S holds positions [s * n // S, (s + 1) * n // S). A request is restricted to a shard, and the
lists of the shards are merged into the lists of all items.

Why k items per shard suffice, also under nested caps: the item sets that obey nested caps are the independent sets of a
laminar matroid, and `keep_capped` is its greedy algorithm in the order O (score descending, position ascending). Greedy
takes an item x if and only if the items before x in O do not span it. Let x be one of the first k items of the list of
all items, and let x lie in shard s.

1. Fewer items of s precede x in O than items of all shards. What a set spans grows with the set, so the items of s
   before x do not span x either: the list of s holds x.
2. The list of s holds r(P) items before x, where P are its items before x and r is the rank; the list of all items
   holds r(Q) >= r(P), where Q are all items before x. r(Q) < k, so x is among the first k of the list of s.
3. So the shards' lists hold the first k items L of the list of all items. For x in L or before its last item, L spans
   the same prefixes as all items do, so greedy on the union of the lists takes the same k items.

Rules, minimum scores and exclusions only remove items. Without caps the matroid is uniform. (Edmonds, "Matroids and the
greedy algorithm", 1971.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nearcast.knn.constraints import Cap, Constraints, keep_capped
from nearcast.knn.join_request import JoinRequest
from nearcast.knn.topk import merge
from nearcast.types import EMPTY_POSITION, IntArray, Neighbors

__all__ = ["ShardLists", "cut_items", "merge_lists", "move_positions", "place_lists", "restrict_request"]

MERGED_SLOTS = 1 << 18  # merged at a time: each takes about 200 bytes


def cut_items(n_items: int, shards: int) -> list[tuple[int, int]]:
    """Return start and stop of each shard. With fewer items than shards, some shards are empty."""
    return [(shard * n_items // shards, (shard + 1) * n_items // shards) for shard in range(shards)]


def restrict_request(request: JoinRequest, start: int, stop: int) -> JoinRequest:
    """Return the request for a join with the items start..stop-1, whose positions count from 0 there."""
    exclude = request.exclude
    if exclude is not None:
        exclude = np.where((exclude >= start) & (exclude < stop), exclude - start, EMPTY_POSITION)
    return replace(request, exclude=exclude, constraints=request.constraints.of_items(start, stop))


def move_positions(lists: Neighbors, start: int) -> Neighbors:
    """Return the lists of a shard with positions among all items. start: first position of the shard."""
    return Neighbors(np.where(lists.positions == EMPTY_POSITION, EMPTY_POSITION, lists.positions + start), lists.scores)


def place_lists(lists: Neighbors, start: int, constraints: Constraints) -> ShardLists:
    """Return the lists of a shard among all items. start: first position of the shard; constraints: of all items."""
    placed = move_positions(lists, start)
    return ShardLists(placed, constraints.find_groups(placed.positions))


@dataclass(frozen=True, slots=True)
class ShardLists:
    """Lists of a part of the items, with positions among all items, and the groups of their slots."""

    lists: Neighbors  # (n, any)
    groups: tuple[IntArray, ...] = ()  # of each cap, smallest groups first: (n, any), -1 for none

    def of_queries(self, rows: slice) -> ShardLists:
        """Return the lists of some of the queries."""
        lists = Neighbors(self.lists.positions[rows], self.lists.scores[rows])
        return ShardLists(lists, tuple(of_cap[rows] for of_cap in self.groups))

    def merge(self, others: Sequence[ShardLists], k: int, max_per_group: Sequence[int]) -> ShardLists:
        """Return the k best items per query of these lists and others, under the caps.

        The lists are of disjoint parts of the items, obey the caps, and are k or the whole part long. Groups of equal
        number are one group, whatever their parts.
        """
        parts = [self, *others]
        if not max_per_group:
            return ShardLists(merge([part.lists for part in parts], k))
        positions = np.concatenate([part.lists.positions for part in parts], axis=1)
        scores = np.concatenate([part.lists.scores for part in parts], axis=1)
        ranked = np.where(positions == EMPTY_POSITION, np.iinfo(np.int64).max, positions)
        order = np.lexsort((ranked, -scores))
        rows, slots = np.nonzero(np.take_along_axis(positions, order, 1) != EMPTY_POSITION)  # best first in each row
        slots = order[rows, slots]
        groups = [np.concatenate([part.groups[cap] for part in parts], axis=1) for cap in range(len(max_per_group))]
        caps = [_number_cap(of_cap[rows, slots], most) for of_cap, most in zip(groups, max_per_group, strict=True)]
        kept = keep_capped(rows, np.arange(len(rows)), caps)
        rows, slots = rows[kept], slots[kept]
        rank = np.arange(len(rows)) - np.searchsorted(rows, np.arange(len(positions)))[rows]
        rows, slots, rank = rows[rank < k], slots[rank < k], rank[rank < k]
        best = Neighbors.empty(len(positions), k)
        best.positions[rows, rank], best.scores[rows, rank] = positions[rows, slots], scores[rows, slots]
        merged = []
        for of_cap in groups:
            merged.append(np.full(best.positions.shape, -1, np.int64))
            merged[-1][rows, rank] = of_cap[rows, slots]
        return ShardLists(best, tuple(merged))


def merge_lists(parts: Iterable[ShardLists], k: int, max_per_group: Sequence[int]) -> Neighbors:
    """Return the k best items per query of all shards, at least one, under the caps.

    Holds two lists of a query at a time, and merges those of some queries at a time.
    """
    merged: ShardLists | None = None
    for part in parts:
        n = len(part.lists.positions)
        if merged is None:
            merged = ShardLists(Neighbors.empty(n, k), tuple(np.full((n, k), -1, np.int64) for _ in max_per_group))
        rows = max(1, MERGED_SLOTS // k)
        for start in range(0, n, rows):
            some = slice(start, start + rows)
            best = merged.of_queries(some).merge([part.of_queries(some)], k, max_per_group)
            merged.lists.positions[some], merged.lists.scores[some] = best.lists.positions, best.lists.scores
            for of_cap, found in zip(merged.groups, best.groups, strict=True):
                of_cap[some] = found
    assert merged is not None
    return merged.lists


def _number_cap(groups: IntArray, most: int) -> Cap:
    """Return a cap over slots, with groups that are numbered without gaps."""
    numbers = np.unique(groups, return_inverse=True)[1].reshape(-1)
    return Cap(np.where(groups < 0, -1, numbers).astype(np.int32), most)
