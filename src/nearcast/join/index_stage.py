"""The stage `index` of a run on several item shards: one task per shard builds its index as an artifact.

Also opens these indexes: one of them for the tasks of its shard, or all as one index for a calibration. The index of a
run on one shard is built by `join.plan_join`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nearcast.engines.base import Index, IndexSpec, JoinRequest, Workload
from nearcast.engines.index_folder import ensure_index
from nearcast.engines.sharded_index import IndexShard, ShardedIndex
from nearcast.files import verify
from nearcast.join.calibrate import sample_workload
from nearcast.join.context import RunContext
from nearcast.join.open_index import index_inputs, index_name
from nearcast.join.prepare_inputs import PreparedInputs
from nearcast.join.shard_plan import open_shard_vectors
from nearcast.knn.constraints import FREE

__all__ = ["describe_points", "ensure_shard_index", "open_shard_index", "open_sharded_index", "shard_index_names"]


def shard_index_names(run: RunContext, request: JoinRequest, prepared: PreparedInputs) -> list[str]:
    """Return the artifact name of each shard's index. An engine that persists no index has no such artifacts."""
    made_of = index_inputs(run, prepared.inputs)
    if run.engine.fits_workload:
        spec = run.spec
        constraints = [[rule.model_dump() for rule in spec.rules], [cap.model_dump(by_alias=True) for cap in spec.caps]]
        made_of += [prepared.inputs.queries.fingerprint, request.k, request.recall, constraints, spec.min_score]
    return [index_name([*made_of, start, stop]) for start, stop in _ranges_of(prepared)]


def ensure_shard_index(run: RunContext, request: JoinRequest, prepared: PreparedInputs, shard: int) -> str:
    """Return the artifact name of a shard's index; build it if it is missing."""
    name = shard_index_names(run, request, prepared)[shard]
    if not run.engine.persists_index:
        return name
    start, stop = _ranges_of(prepared)[shard]

    def build() -> Index:
        items = open_shard_vectors(run.artifacts, prepared.inputs.items, start, stop)
        spec = IndexSpec(prepared.inputs.metric, run.settings, run.spec.seed)
        workload = _make_shard_workload(run, request, prepared, shard)
        return run.engine.build(items, spec, run.resources, workload=workload, progress=run.listener.progress)

    with run.meter.stage("build"):
        ensure_index(run.artifacts, name, {"shard": shard, "start": start, "stop": stop}, run.resources, build)
    return name


def describe_points(run: RunContext, request: JoinRequest, prepared: PreparedInputs, shard: int) -> dict[str, Any]:
    """Return facts about the operating points of a shard's index, so that a plan need not open it."""
    index = open_shard_index(run, request, prepared, shard)
    points = [dict(point) for point in index.operating_points(request.k)]
    return {"points": len(points), "last": points[-1], "is_exact": index.is_exact(points[-1])}


def _make_shard_workload(run: RunContext, request: JoinRequest, prepared: PreparedInputs, shard: int) -> Workload:
    """Return the workload of a shard: all queries, with the rules of a sample of them on the items of the shard."""
    queries, (start, stop) = prepared.inputs.queries.vectors, _ranges_of(prepared)[shard]
    rows = sample_workload(queries.n, run.spec.seed)
    constraints = FREE
    if run.engine.fits_workload:
        constraints = request.constraints.of_queries(rows).of_items(start, stop)
    return Workload(replace(request, constraints=constraints), queries.n, queries.take(rows))


def open_sharded_index(run: RunContext, request: JoinRequest, prepared: PreparedInputs) -> ShardedIndex:
    """Return the indexes of all shards as one. Each is opened when it is needed, one at a time."""
    shards = [
        IndexShard(start, stop, partial(open_shard_index, run, request, prepared, shard))
        for shard, (start, stop) in enumerate(_ranges_of(prepared))
    ]
    return ShardedIndex(shards, max_scan_share=run.engine.max_scan_share)


def open_shard_index(run: RunContext, request: JoinRequest, prepared: PreparedInputs, shard: int) -> Index:
    """Open the index of a shard with the vectors of its items."""
    start, stop = _ranges_of(prepared)[shard]
    name = shard_index_names(run, request, prepared)[shard]
    items = open_shard_vectors(run.artifacts, prepared.inputs.items, start, stop)
    folder = Path(name)
    if run.engine.persists_index:
        folder = run.artifacts.open(name)
        verify(folder, contents=False)
    return run.engine.open(folder, items, IndexSpec(prepared.inputs.metric, run.settings, run.spec.seed))


def _ranges_of(prepared: PreparedInputs) -> Sequence[tuple[int, int]]:
    assert prepared.shards is not None, "a run on one shard has one index"
    return prepared.shards.ranges
