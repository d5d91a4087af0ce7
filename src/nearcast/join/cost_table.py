"""The cost table of a run: tasks, core-seconds, memory and bytes of each stage, computed from sizes and rates.

Numbers in, numbers out: nothing is read or measured here. Work that is spread over workers is summed; what a worker
needs is given for one. The join's work below recall 1 comes from the engine's own model of its pruning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nearcast.engines import choose_engine
from nearcast.engines.base import Estimate, JoinRequest, JoinShape
from nearcast.join.cost_rates import CostRates
from nearcast.join.passes import FIXED_BYTES, count_passes
from nearcast.kernels.quantize import pad_width
from nearcast.knn.query_splits import count_split_rows
from nearcast.measure.appearances import DENSE_ITEMS
from nearcast.table.candidate_schema import rows_per_group
from nearcast.table.write_table import GROUPS_PER_FILE
from nearcast.types import Metric

__all__ = ["CostTable", "JobSizes", "Prices", "ShardCost", "StageCost", "compute_costs", "cost_of_shard", "fit_shards"]

RANGE_ROWS = 1 << 20  # rows of an id range
TABLE_BYTES = 192 << 20
MERGE_COPIES = 3  # of a split's lists: of all shards, sorted, merged
SLOT_BYTES, TABLE_SLOT_BYTES = 12, 14  # of a list in a task's result; of the table (packages)
REQUESTS_PER_TASK = 10  # claim, check, facts of its inputs, three files, commit, facts
PART_BYTES = 8 << 20  # of an object that is read or written by a request
CALIBRATION_QUERIES = 2  # exactly joined queries per calibration query: the truth of two samples, and one pruned join
HOURS_PER_MONTH = 730


@dataclass(frozen=True, slots=True)
class JobSizes:
    """The sizes of a run."""

    n_items: int
    n_queries: int
    dim: int
    k: int  # of the join: more than stored where a model or an exposure cap chooses
    recall: float = 1.0
    item_bytes: int = 4  # of a component
    row_bytes: int = 16  # of a row's id and attributes
    shards: int = 1
    workers: int = 1
    cores: int = 1  # of a worker
    calibration: int = 1000
    sample: int = 2000
    selects: bool = False  # exposure cap or over-fetch
    scored: bool = False  # score terms
    self_join: bool = False

    def shape(self) -> JoinShape:
        """Return the join of all queries with one shard."""
        request = JoinRequest(Metric.INNER_PRODUCT, self.k, self.recall)
        return JoinShape(request, -(-self.n_items // self.shards), self.n_queries, self.dim, self.item_bytes)

    @property
    def rows(self) -> int:
        """Rows of both tables; of one, if it is joined with itself."""
        return self.n_items + (0 if self.self_join else self.n_queries)

    @property
    def vector_bytes(self) -> int:
        """Bytes of a stored vector."""
        return self.dim * self.item_bytes


@dataclass(frozen=True, slots=True)
class ShardCost:
    """Cost of one shard: its index, and the join of all queries with it."""

    build_seconds: float  # core-seconds
    join_seconds: float
    scan_seconds: float  # of an exact scan, per pair
    truth_seconds: float  # of the reference join, per pair
    memory_bytes: int  # of building; a join maps the index
    index_bytes: int  # on disk, without the vectors
    held_bytes: int = 0  # of a join: files that it maps, and its buffers
    ingest_seconds: float | None = None  # of all rows; None: by the rates


@dataclass(frozen=True, slots=True)
class StageCost:
    """Cost of a stage."""

    stage: str
    tasks: int
    core_seconds: float
    memory_bytes: int  # of a worker
    read_bytes: int = 0  # downloaded by all workers
    written_bytes: int = 0

    @property
    def requests(self) -> int:
        """Requests to the storage."""
        return self.tasks * REQUESTS_PER_TASK + (self.read_bytes + self.written_bytes) // PART_BYTES

    def wall_seconds(self, workers: int, cores: int) -> float:
        """Return the time that workers take, each a task at a time on all its cores."""
        rounds = -(-self.tasks // workers)
        return rounds * self.core_seconds / max(1, self.tasks) / cores

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "stage": self.stage,
            "tasks": self.tasks,
            "core_seconds": round(self.core_seconds, 3),
            "memory_bytes": self.memory_bytes,
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "requests": self.requests,
        }


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in any one currency; None: not given."""

    core_hour: float | None = None
    gb_month: float | None = None
    million_requests: float | None = None


