"""The estimate of a run: seconds by stage, peak memory, disk; and the check against the budget."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nearcast import machine
from nearcast.engines import choose_engine
from nearcast.engines.base import Estimate, JoinRequest, JoinShape
from nearcast.errors import BudgetError
from nearcast.join.inputs import read_trial_vectors
from nearcast.join.measure_snapshot import BLOCK_SHARE, SLOT_PAIR_BYTES
from nearcast.join.passes import LIBRARY_BYTES
from nearcast.join.plan_join import sample_sizes
from nearcast.join.shard_plan import choose_shards
from nearcast.knn.exact_join import QUERY_ROWS, choose_blocks
from nearcast.knn.reserve_lists import plan_reserve
from nearcast.measure.appearances import DENSE_ITEMS
from nearcast.measure.sampled_recall import RANGE_SLOTS
from nearcast.measure.truth import cached_width
from nearcast.spec import GeneratorSpec
from nearcast.table.snapshot import list_snapshots
from nearcast.types import Vectors
from nearcast.version import __version__

if TYPE_CHECKING:
    from nearcast.join.context import RunContext
    from nearcast.join.inputs import Checked

__all__ = ["RunEstimate", "estimate_run", "require_budget"]

TABLE_BYTES = 136 << 20  # working set of writing: one row group and its ids, several times
MEASURE_BYTES = 101 << 20  # of measuring, beside the blocks of the exact join: a row group, samples
SECONDS_PER_SLOT, SECONDS_PER_LIST = 180e-9, 2e-6  # to write the table; measured on packages, two cores
SKETCH_BYTES = 8 << 10  # of a component of the sketched vectors while they are compared and written
SAMPLED_SLOT_BYTES = 72  # of a slot of the lists that are compared with their truth at a time
SLOT_BYTES = 12  # of a list of a task: position and score
OTHER_DISK = 1 << 20  # manifests, file headers
SMALL_TABLE_BYTES, TABLE_BYTES_PER_SLOT = 32 << 20, 192
MEASURE_PER_JOIN = 1.25  # the exact join of the samples, and what is computed from it
OTHER_STAGES = ("read", "table", "measure")  # that no engine estimates
INGEST_PER_SCAN = 1.2  # the scan, and the ingestion of what it has read


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """Estimated cost of a run."""

    seconds: Mapping[str, float]  # by stage
    memory_bytes: int  # peak of the process
    disk_bytes: int
    budget_bytes: int
    shards: int = 1  # of the items, each joined in a pass of its own
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # share of sampled pairs kept, by rule

    def as_dict(self) -> dict[str, Any]:
        """Return plain data. Only a check has `rules`."""
        rules = {"rules": {name: dict(facts) for name, facts in self.rules.items()}} if self.rules else {}
        return rules | {
            "seconds": {stage: round(value, 2) for stage, value in self.seconds.items()},
            "seconds_total": round(sum(self.seconds.values()), 2),
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "budget_bytes": self.budget_bytes,
            "shards": self.shards,
        }


def estimate_run(run: RunContext, checked: Checked, planned: GeneratorSpec | None = None) -> RunEstimate:
    """Time a few real items with the engine and the exact reference, and scale up to the whole run.

    An incremental run scales the estimate of the last snapshot instead, where that one was made in the same way.
    planned: the spec without the limits of this host; default: the run's own. Reports the estimate to the listener.
    Raises nothing: see `require_budget`.
    """
    report, spec = checked.report, planned or run.spec
    request = JoinRequest(run.spec.metric, run.spec.join_k, run.spec.recall)
    item_bytes = np.dtype(report.items.dtype).itemsize
    shape = JoinShape(request, report.items.vectors, report.queries.vectors, report.items.dim, item_bytes)
    shards = choose_shards(run, spec, shape)
    engine, pair_seconds = _scale_last(run, spec, shape, shards) or _try_engines(run, checked, shape, shards)
    estimate = _sum_costs(run, checked, shape, engine, pair_seconds)
    estimate = replace(estimate, shards=shards)
    if shards > 1:  # lists of each shard beside the merged ones
        estimate = replace(estimate, disk_bytes=estimate.disk_bytes + shards * shape.n_queries * request.k * SLOT_BYTES)
    run.listener.estimated(estimate)
    return estimate


def _try_engines(run: RunContext, checked: Checked, shape: JoinShape, shards: int) -> tuple[Estimate, float]:
    """Return the engine's estimate, and the seconds of the reference for a pair, by trials on a few items."""
    sample = read_trial_vectors(checked, run.artifacts, run.read_bytes)
    engine, reference = _estimate_shards(run, shape, sample, shards), choose_engine("exact")
    exact = reference.estimate(shape, sample, reference.settings(), run.resources)
    return engine, exact.seconds["join"] / max(1, shape.n_queries * shape.n_items)


