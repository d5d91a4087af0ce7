"""The stages `stale`, `rejoin` and `renew` of an incremental run: update the reserves of the last one.

    stale/<range>          find the queries whose lists cannot be updated, or would be too short
    rejoin/<shard>-<part>  join these queries with the items of one shard
    renew/<range>          update the other reserves with the new and changed items, and put both together: reserves for
                           the next run, and lists as a full join writes them

Damaged reserves are recorded, not raised: the run then joins in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.artifact_files import map_array
from nearcast.errors import DamagedError, NotFoundError
from nearcast.join.base_reserves import find_base, find_enough, list_others, read_bounds, update_ranges
from nearcast.join.fresh_items import join_all, join_fresh, merge_reserves
from nearcast.join.joined_lists import read_result
from nearcast.join.reserves import open_shape, store_reserve
from nearcast.join.run_mode import COMPARE, begins_incremental, read_base
from nearcast.join.run_tasks import list_splits, open_prepared
from nearcast.join.task_context import TaskContext
from nearcast.runners.base import TaskCall
from nearcast.types import IntArray, Neighbors

__all__ = [
    "do_rejoin",
    "do_renew",
    "do_stale",
    "list_rejoin_calls",
    "list_renew_calls",
    "list_stale_calls",
]

PART_ROWS = 8_192  # queries of a task of the stage `rejoin`


def list_stale_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per range of the queries, if the run updates lists."""
    return _list_range_calls(context, "stale") if begins_incremental(context) else []


def do_stale(context: TaskContext, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Find the queries of a range that are joined with all items: new, changed, and with too few slots left."""
    start, stop = int(args["start"]), int(args["stop"])
    with context.run.meter.stage("join"):
        before = _read_before(context, start, stop)
        rows = np.flatnonzero(before >= 0)
        try:
            enough = find_enough(context, before[rows])
        except (DamagedError, NotFoundError) as error:
            return {"start": start, "stop": stop, "missing": stop - start, "damaged": str(error)}
        missing = list_others(stop - start, rows[enough])
        np.save(folder / "missing.npy", missing)
    return {"start": start, "stop": stop, "missing": len(missing), "damaged": None}


def _read_before(context: TaskContext, start: int, stop: int) -> IntArray:
    """Return the old positions of the queries start..stop-1, -1 for new and changed ones."""
    return np.array(map_array(context.run.results.open(COMPARE) / "queries" / "before.npy")[start:stop])


@dataclass(frozen=True, slots=True)
class _Part:
    """Queries that are joined with all items by one task per shard: those of the ranges first..last-1."""

    number: int
    first: int
    last: int


def _list_parts(context: TaskContext) -> list[_Part]:
    """Cut the ranges into parts with some thousand queries to join."""
    counts = [_read_missing(context, number)["missing"] for number in range(len(list_splits(context)))]
    parts: list[_Part] = []
    first = rows = 0
    for number, count in enumerate(counts):
        rows += count
        if rows >= PART_ROWS or (number == len(counts) - 1 and rows):
            parts.append(_Part(len(parts), first, number + 1))
            first, rows = number + 1, 0
    return parts


def _read_missing(context: TaskContext, number: int) -> dict[str, Any]:
    return context.read_facts(f"stale/{number:06d}")


def _is_damaged(context: TaskContext) -> bool:
    return any(_read_missing(context, number)["damaged"] for number in range(len(list_splits(context))))


def list_rejoin_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per item shard and part of the queries that are joined with all items."""
    if not begins_incremental(context) or _is_damaged(context):
        return []
    return [
        TaskCall(_name_rejoin(shard, part.number), "rejoin", {"shard": shard, "first": part.first, "last": part.last})
        for shard in range(len(_list_shards(context)))
        for part in _list_parts(context)
    ]


def do_rejoin(context: TaskContext, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Join some queries with all items of a shard, exactly."""
    with context.run.meter.stage("join"):
        rows = [_find_missing(context, number) for number in range(int(args["first"]), int(args["last"]))]
        lists = join_all(context, np.concatenate(rows), *_list_shards(context)[int(args["shard"])])
        np.save(folder / "positions.npy", lists.positions)
        np.save(folder / "scores.npy", lists.scores)
    return {"counts": [len(part) for part in rows]}


def list_renew_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per range of the queries, unless the last reserves are damaged."""
    if not begins_incremental(context) or _is_damaged(context):
        return []
    return _list_range_calls(context, "renew")


def do_renew(context: TaskContext, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Update the reserves of a range with the new and changed items, put joined ones among them; write its lists."""
    number, start, stop = int(args["number"]), int(args["start"]), int(args["stop"])
    with context.run.meter.stage("join"):
        missing = _find_missing(context, number) - start
        rows = list_others(stop - start, missing)
        base = find_base(context, _read_before(context, start, stop)[rows])
        new_items = map_array(context.run.results.open(COMPARE) / "items" / "before.npy")
        fresh = join_fresh(context, new_items, start + rows, read_bounds(context, base))
        width = open_shape(context).width
        lists = Neighbors.empty(0, width) if len(missing) == 0 else _read_rejoined(context, number)
        reserve = update_ranges(context, base, fresh, rows, lists)
        store_reserve(context, start, reserve, read_base(context)["name"], folder)
    return {"start": start, "stop": stop}


def _read_rejoined(context: TaskContext, number: int) -> Neighbors:
    """Return the lists of the queries of a range that were joined with all items, merged over the shards."""
    part = next(part for part in _list_parts(context) if part.first <= number < part.last)
    names = [_name_rejoin(shard, part.number) for shard in range(len(_list_shards(context)))]
    counts = context.read_facts(names[0])["counts"]
    first = sum(counts[: number - part.first])
    last = first + counts[number - part.first]
    found = [read_result(context.run.results.open(name)) for name in names]
    lists = [Neighbors(np.array(each.positions[first:last]), np.array(each.scores[first:last])) for each in found]
    return merge_reserves(context, lists)


def _find_missing(context: TaskContext, number: int) -> IntArray:
    """Return the positions of the queries of a range that are joined with all items."""
    name = f"stale/{number:06d}"
    return np.asarray(map_array(context.run.results.open(name) / "missing.npy")) + int(
        context.read_facts(name)["start"]
    )


def _list_shards(context: TaskContext) -> Sequence[tuple[int, int]]:
    prepared = open_prepared(context)
    return [(0, prepared.inputs.items.vectors.n)] if prepared.shards is None else prepared.shards.ranges


def _name_rejoin(shard: int, part: int) -> str:
    return f"rejoin/{shard:05d}-{part:06d}"


def _list_range_calls(context: TaskContext, stage: str) -> list[TaskCall]:
    return [
        TaskCall(f"{stage}/{number:06d}", stage, {"number": number, "start": start, "stop": stop})
        for number, (start, stop) in enumerate(list_splits(context))
    ]
