"""The tasks of a run on several item shards, and their calls: an index per shard, a join per shard and range of the
queries, a merge per range of the queries. A run on one shard has none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearcast.join.index_stage import describe_points, ensure_shard_index, open_shard_index
from nearcast.join.join_stage import join_shard, name_shard_join
from nearcast.join.join_tasks import open_wide_plan, write_joined
from nearcast.join.merge_stage import merge_split
from nearcast.join.plan_join import make_run_request
from nearcast.join.reserves import open_request
from nearcast.join.run_mode import joins_in_full
from nearcast.join.run_tasks import count_run_shards, list_splits, open_prepared
from nearcast.join.task_context import TaskContext
from nearcast.runners.base import TaskCall

__all__ = ["do_index", "do_join_shard", "do_merge", "list_index_calls", "list_merge_calls"]

OPEN_SHARD = "open shard"  # kept by a worker: its number, and its index


def list_index_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per item shard; none for one shard, whose index is built with the plan of the join."""
    if not joins_in_full(context):
        return []
    shards = count_run_shards(context)
    return [TaskCall(f"index/{shard:05d}", "index", {"shard": shard}) for shard in range(shards) if shards > 1]


def do_index(context: TaskContext, args: Mapping[str, Any], _folder: Path) -> dict[str, Any]:
    """Build the index of an item shard."""
    run, prepared, shard = context.run, open_prepared(context), int(args["shard"])
    request = make_run_request(run, prepared)
    name = ensure_shard_index(run, request, prepared, shard)
    return {"index": name, **describe_points(run, request, prepared, shard)}


def do_join_shard(context: TaskContext, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Join a range of the queries with an item shard. The shard stays open for the next task."""
    run, prepared, plan = context.run, open_prepared(context), open_wide_plan(context)
    shard, rows = int(args["shard"]), (int(args["start"]), int(args["stop"]))
    if context.kept.get(OPEN_SHARD, (shard,))[0] != shard:
        context.drop(OPEN_SHARD)  # closed before the next one is opened
    request = open_request(context)  # that names the index: of lists as long as requested
    _, index = context.keep(OPEN_SHARD, lambda: (shard, open_shard_index(run, request, prepared, shard)))
    with run.meter.stage("join"):
        join_shard(run, prepared, plan, shard, rows, index, folder)
    return {"shard": shard, "start": rows[0], "stop": rows[1]}


def list_merge_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per range of the queries; none for one shard."""
    if count_run_shards(context) == 1 or not joins_in_full(context):
        return []
    return [
        TaskCall(f"merge/{number:06d}", "merge", {"split": number, "start": start, "stop": stop})
        for number, (start, stop) in enumerate(list_splits(context))
    ]


def do_merge(context: TaskContext, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Merge the lists of all item shards for a range of the queries."""
    context.drop(OPEN_SHARD)
    plan = open_wide_plan(context)
    names = [name_shard_join(shard, int(args["split"])) for shard in range(count_run_shards(context))]
    parts = [context.run.results.open(name) for name in names]
    with context.run.meter.stage("join"):
        write_joined(context, int(args["start"]), merge_split(plan.request, parts), folder)
    return {"start": args["start"], "stop": args["stop"]}
