"""The stage `merge` of a run on several item shards: a task merges the lists of all shards for a range of the queries.

Its result has the format of a join of all items, so that everything after it is the same for one shard and for many. A
ranking model orders the merged lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nearcast.join.join_stage import read_cap_values_of
from nearcast.join.joined_lists import read_result
from nearcast.join.shard_constraints import GroupNumbers
from nearcast.knn.item_shards import ShardLists, merge_lists
from nearcast.knn.join_request import JoinRequest
from nearcast.types import Neighbors

__all__ = ["merge_split"]


def merge_split(request: JoinRequest, parts: Sequence[Path]) -> Neighbors:
    """Merge the lists of all shards for a range of the queries. parts: result folders of `join_shard`."""
    max_per_group = request.constraints.max_per_group
    return merge_lists(_read_parts(parts, len(max_per_group)), request.k, max_per_group)


def _read_parts(parts: Sequence[Path], n_caps: int) -> Iterator[ShardLists]:
    """Yield the lists of each shard; equal values of a cap's column are one group in all of them."""
    numbers = [GroupNumbers() for _ in range(n_caps)]
    for folder in parts:
        lists = read_result(folder)
        groups = tuple(
            of_cap.number(read_cap_values_of(folder, cap)).reshape(lists.positions.shape)
            for cap, of_cap in enumerate(numbers)
        )
        yield ShardLists(Neighbors(np.asarray(lists.positions), np.asarray(lists.scores)), groups)
