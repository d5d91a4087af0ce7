"""The stage `join` of a run on several item shards: a task joins a range of the queries with the items of one shard.

Writes lists with positions among all items, and the values of their groups for each cap: the merge needs groups that
are equal across shards.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from nearcast.engines.base import Index
from nearcast.engines.sharded_index import SHARD_K
from nearcast.join.context import RunContext
from nearcast.join.plan_join import JoinPlan
from nearcast.join.prepare_inputs import PreparedInputs
from nearcast.join.shard_constraints import list_cap_values
from nearcast.knn.item_shards import move_positions, restrict_request
from nearcast.sources.ids import find_sorted
from nearcast.types import EMPTY_POSITION, IntArray

__all__ = ["join_shard", "name_shard_join", "read_cap_values_of"]


def name_shard_join(shard: int, split: int) -> str:
    """Return the name of the task that joins a range of the queries with an item shard."""
    return f"join/{shard:05d}-{split:06d}"


def join_shard(
    run: RunContext,
    prepared: PreparedInputs,
    plan: JoinPlan,
    shard: int,
    rows: tuple[int, int],
    index: Index,
    folder: Path,
) -> None:
    """Find the neighbors of the queries rows[0]..rows[1]-1 among the items of a shard; write them into `folder`."""
    assert prepared.shards is not None
    start, stop = prepared.shards.ranges[shard]
    queries = prepared.inputs.queries
    request = plan.request.of_queries(slice(*rows))
    if plan.request.exclude_self:
        request = replace(request, exclude=_find_own(prepared, rows, start, stop))
    own = replace(restrict_request(request, start, stop), k=plan.params.get(SHARD_K, plan.request.k))

    def report(stage: str, done: int, total: int) -> None:
        run.listener.progress(stage, rows[0] + done, queries.vectors.n if total else 0)

    lists = index.join(queries.vectors.read(*rows), own, plan.shard_params[shard], run.resources, report)
    placed = move_positions(lists, start)
    np.save(folder / "positions.npy", placed.positions)
    np.save(folder / "scores.npy", placed.scores)
    for number, values in enumerate(list_cap_values(request.constraints, placed.positions)):
        _write_values(folder / f"cap-{number}.arrow", values)


def _find_own(prepared: PreparedInputs, rows: tuple[int, int], start: int, stop: int) -> IntArray:
    """Return the position among all items of each query's own item, if the shard holds it; else -1."""
    items, query_ids = prepared.inputs.items, prepared.inputs.queries.ids[rows[0] : rows[1]]
    if query_ids.type != items.ids.type:
        return np.full(len(query_ids), EMPTY_POSITION, np.int64)
    own = find_sorted(query_ids, items.ids[start:stop])
    return np.where(own < 0, EMPTY_POSITION, own + start)


def _write_values(path: Path, values: pa.DictionaryArray) -> None:
    """Write values as one Arrow batch, each distinct value once."""
    batch = pa.RecordBatch.from_arrays([values], ["value"])
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, batch.schema) as writer:
        writer.write_batch(batch)


def read_cap_values_of(folder: Path, number: int) -> pa.DictionaryArray:
    """Read the values of a cap's column in the slots of a task's lists, flat; null for none."""
    with pa.memory_map(str(folder / f"cap-{number}.arrow")) as source:
        return pa.ipc.open_file(source).get_batch(0).column(0)