def _scale_last(run: RunContext, spec: GeneratorSpec, shape: JoinShape, shards: int) -> tuple[Estimate, float] | None:
    """Return what `_try_engines` does, from the estimate of the last snapshot, scaled by pairs.

    None if the run is not incremental, or if the last snapshot had another machine, software, spec or kind of vectors.
    """
    sizes = run.engine.estimate_sizes(_shape_of_shard(shape, shards), run.settings)
    if not run.spec.run.incremental or sizes is None:
        return None
    snapshots = list_snapshots(run.workspace.out, run.spec.name)
    if not snapshots:
        return None
    manifest = snapshots[-1].manifest
    items, last, reserves = manifest.inputs["items"], manifest.run.estimate, manifest.run.reserves
    if reserves is None or "shards" not in last:
        return None
    n_items, n_queries = items["vectors"], manifest.inputs.get("queries", items)["vectors"]
    engine, host = (manifest.engine.name, manifest.engine.settings), (manifest.spec["threads"], manifest.run.machine)
    then = (reserves["decided_by"]["settings"], engine, manifest.software, host, last["shards"])
    now = (
        spec.answer_settings(),
        (run.engine.name, run.settings.model_dump()),
        __version__,
        (spec.threads, machine.describe()),
        shards,
    )
    is_same_kind = (items["dim"], np.dtype(items["dtype"]).itemsize) == (shape.dim, shape.item_bytes)
    truth_pairs = sum(sample_sizes(run, n_queries)) * n_items
    if then != now or not is_same_kind or not truth_pairs:
        return None
    growth = shape.n_items * shape.n_queries / (n_items * n_queries)
    seconds = {stage: growth * value for stage, value in last["seconds"].items() if stage not in OTHER_STAGES}
    disk_bytes = shards * sizes.disk_bytes
    pair_seconds = last["seconds"]["measure"] / (MEASURE_PER_JOIN * truth_pairs)
    return replace(sizes, seconds=seconds, disk_bytes=disk_bytes), pair_seconds


def _shape_of_shard(shape: JoinShape, shards: int) -> JoinShape:
    return replace(shape, n_items=-(-shape.n_items // shards))


def _estimate_shards(run: RunContext, shape: JoinShape, sample: Vectors, shards: int) -> Estimate:
    """Return the engine's estimate of all item shards: the memory is that of one, which is open at a time."""
    one = run.engine.estimate(_shape_of_shard(shape, shards), sample, run.settings, run.resources)
    seconds = {stage: shards * value for stage, value in one.seconds.items()}
    return replace(one, seconds=seconds, disk_bytes=shards * one.disk_bytes)


def _sum_costs(
    run: RunContext, checked: Checked, shape: JoinShape, engine: Estimate, pair_seconds: float
) -> RunEstimate:
    """Add up reading, index, join, table and truth. pair_seconds: of the reference join."""
    slots = shape.n_queries * shape.request.k
    report, choosing, checking = sample_sizes(run, shape.n_queries)
    sampled_queries = report + choosing + checking
    spent = run.meter.seconds
    seconds = {
        "read": spent.get("hash", 0.0) + spent.get("check", 0.0) * INGEST_PER_SCAN,
        **engine.seconds,
        "table": slots * SECONDS_PER_SLOT + shape.n_queries * SECONDS_PER_LIST,
        "measure": MEASURE_PER_JOIN * sampled_queries * shape.n_items * pair_seconds,
    }
    peak = max(
        engine.memory_bytes,
        engine.working_bytes,
        checked.memory_bytes,
        _table_memory(slots, shape.n_items),
        _measure_memory(slots) + SKETCH_BYTES * shape.dim + _truth_memory(run, shape, max(report, choosing + checking)),
    )
    disk = (
        checked.disk_bytes + engine.disk_bytes + slots * (SLOT_BYTES + 14) + OTHER_DISK
    )  # task results, then the table
    if run.spec.run.incremental:
        reserve = plan_reserve(shape.request.k, [cap.max_per_list for cap in run.spec.caps])
        disk += shape.n_queries * reserve.list_bytes
    return RunEstimate(seconds, run.meter.base_bytes + LIBRARY_BYTES + peak, disk, run.meter.budget_bytes)


def _table_memory(slots: int, n_items: int) -> int:
    """Estimate the peak memory of writing the table: of a row group or a smaller table, and the counts of the items."""
    return min(TABLE_BYTES, SMALL_TABLE_BYTES + slots * TABLE_BYTES_PER_SLOT) + 4 * min(n_items, DENSE_ITEMS)


def _measure_memory(slots: int) -> int:
    return min(MEASURE_BYTES, SMALL_TABLE_BYTES + slots * TABLE_BYTES_PER_SLOT)


def _truth_memory(run: RunContext, shape: JoinShape, queries: int) -> int:
    """Estimate the memory of the exact join of the sampled queries, with wider lists, and of their lists."""
    k, memory = shape.request.k, run.resources.memory_bytes
    blocks = choose_blocks(shape.dim, cached_width(k), run.resources, capped=bool(run.spec.caps))
    held = min(queries * k * SLOT_PAIR_BYTES, memory // BLOCK_SHARE)
    lists = held + min(queries * k, max(k, RANGE_SLOTS)) * SAMPLED_SLOT_BYTES
    return blocks.bytes_per_thread * min(run.resources.threads, -(-queries // QUERY_ROWS)) + lists


def require_budget(estimate: RunEstimate, run: RunContext) -> None:
    """Raise BudgetError if free disk is below the estimate, or memory below what the smallest pass needs."""
    engine, out = run.engine, run.workspace.home
    if estimate.memory_bytes > estimate.budget_bytes:
        way_out = "raise `memory`"
        if run.spec.run.shards is not None or run.spec.run.shard_bytes is not None:
            way_out += ", or leave run.shards and run.shard_bytes out: then there are as many as the budget needs"
        raise BudgetError(
            f"{engine.name} will need about {_format_size(estimate.memory_bytes)} of memory"
            f"{f' for one of {estimate.shards} item shards' if estimate.shards > 1 else ''}, and the budget is "
            f"{_format_size(estimate.budget_bytes)}; {way_out}"
        )
    free = shutil.disk_usage(_nearest_folder(out)).free
    if estimate.disk_bytes > free:
        raise BudgetError(
            f"the run will write about {_format_size(estimate.disk_bytes)} to {out}, and {_format_size(free)} are "
            "free; make room, or set `out` to another disk"
        )


def _nearest_folder(path: Path) -> Path:
    """Return the folder, or the nearest existing folder above it."""
    while not path.is_dir():
        path = path.parent
    return path


def _format_size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
