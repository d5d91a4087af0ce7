"""The reserves of a run: an artifact per range of the queries, and the record of them in the manifest.

The next incremental run updates them. A run that is not incremental writes none. Knows nothing of changes.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from nearcast.files import fingerprint
from nearcast.join.join_queries import write_lists
from nearcast.join.plan_join import make_run_request
from nearcast.join.reserve_folders import FORMAT, write_reserve_folder, write_slots
from nearcast.join.run_mode import joins_in_full, read_base
from nearcast.join.run_plan import RunPlan
from nearcast.join.run_tasks import list_splits, open_plan, open_prepared
from nearcast.join.task_context import TaskContext
from nearcast.knn.join_request import JoinRequest
from nearcast.knn.reserve_lists import FindGroups, Reserve, ReserveShape, cut_reserve, make_reserve, plan_reserve
from nearcast.sources.attribute_rows import take_attributes
from nearcast.types import IntArray, Neighbors

__all__ = [
    "decide_lists",
    "group_finder",
    "name_reserves",
    "open_request",
    "open_shape",
    "record_reserves",
    "reserve_lists",
    "store_reserve",
    "widen_request",
]


def decide_lists(plan: RunPlan) -> dict[str, Any]:
    """Return what decides the lists of a join beside its tables: reserves of other decisions are not used."""
    return {"format": FORMAT, **{key: plan.parts[key] for key in ("settings", "engine", "nearcast")}}


def open_request(context: TaskContext) -> JoinRequest:
    """Return the join request of the run. Its plan need not be made yet."""
    return context.keep("request", lambda: make_run_request(context.run, open_prepared(context)))


def open_shape(context: TaskContext) -> ReserveShape:
    """Return the size of the lists and their reserves."""
    request = open_request(context)
    return plan_reserve(request.k, request.constraints.max_per_group)


def widen_request(request: JoinRequest, shape: ReserveShape) -> JoinRequest:
    """Return a request for reserves: wider lists, under relaxed limits."""
    constraints = request.constraints
    if shape.relaxed != shape.max_per_group:
        constraints = constraints.with_limits(shape.relaxed)
    return replace(request, k=shape.width, constraints=constraints)


def group_finder(context: TaskContext) -> FindGroups:
    """Return a function that finds the groups of any items of the run."""
    prepared, request = open_prepared(context), open_request(context)
    if prepared.shards is None:
        return request.constraints.find_groups
    columns = [cap.column for cap in prepared.shards.caps_by]

    def find_groups(positions: IntArray) -> tuple[IntArray, ...]:
        filled = positions >= 0
        values = take_attributes(prepared.inputs.items, columns, positions[filled])
        groups = []
        for column in columns:
            found = values.column(column).combine_chunks()
            if not hasattr(found, "dictionary"):
                found = found.dictionary_encode()
            of_cap = np.full(positions.shape, -1, np.int64)
            of_cap[filled] = pc.fill_null(found.indices, -1).to_numpy(zero_copy_only=False)
            groups.append(of_cap)
        return tuple(groups)

    return find_groups


def store_reserve(context: TaskContext, start: int, reserve: Reserve, base: str | None, folder: Path) -> None:
    """Store the reserves of the queries from `start` on as an artifact; write their lists into `folder`.

    Without caps and a ranking model the lists are the first slots of the reserves, and both are the same files. base:
    as in `name_reserves`.
    """
    number = [first for first, _ in list_splits(context)].index(start)
    name = f"{name_reserves(context, base)}/{number:06d}"
    shape = open_shape(context)
    if shape.relaxed or context.run.spec.rank is not None:
        context.run.artifacts.commit(name, lambda home: write_reserve_folder(home, reserve))
        write_lists(context.run, open_prepared(context), start, cut_reserve(reserve, shape), folder)
        return
    write_slots(folder, reserve)
    context.run.artifacts.commit(name, lambda home: write_reserve_folder(home, reserve, slots_in=folder))


def reserve_lists(context: TaskContext, start: int, lists: Neighbors, folder: Path) -> None:
    """Store the reserves that a join of all items found for the queries from `start` on; write their lists."""
    reserve = make_reserve(lists, open_shape(context), group_finder(context))
    store_reserve(context, start, reserve, None, folder)


def record_reserves(context: TaskContext, created: str) -> dict[str, Any] | None:
    """Return the record of the reserves for the manifest; None if the run has none. created: the time of the run."""
    if not context.run.spec.run.incremental:
        return None
    base = None if joins_in_full(context) else read_base(context)["name"]
    return {
        "name": name_reserves(context, base),
        "tables": context.read_facts("prepare")["tables"],
        "splits": [list(split) for split in list_splits(context)],
        "shape": asdict(open_shape(context)),
        "decided_by": decide_lists(context.plan),
        "index": _record_index(context, base),
        "params": dict(open_plan(context).params),
        "is_exact": open_plan(context).is_exact,
        "full": created if joins_in_full(context) else read_base(context)["full"],
    }


def _record_index(context: TaskContext, base: str | None) -> dict[str, Any] | None:
    """Return the record of the last full join's index: its artifact, and that of its items' positions if they moved."""
    if base is not None:
        earlier = read_base(context).get("index")
        return None if earlier is None else {**earlier, "moved": f"{name_reserves(context, base)}/index"}
    if not context.run.engine.persists_index or open_prepared(context).shards is not None:
        return None
    return {"name": open_plan(context).index, "moved": None}


def name_reserves(context: TaskContext, base: str | None) -> str:
    """Return the name of reserves that are updated from those named `base`, or joined in full: None."""
    prepared = {key: value for key, value in context.read_facts("prepare").items() if key in ("tables", "shards")}
    return f"reserve-{fingerprint([context.plan.fingerprint, prepared, base, FORMAT])[:16]}"