@dataclass(frozen=True, slots=True)
class CostTable:
    """Costs by stage, and their totals."""

    sizes: JobSizes
    stages: tuple[StageCost, ...]
    kept_bytes: int  # tables, indexes and snapshot: later runs use them
    work_bytes: int  # results of tasks: deleted with the run
    prices: Prices = field(default_factory=Prices)

    @property
    def core_hours(self) -> float:
        """Core-hours of all stages."""
        return sum(stage.core_seconds for stage in self.stages) / 3600

    @property
    def wall_seconds(self) -> float:
        """Time from the first task to the last, without waiting for machines."""
        return sum(stage.wall_seconds(self.sizes.workers, self.sizes.cores) for stage in self.stages)

    @property
    def memory_bytes(self) -> int:
        """Memory that a worker needs."""
        return max(stage.memory_bytes for stage in self.stages)

    @property
    def requests(self) -> int:
        """Requests of all stages."""
        return sum(stage.requests for stage in self.stages)

    def money(self) -> dict[str, float]:
        """Return the cost by kind, of what has a price. Storage is for a month; results are stored during the run."""
        months = self.wall_seconds / 3600 / HOURS_PER_MONTH
        amounts = {
            "compute": (self.prices.core_hour, self.core_hours),
            "storage_month": (self.prices.gb_month, self.kept_bytes / 1e9),
            "work_storage": (self.prices.gb_month, self.work_bytes / 1e9 * months),
            "requests": (self.prices.million_requests, self.requests / 1e6),
        }
        return {name: price * amount for name, (price, amount) in amounts.items() if price is not None}

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        money = {name: round(amount, 4) for name, amount in self.money().items()}
        return {
            "shards": self.sizes.shards,
            "workers": self.sizes.workers,
            "cores_per_worker": self.sizes.cores,
            "stages": [stage.as_dict() for stage in self.stages],
            "tasks": sum(stage.tasks for stage in self.stages),
            "core_hours": round(self.core_hours, 4),
            "wall_seconds": round(self.wall_seconds, 1),
            "worker_memory_bytes": self.memory_bytes,
            "kept_bytes": self.kept_bytes,
            "work_bytes": self.work_bytes,
            "read_bytes": sum(stage.read_bytes for stage in self.stages),
            "requests": self.requests,
            **({"money": money | {"total": round(sum(money.values()), 4)}} if money else {}),
        }


def cost_of_shard(sizes: JobSizes, rates: CostRates) -> ShardCost:
    """Return the cost of a shard with engine `dense`, by its model of the work and the rates of a machine."""
    shape, width = sizes.shape(), pad_width(sizes.dim)
    pairs: Mapping[str, float] = choose_engine("auto").count_pairs(shape)
    per_pair = rates.scan_seconds(width)
    multiple = rates.join_multiple(shape.n_items) if "build" in pairs else 1.0
    memory = _estimate_sizes(shape)
    return ShardCost(
        build_seconds=pairs.get("build", 0.0) * per_pair * rates.build_factor,
        join_seconds=pairs["join"] * per_pair * multiple + sizes.n_queries * sizes.k * rates.join_slot,
        scan_seconds=per_pair,
        truth_seconds=rates.truth_pair + sizes.dim * rates.truth_component,
        memory_bytes=memory.memory_bytes,
        index_bytes=memory.disk_bytes - shape.n_items * sizes.vector_bytes,
        held_bytes=memory.mapped_bytes + memory.working_bytes,
    )


