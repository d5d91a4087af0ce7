"""The stage `join` on one shard: a task joins a range of the queries with all items.

An incremental run also stores the reserves of the lists that are joined in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nearcast.engines.sharded_index import SHARD_K
from nearcast.join.join_queries import join_queries, write_lists
from nearcast.join.join_stage import name_shard_join
from nearcast.join.plan_join import JoinPlan
from nearcast.join.reserves import open_shape, reserve_lists, widen_request
from nearcast.join.run_mode import joins_in_full
from nearcast.join.run_tasks import count_run_shards, list_splits, open_plan, open_prepared
from nearcast.join.task_context import TaskContext
from nearcast.runners.base import TaskCall
from nearcast.types import Neighbors

__all__ = ["do_join", "list_join_calls", "open_wide_plan", "write_joined"]


def list_join_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per range of the queries; on several item shards, a call per shard and range.

    None where updated lists were accepted.
    """
    if not joins_in_full(context):
        return []
    splits, shards = list_splits(context), count_run_shards(context)
    if shards > 1:
        return [
            TaskCall(name_shard_join(shard, split), "join_shard", {"shard": shard, "start": start, "stop": stop})
            for shard in range(shards)  # all ranges of a shard in a row: a worker keeps the shard open
            for split, (start, stop) in enumerate(splits)
        ]
    return [
        TaskCall(f"join/{number:06d}", "join", {"start": start, "stop": stop})
        for number, (start, stop) in enumerate(splits)
    ]


def do_join(context: TaskContext, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Join a range of the queries with all items."""
    rows = int(args["start"]), int(args["stop"])
    with context.run.meter.stage("join"):
        lists = join_queries(context.run, open_prepared(context), open_wide_plan(context), rows)
        write_joined(context, rows[0], lists, folder)
    return {"start": rows[0], "stop": rows[1]}


def open_wide_plan(context: TaskContext) -> JoinPlan:
    """Return the plan of the join; of an incremental run, for lists as wide as their reserves."""
    plan = open_plan(context)
    if not context.run.spec.run.incremental:
        return plan
    shape, params = open_shape(context), dict(plan.params)
    if SHARD_K in params:
        params[SHARD_K] = -(-params[SHARD_K] * shape.width // shape.k)
    return replace(plan, request=widen_request(plan.request, shape), params=params)


def write_joined(context: TaskContext, start: int, lists: Neighbors, folder: Path) -> None:
    """Write the lists that a join with all items found for the queries from `start` on, and their reserves."""
    if context.run.spec.run.incremental:
        reserve_lists(context, start, lists, folder)
    else:
        write_lists(context.run, open_prepared(context), start, lists, folder)
