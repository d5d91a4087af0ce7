"""The stage `merge` of a run on several item shards: a task merges the lists of all shards for a range of the queries.

Its result has the format of a join of all items, so that everything after it is the same for one shard and for many. A
ranking model orders the merged lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nearcast.join.context import RunContext
from nearcast.join.join_stage import read_cap_values_of
from nearcast.join.joined_lists import read_result
from nearcast.join.plan_join import JoinPlan
from nearcast.join.prepare_inputs import PreparedInputs
from nearcast.join.rank import make_rank_settings, rank_neighbors
from nearcast.join.shard_constraints import GroupNumbers
from nearcast.knn.item_shards import ShardLists, merge_lists
from nearcast.types import Neighbors

__all__ = ["merge_split"]


def merge_split(
    run: RunContext,
    prepared: PreparedInputs,
    plan: JoinPlan,
    start: int,
    parts: Sequence[Path],
    folder: Path,
) -> None:
    """Merge the lists of all shards for the queries from `start` on. parts: result folders of `join_shard`."""
    max_per_group = plan.request.constraints.max_per_group
    lists = merge_lists(_read_parts(parts, len(max_per_group)), plan.request.k, max_per_group)
    rank = make_rank_settings(run.spec, run.workspace.model_base)
    if rank is not None:
        lists = rank_neighbors(rank, lists, prepared.inputs.queries, prepared.inputs.items, start, folder)
    np.save(folder / "positions.npy", lists.positions)
    np.save(folder / "scores.npy", lists.scores)


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
