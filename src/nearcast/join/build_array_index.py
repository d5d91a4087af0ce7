"""The index of a join of arrays: in memory, or in shards whose files are mapped if it does not fit the memory.

The arrays are the caller's, and do not count. Knows nothing of runs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from nearcast.engines.base import Engine, Index, IndexSpec, JoinShape, Resources, Workload
from nearcast.engines.sharded_index import IndexShard, ShardedIndex
from nearcast.join.passes import FIXED_BYTES, count_passes
from nearcast.knn.item_shards import cut_items
from nearcast.types import ArrayVectors, Progress, RangeOfVectors

__all__ = ["build_array_index"]


def build_array_index(
    engine: Engine,
    items: ArrayVectors,
    spec: IndexSpec,
    workload: Workload,
    resources: Resources,
    folder: Path,
    progress: Progress,
) -> Index:
    """Build an index over the items. folder: an empty one for the shards, which must last as long as the index."""
    shape = JoinShape(workload.request, items.n, workload.n_queries, items.dim, item_bytes=0)
    count = count_passes(engine, spec.settings, shape, resources.memory_bytes + FIXED_BYTES)
    if count == 1:
        return engine.build(items, spec, resources, workload=workload, progress=progress)
    shards = []
    for number, (start, stop) in enumerate(cut_items(items.n, count)):
        part, home = RangeOfVectors(items, start, stop), folder / f"{number:05d}"
        home.mkdir()
        request = replace(workload.request, constraints=workload.request.constraints.of_items(start, stop))
        own = replace(workload, request=request)
        engine.build(part, spec, resources, workload=own).save(home, resources)
        shards.append(IndexShard(start, stop, partial(engine.open, home, part, spec)))
        progress("build", stop, items.n)
    return ShardedIndex(shards, max_scan_share=engine.max_scan_share)
