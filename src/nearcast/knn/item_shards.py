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

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nearcast.knn.constraints import Cap, keep_capped
from nearcast.knn.join_request import JoinRequest
from nearcast.knn.topk import gather_pairs, merge
from nearcast.types import EMPTY_POSITION, IntArray, Neighbors

__all__ = ["cut_items", "merge_shards", "move_positions", "restrict_request"]


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
    """Return the lists of a shard with the positions among all items. start: first position of the shard."""
    return Neighbors(np.where(lists.positions == EMPTY_POSITION, EMPTY_POSITION, lists.positions + start), lists.scores)


def merge_shards(
    parts: Sequence[Neighbors],
    k: int,
    groups: Sequence[Sequence[IntArray]] = (),
    max_per_group: Sequence[int] = (),
) -> Neighbors:
    """Return the k best items per query under the caps, from the lists of the shards, in any order.

    parts: lists with positions among all items, k or the whole shard long, that obey the caps. groups: for each cap,
    smallest groups first, and each part, the (n, width) groups of its slots, -1 for none; groups of equal number are
    one group, whatever their shards.
    """
    if not max_per_group:
        return merge(parts, k)
    positions = np.concatenate([part.positions for part in parts], axis=1)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    ranked = np.where(positions == EMPTY_POSITION, np.iinfo(np.int64).max, positions)
    order = np.lexsort((ranked, -scores))
    positions, scores = np.take_along_axis(positions, order, 1), np.take_along_axis(scores, order, 1)
    rows, slots = np.nonzero(positions != EMPTY_POSITION)
    caps = []
    for parts_of_cap, most in zip(groups, max_per_group, strict=True):
        of_slots = np.take_along_axis(np.concatenate(parts_of_cap, axis=1), order, 1)[rows, slots]
        numbers = np.unique(of_slots, return_inverse=True)[1].reshape(-1)
        caps.append(Cap(np.where(of_slots < 0, -1, numbers).astype(np.int32), most))
    kept = keep_capped(rows, np.arange(len(rows)), caps)
    rows, slots = rows[kept], slots[kept]
    return gather_pairs(rows, positions[rows, slots], scores[rows, slots], n=len(positions), k=k)