def fit_shards(sizes: JobSizes, memory_bytes: int) -> int:
    """Return the smallest number of shards of which one fits the memory of a worker."""
    engine = choose_engine("auto")
    return count_passes(engine, engine.settings(), replace(sizes, shards=1).shape(), memory_bytes)


def _estimate_sizes(shape: JoinShape) -> Estimate:
    """Return memory and disk of the default engine."""
    engine = choose_engine("auto")
    found = engine.estimate_sizes(shape, engine.settings())
    assert found is not None
    return found


def compute_costs(sizes: JobSizes, shard: ShardCost, rates: CostRates, prices: Prices | None = None) -> CostTable:
    """Return the cost table of a run with these sizes."""
    stages = (
        _ingest(sizes, shard, rates),
        *([_score(sizes, rates)] if sizes.scored else []),
        _index(sizes, shard, rates),
        *([_calibrate(sizes, shard, rates)] if sizes.recall < 1 else []),
        _join(sizes, shard, rates),
        *([_merge(sizes, rates)] if sizes.shards > 1 else []),
        *([_choose(sizes, rates)] if sizes.selects else []),
        _table(sizes, rates),
        _measure(sizes, shard, rates),
    )
    slots = sizes.n_queries * sizes.k
    kept = sizes.rows * (sizes.vector_bytes + sizes.row_bytes) + sizes.shards * shard.index_bytes
    copies = sizes.shards + (1 if sizes.shards > 1 else 0) + (1 if sizes.selects else 0)
    return CostTable(sizes, stages, kept + slots * TABLE_SLOT_BYTES, copies * slots * SLOT_BYTES, prices or Prices())


