"""The estimate of a run: seconds by stage, peak memory, disk; and the check against the budget."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearcast.engines import choose_engine
from nearcast.engines.base import Estimate, JoinRequest, JoinShape
from nearcast.errors import BudgetError
from nearcast.join.inputs import read_trial_vectors
from nearcast.join.plan_join import sample_sizes
from nearcast.join.shard_plan import choose_shards
from nearcast.spec import GeneratorSpec
from nearcast.types import Vectors

if TYPE_CHECKING:
    from nearcast.join.context import RunContext
    from nearcast.join.inputs import Checked

__all__ = ["RunEstimate", "estimate_run", "require_budget"]

TABLE_BYTES = 136 << 20  # working set of writing: one row group and its ids, several times
MEASURE_BYTES = 152 << 20  # of measuring: blocks of the exact join, a row group, samples
SECONDS_PER_SLOT, SECONDS_PER_LIST = 60e-9, 2e-6  # to write the table; measured on packages, two cores
SLOT_BYTES = 12  # of a list of a task: position and score
OTHER_DISK = 1 << 20  # manifests, file headers
SMALL_TABLE_BYTES, TABLE_BYTES_PER_SLOT = 32 << 20, 192
LIBRARY_BYTES = 48 << 20  # memory that Arrow, BLAS and faiss take when first used
MEASURE_PER_JOIN = 1.25  # the exact join of the samples, and what is computed from it
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

    planned: the spec without the limits of this host; default: the run's own. Reports the estimate to the listener.
    Raises nothing: see `require_budget`.
    """
    report = checked.report
    sample = read_trial_vectors(checked, run.artifacts, run.read_bytes)
    request = JoinRequest(run.spec.metric, run.spec.join_k, run.spec.recall)
    shape = JoinShape(request, report.items.vectors, report.queries.vectors, report.items.dim, sample.dtype.itemsize)
    shards = choose_shards(run, planned or run.spec, shape)
    engine = _estimate_shards(run, shape, sample, shards)
    reference = choose_engine("exact")
    exact = reference.estimate(shape, sample, reference.settings(), run.resources)
    estimate = _sum_costs(run, checked, shape, engine, exact)
    estimate = replace(estimate, shards=shards)
    if shards > 1:  # lists of each shard beside the merged ones
        estimate = replace(estimate, disk_bytes=estimate.disk_bytes + shards * shape.n_queries * request.k * SLOT_BYTES)
    run.listener.estimated(estimate)
    return estimate


def _estimate_shards(run: RunContext, shape: JoinShape, sample: Vectors, shards: int) -> Estimate:
    """Return the engine's estimate of all item shards: the memory is that of one, which is open at a time."""
    largest = replace(shape, n_items=-(-shape.n_items // shards))
    one = run.engine.estimate(largest, sample, run.settings, run.resources)
    seconds = {stage: shards * value for stage, value in one.seconds.items()}
    return replace(one, seconds=seconds, disk_bytes=shards * one.disk_bytes)


def _sum_costs(run: RunContext, checked: Checked, shape: JoinShape, engine: Estimate, exact: Estimate) -> RunEstimate:
    """Add up reading, index, join, table and truth."""
    slots = shape.n_queries * shape.request.k
    seconds_per_pair = exact.seconds["join"] / max(1, shape.n_queries * shape.n_items)
    sampled_queries = sum(sample_sizes(run, shape.n_queries))
    spent = run.meter.seconds
    seconds = {
        "read": spent.get("hash", 0.0) + spent.get("check", 0.0) * INGEST_PER_SCAN,
        **engine.seconds,
        "table": slots * SECONDS_PER_SLOT + shape.n_queries * SECONDS_PER_LIST,
        "measure": MEASURE_PER_JOIN * sampled_queries * shape.n_items * seconds_per_pair,
    }
    peak = max(
        engine.memory_bytes, engine.working_bytes, checked.memory_bytes, _table_memory(slots), _measure_memory(slots)
    )
    disk = (
        checked.disk_bytes + engine.disk_bytes + slots * (SLOT_BYTES + 14) + OTHER_DISK
    )  # task results, then the table
    return RunEstimate(seconds, run.meter.base_bytes + LIBRARY_BYTES + peak, disk, run.meter.budget_bytes)


def _table_memory(slots: int) -> int:
    """Estimate the peak memory of writing the table: of a row group, or of the whole table if it is smaller."""
    return min(TABLE_BYTES, SMALL_TABLE_BYTES + slots * TABLE_BYTES_PER_SLOT)


def _measure_memory(slots: int) -> int:
    return min(MEASURE_BYTES, SMALL_TABLE_BYTES + slots * TABLE_BYTES_PER_SLOT)


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
