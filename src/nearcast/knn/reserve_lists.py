"""Reserves: lists that are stored wider than requested, and updated by the next run instead of joined again.

A reserve knows all items above its bound (`knn.update_lists`), except those that a cap leaves out. Why a list under
caps can be cut from an updated reserve, bit for bit equal to the list of a full join:

1. A reserve is the greedy list of `keep_capped` under relaxed limits; under the limits themselves where several caps
   are nested. An unknown item x above the bound was left out because a group g with x was full: as many items of g as
   the relaxed limit precede x in the reserve. Their slots are marked as proving. So every unknown item of g above the
   bound comes after all proving slots of g.
2. Items are removed. While at least c proving slots of g are left, where c is the limit of the cap, these c items span
   x under the caps: of one cap, they are c items of g; of nested caps, they are part of a list that obeys all limits,
   so they are independent, and c of them fill g. Greedy does not take x. With fewer, the list counts as unknown.
3. New items are merged in under the relaxed limits. Items that this leaves out come after as many items of g in the
   merged list as the relaxed limit. If no slot of g was proving, all slots of g prove from now on. If some were, only
   those up to the last one of these: an item after it may come after an unknown item. They also precede what the merge
   left out.
4. Above the bound, greedy under the limits takes the same items from the reserve as from all items, since what is not
   in the reserve is spanned by items of the reserve that precede it. The list is complete with k items, or if the
   bound is -inf: rules, minimum scores and exclusions only remove items.

One cap of limit c: of r slots at least r * c / relaxed obey the limit, so that a full reserve of `width` has k items.
Arrays only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nearcast.knn.item_shards import ShardLists
from nearcast.knn.update_lists import KnownLists, bound_lists, move_lists, update_lists
from nearcast.types import EMPTY_POSITION, IntArray, Neighbors

__all__ = [
    "FindGroups",
    "Reserve",
    "ReserveShape",
    "are_enough",
    "cut_reserve",
    "make_reserve",
    "plan_reserve",
    "update_reserve",
    "wrap_free",
]

BoolArray = npt.NDArray[np.bool_]
FindGroups = Callable[[IntArray], tuple[IntArray, ...]]
"""Returns the group of each position for each cap, in the shape of the positions; equal groups have equal numbers."""

FEWEST_MORE = 16  # slots of a reserve beyond the list


@dataclass(frozen=True, slots=True)
class ReserveShape:
    """The size of a list and of its reserve, and the limits of both."""

    k: int
    width: int
    max_per_group: tuple[int, ...] = ()  # of each cap, smallest groups first
    relaxed: tuple[int, ...] = ()  # of the reserve

    @property
    def list_bytes(self) -> int:
        """Return the bytes of one stored reserve: positions, scores and bound, and labels and proofs of each cap."""
        return self.width * (8 + 5 * len(self.relaxed)) + 12


@dataclass(frozen=True, slots=True)
class Reserve:
    """The reserves of some queries: wide lists, and the slots that prove what caps left out."""

    known: KnownLists
    labels: IntArray  # (caps, n, width) first slot of the list with the same group, -1 for no group
    proving: BoolArray  # (caps, n, width)

    def rows(self, chosen: IntArray | BoolArray) -> Reserve:
        """Return the reserves of some of the queries."""
        return Reserve(self.known.rows(chosen), self.labels[:, chosen], self.proving[:, chosen])


def plan_reserve(k: int, max_per_group: Sequence[int]) -> ReserveShape:
    """Choose the width of the reserves of lists of k, and relaxed limits of a single cap."""
    limits = tuple(max_per_group)
    relaxed = (limits[0] + max(1, limits[0] // 2),) if len(limits) == 1 else limits
    width = k + max(FEWEST_MORE, k // 2)
    if relaxed != limits:
        width = -(-width * relaxed[0] // limits[0])
    return ReserveShape(k, width, limits, relaxed)


def make_reserve(best: Neighbors, shape: ReserveShape, find_groups: FindGroups) -> Reserve:
    """Return the reserves of lists that were joined with all items, `shape.width` wide, under the relaxed limits."""
    groups = find_groups(best.positions) if shape.relaxed else ()
    return _mark(bound_lists(best), groups, np.zeros((len(groups), *best.positions.shape), np.bool_), shape)


def wrap_free(known: KnownLists) -> Reserve:
    """Return the reserves of lists without caps."""
    empty = (0, *known.best.positions.shape)
    return Reserve(known, np.zeros(empty, np.int64), np.zeros(empty, np.bool_))


def are_enough(reserve: Reserve, left: BoolArray, shape: ReserveShape) -> BoolArray:
    """Return (n,) whether the list of each reserve is proven complete, before new items are merged into it.

    left: (n, width) whether every slot has an item that was neither removed nor changed. New items leave complete lists
    complete: above the bound they only add to what a list can take.
    """
    known, unbounded = reserve.known, np.isneginf(reserve.known.bound_scores)
    if not shape.relaxed:
        enough: BoolArray = (np.count_nonzero(left, axis=1) >= shape.k) | unbounded
        return enough
    positions = np.where(left, known.best.positions, EMPTY_POSITION)
    best = Neighbors(positions, np.where(left, known.best.scores, np.float32(-np.inf)))
    lengths = cut_reserve(replace(reserve, known=replace(known, best=best)), shape).lengths
    return _are_proven(reserve, left, shape) & ((lengths >= shape.k) | unbounded)


def update_reserve(
    reserve: Reserve,
    moved: tuple[IntArray, IntArray],
    fresh: Neighbors,
    shape: ReserveShape,
    find_groups: FindGroups,
) -> tuple[Reserve, BoolArray]:
    """Return the reserves among the current items, and (n,) whether the list of each is proven complete.

    moved: (n, width) new position of every slot's item, -1 if it was removed or changed, and (n,) new edges of the
    bounds. fresh: (n, any) lists of the new and changed items, under the relaxed limits.
    """
    positions, edges = moved
    filled = reserve.known.best.positions != EMPTY_POSITION
    proven = _are_proven(reserve, filled & (positions != EMPTY_POSITION), shape)
    known = move_lists(replace(reserve.known, bound_scores=reserve.known.bound_scores.copy()), positions, edges.copy())
    if not shape.relaxed:
        updated = _update_free(known, fresh, shape.width)
        return replace(reserve, known=updated), updated.complete(shape.k)
    both = np.concatenate([known.best.positions, fresh.positions], axis=1)
    groups = find_groups(both)
    split = shape.width
    merged = ShardLists(known.best, tuple(of_cap[:, :split] for of_cap in groups)).merge(
        [ShardLists(fresh, tuple(of_cap[:, split:] for of_cap in groups))], shape.width, shape.relaxed
    )
    updated = update_lists(replace(known, best=merged.lists), Neighbors.empty(len(both), shape.width), shape.width)
    beyond = updated.best.positions == EMPTY_POSITION
    kept_groups = tuple(np.where(beyond, -1, of_cap) for of_cap in merged.groups)
    carried = np.stack([_find_slots(positions, flags, updated.best.positions) for flags in reserve.proving])
    result = _mark(updated, kept_groups, carried, shape)
    return result, proven & ((cut_reserve(result, shape).lengths >= shape.k) | np.isneginf(updated.bound_scores))


def _update_free(known: KnownLists, fresh: Neighbors, width: int) -> KnownLists:
    """Merge new items into lists without caps; only into those where one scores at least the bound."""
    rows = np.flatnonzero((fresh.positions[:, 0] != EMPTY_POSITION) & (fresh.scores[:, 0] >= known.bound_scores))
    used = int(fresh.lengths[rows].max(initial=0))
    merged = update_lists(known.rows(rows), Neighbors(fresh.positions[rows, :used], fresh.scores[rows, :used]), width)
    for mine, theirs in (
        (known.best.positions, merged.best.positions),
        (known.best.scores, merged.best.scores),
        (known.bound_scores, merged.bound_scores),
        (known.bound_edges, merged.bound_edges),
    ):
        mine[rows] = theirs  # arrays of their own, which `move_lists` made
    return known


def cut_reserve(reserve: Reserve, shape: ReserveShape) -> Neighbors:
    """Return (n, k) the lists of reserves that are proven complete, under the limits of the caps."""
    best = reserve.known.best
    if not shape.relaxed:
        return Neighbors(
            best.positions[:, : shape.k].astype(np.int64, order="C"), np.ascontiguousarray(best.scores[:, : shape.k])
        )
    groups = tuple(reserve.labels)  # as good as groups within a list
    return ShardLists(best, groups).merge([], shape.k, shape.max_per_group).lists


def _mark(known: KnownLists, groups: tuple[IntArray, ...], carried: BoolArray, shape: ReserveShape) -> Reserve:
    """Label the groups of each list, and mark the proving slots. carried: (caps, n, width) marks of earlier runs."""
    n, width = known.best.positions.shape
    labels = np.full((len(groups), n, width), -1, np.int64)
    proving = np.zeros((len(groups), n, width), np.bool_)
    for cap, of_cap in enumerate(groups):
        rows, columns = np.nonzero((of_cap >= 0) & (known.best.positions != EMPTY_POSITION))
        keys = rows * (int(of_cap.max(initial=0)) + 1) + of_cap[rows, columns]
        _, first, number = np.unique(keys, return_index=True, return_inverse=True)
        labels[cap, rows, columns] = columns[first[number]]
        flagged = carried[cap, rows, columns]
        last = np.full(len(first), -1, np.int64)
        np.maximum.at(last, number[flagged], columns[flagged])
        is_full = np.bincount(number, minlength=len(first)) >= shape.relaxed[cap]
        last[(last < 0) & is_full] = width
        proving[cap, rows, columns] = columns <= last[number]
    return Reserve(known, labels, proving)


def _are_proven(reserve: Reserve, left: BoolArray, shape: ReserveShape) -> BoolArray:
    """Return (n,) whether enough proving slots are left in every group that has some. left: (n, width) slots."""
    n, width = left.shape
    proven = np.ones(n, np.bool_)
    for cap, limit in enumerate(shape.max_per_group):
        rows, columns = np.nonzero(reserve.proving[cap])
        keys = rows * width + reserve.labels[cap, rows, columns]
        had = np.bincount(keys, minlength=n * width)
        has = np.bincount(keys[left[rows, columns]], minlength=n * width)
        proven &= ~((had > 0) & (has < limit)).reshape(n, width).any(axis=1)
    return proven


def _find_slots(positions: IntArray, flags: BoolArray, among: IntArray) -> BoolArray:
    """Return the flags of the items of `positions` at their slots in other lists of the same queries."""
    size = int(max(positions.max(initial=0), among.max(initial=0))) + 1
    keys = np.arange(len(positions))[:, None] * size
    chosen = (keys + positions)[flags & (positions != EMPTY_POSITION)]
    found: BoolArray = np.isin(keys + among, chosen) & (among != EMPTY_POSITION)
    return found