def _ingest(sizes: JobSizes, shard: ShardCost, rates: CostRates) -> StageCost:
    """Split the rows of each part of a source by id range, then sort each range."""
    row = sizes.vector_bytes + sizes.row_bytes
    seconds = shard.ingest_seconds
    if seconds is None:
        seconds = sizes.rows * (rates.ingest_row + sizes.vector_bytes * rates.ingest_byte)
    tables = (sizes.n_items,) if sizes.self_join else (sizes.n_items, sizes.n_queries)
    counts = [-(-n // RANGE_ROWS) for n in tables]
    is_split = max(counts) > 1
    tasks = 2 * sum(counts) if is_split else 1
    memory = FIXED_BYTES + 3 * row * min(RANGE_ROWS, max(tables))
    written = sizes.rows * row
    return _stage("ingest", rates, tasks, seconds, memory, 2 * written if is_split else written, written)


def _score(sizes: JobSizes, rates: CostRates) -> StageCost:
    """Write the vectors again, with a component more."""
    written = sizes.rows * (sizes.vector_bytes + sizes.item_bytes)
    seconds = written * rates.ingest_byte
    return _stage("score", rates, 2 * -(-sizes.rows // RANGE_ROWS), seconds, 2 * FIXED_BYTES, written, written)


def _index(sizes: JobSizes, shard: ShardCost, rates: CostRates) -> StageCost:
    """Build the index of each shard."""
    memory = FIXED_BYTES + shard.memory_bytes
    read = sizes.n_items * sizes.vector_bytes
    written = sizes.shards * shard.index_bytes
    return _stage("index", rates, sizes.shards, sizes.shards * shard.build_seconds, memory, read, written)


def _calibrate(sizes: JobSizes, shard: ShardCost, rates: CostRates) -> StageCost:
    """Join samples of the queries exactly, and try search parameters on them: one task, shard after shard."""
    queries = min(sizes.n_queries, CALIBRATION_QUERIES * sizes.calibration)
    seconds = queries * sizes.n_items * shard.scan_seconds
    return _stage("calibrate", rates, 1, seconds, _join_memory(shard), _indexed_bytes(sizes, shard), 0)


def _join(sizes: JobSizes, shard: ShardCost, rates: CostRates) -> StageCost:
    """Join each split of the queries with each shard. `_shards_of_worker` has the number of shards of a worker."""
    splits = _count_splits(sizes)
    downloads = sizes.workers * _shards_of_worker(sizes) / sizes.shards * _indexed_bytes(sizes, shard)
    queries = min(sizes.workers, splits) * sizes.n_queries * sizes.vector_bytes
    written = sizes.shards * sizes.n_queries * sizes.k * SLOT_BYTES
    seconds = sizes.shards * shard.join_seconds
    tasks, memory = splits * sizes.shards, _join_memory(shard)
    return _stage("join", rates, tasks, seconds, memory, int(downloads) + queries, written)


def _merge(sizes: JobSizes, rates: CostRates) -> StageCost:
    """Merge the lists of all shards, a split of the queries a task."""
    slots = sizes.n_queries * sizes.k
    rows = min(sizes.n_queries, count_split_rows(sizes.n_queries, sizes.dim, sizes.k))
    memory = FIXED_BYTES + MERGE_COPIES * sizes.shards * rows * sizes.k * SLOT_BYTES
    read = sizes.shards * slots * SLOT_BYTES
    seconds = sizes.shards * slots * rates.merge_slot
    return _stage("merge", rates, _count_splits(sizes), seconds, memory, read, slots * SLOT_BYTES)


def _choose(sizes: JobSizes, rates: CostRates) -> StageCost:
    """Select the stored candidates of all queries, in one task."""
    slots = sizes.n_queries * sizes.k
    read = slots * SLOT_BYTES
    return _stage("choose", rates, 1, slots * rates.choose_slot, 2 * FIXED_BYTES, read, read)


def _table(sizes: JobSizes, rates: CostRates) -> StageCost:
    """Write the files of the table."""
    slots = sizes.n_queries * sizes.k
    tasks = -(-sizes.n_queries // (GROUPS_PER_FILE * rows_per_group(sizes.k)))
    ids = min(sizes.workers, tasks) * sizes.n_items * sizes.row_bytes
    read, written = slots * SLOT_BYTES + ids, slots * TABLE_SLOT_BYTES
    memory = FIXED_BYTES + TABLE_BYTES + 4 * min(sizes.n_items, DENSE_ITEMS)
    return _stage("table", rates, tasks, slots * rates.table_slot, memory, read, written)


def _measure(sizes: JobSizes, shard: ShardCost, rates: CostRates) -> StageCost:
    """Compare a sample of the lists with the exact neighbors."""
    pairs = min(sizes.n_queries, sizes.sample) * sizes.n_items
    read = sizes.n_items * sizes.vector_bytes
    return _stage("measure", rates, 1, pairs * shard.truth_seconds, FIXED_BYTES + TABLE_BYTES, read, 0)


def _stage(name: str, rates: CostRates, tasks: int, seconds: float, memory: int, read: int, written: int) -> StageCost:
    """Add the cost of starting tasks and of moving bytes."""
    seconds += tasks * rates.task + (read + written) * rates.transfer_byte
    return StageCost(name, tasks, seconds, memory, read, written)


def _count_splits(sizes: JobSizes) -> int:
    return max(1, -(-sizes.n_queries // count_split_rows(sizes.n_queries, sizes.dim, sizes.k)))


def _shards_of_worker(sizes: JobSizes) -> int:
    """Return the number of shards that a worker joins with.

    Worker i of W runs the tasks whose number is i modulo W, and the tasks of a shard have numbers in a row. So a worker
    goes through all shards, one after the other, unless it has fewer tasks than there are shards.
    """
    return min(sizes.shards, -(-sizes.shards * _count_splits(sizes) // sizes.workers))


def _indexed_bytes(sizes: JobSizes, shard: ShardCost) -> int:
    """Return the bytes of all items with their indexes."""
    return sizes.n_items * sizes.vector_bytes + sizes.shards * shard.index_bytes


def _join_memory(shard: ShardCost) -> int:
    """Return the memory of a join task: the mapped index and items of a shard, and the working set."""
    return FIXED_BYTES + shard.held_bytes
