"""The reserves of a run: an artifact per range of the queries, and the record of them in the manifest.

    reserve-<fingerprint>/000012/   positions.npy   scores.npy   bound_scores.npy   bound_edges.npy   labels.npy ...

The next incremental run updates them. A run that is not incremental writes none. Knows nothing of changes.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from nearcast.artifact_files import map_array
from nearcast.files import fingerprint, verify
from nearcast.join.plan_join import make_run_request
from nearcast.join.run_mode import joins_in_full, read_base
from nearcast.join.run_plan import RunPlan
from nearcast.join.run_tasks import list_splits, open_plan, open_prepared
from nearcast.join.task_context import TaskContext
from nearcast.knn.join_request import JoinRequest
from nearcast.knn.reserve_lists import FindGroups, Reserve, ReserveShape, cut_reserve, make_reserve, plan_reserve
from nearcast.knn.update_lists import KnownLists, concat_lists
from nearcast.sources.attribute_rows import take_attributes
from nearcast.types import AnyArray, IntArray, Neighbors

__all__ = [
    "concat_reserves",
    "decide_lists",
    "group_finder",
    "name_reserves",
    "open_request",
    "open_shape",
    "read_reserve_folder",
    "record_reserves",
    "reserve_lists",
    "store_reserve",
    "widen_request",
    "write_reserve_folder",
]

FORMAT = 1
ARRAYS = ("positions", "scores", "bound_scores", "bound_edges", "labels", "proving")


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


def store_reserve(context: TaskContext, start: int, reserve: Reserve, base: str | None) -> Neighbors:
    """Store the reserves of the queries from `start` on as an artifact; return their lists.

    base: as in `name_reserves`.
    """
    number = [first for first, _ in list_splits(context)].index(start)
    name = f"{name_reserves(context, base)}/{number:06d}"
    context.run.artifacts.commit(name, lambda folder: write_reserve_folder(folder, reserve))
    return cut_reserve(reserve, open_shape(context))


def reserve_lists(context: TaskContext, start: int, lists: Neighbors) -> Neighbors:
    """Store the reserves that a join of all items found for the queries from `start` on; return their lists."""
    return store_reserve(context, start, make_reserve(lists, open_shape(context), group_finder(context)), None)


def write_reserve_folder(folder: Path, reserve: Reserve) -> dict[str, Any]:
    """Write reserves into a folder."""
    known = reserve.known
    largest = int(known.best.positions.max(initial=0))
    positions = known.best.positions.astype(np.int32 if largest < 1 << 31 else np.int64, copy=False)
    values: tuple[AnyArray, ...] = (positions, known.best.scores, known.bound_scores, known.bound_edges)
    values += (reserve.labels.astype(np.int32), reserve.proving)
    for name, array in zip(ARRAYS, values, strict=True):
        np.save(folder / f"{name}.npy", array)
    return {"queries": len(positions)}


def read_reserve_folder(folder: Path, rows: IntArray | slice = slice(None), *, contents: bool = False) -> Reserve:
    """Read the reserves at these rows of a folder; positions without caps as they are stored, so as int32.

    contents: compare every byte with the manifest.

    Raises DamagedError if a file was changed, or has another size.
    """
    verify(folder, contents=contents)
    positions, scores, bounds, edges, labels, proving = (map_array(folder / f"{name}.npy") for name in ARRAYS)
    best = Neighbors(positions[rows].astype(np.int64 if len(labels) else positions.dtype), np.array(scores[rows]))
    known = KnownLists(best, np.array(bounds[rows]), np.array(edges[rows]))
    return Reserve(known, labels[:, rows].astype(np.int64), np.array(proving[:, rows]))


def concat_reserves(parts: list[Reserve], order: IntArray | slice) -> Reserve:
    """Concatenate reserves of several sets of queries, and reorder them; a slice of all keeps their order."""
    known = concat_lists([part.known for part in parts], order)
    labels = np.concatenate([part.labels for part in parts], axis=1)[:, order]
    proving = np.concatenate([part.proving for part in parts], axis=1)[:, order]
    return Reserve(known, labels, proving)


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
