"""The engine `dense`: the join as dense 8-bit arithmetic on native kernels, exact or pruned by cells.

Exact by a bound: the 8-bit scan leaves out only what its rounding error excludes, and full-precision scores decide.
Pruned, a query meets the cells whose centres come near enough; how near is the effort. Where the kernels were
not built, the NumPy join answers instead, exactly and slowly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from nearcast import kernels
from nearcast.engines.base import (
    CAPS,
    MIN_SCORE,
    RULES,
    Effort,
    EngineSettings,
    Estimate,
    JoinShape,
    Resources,
    Workload,
)
from nearcast.errors import DamagedError, SpecError
from nearcast.kernels.join import MOST_DIMENSIONS
from nearcast.kernels.quantize import TILE_ITEMS
from nearcast.knn.constraints import FREE, Constraints
from nearcast.mapped import map_array
from nearcast.types import AnyArray, IntArray, Metric, Neighbors, Progress, Vectors, no_progress

__all__ = ["EXACT", "MOST_MET", "DenseEngine", "DenseIndex", "work_in_pairs"]

EXACT: Effort = {"exact": 1}
REACHES = range(-300, 810, 10)  # hundredths of a spread: from the best cells alone to nearly all of them
TRIAL_QUERIES, TRIAL_ITEMS = 4_096, 65_536
# Of all items. The cells are made by then, so only the joins are compared: per item met, cells take 0.8 to 1.5 times as
# long as one block (GloVe under L2 and cosine, packages), so what is lost is little on either side of this.
MOST_MET = 0.6
BUILD_SLOWDOWN = 20  # rounds of k-means, sums and ordering, against the scan of one assignment alone (packages)
CALIBRATION_QUERIES = 12_000  # that exact joins would answer in the time that samples, their truth and trials take
PRUNED_SHARE = 0.21  # of an exact join's time, at recall 0.95 in SHARE_CELLS cells (packages, 50,000 to 400,000 items)
SHARE_CELLS = 4_111
RULED_REACH = 0.5  # with a hundredth of the items eligible, ten times as many are met for the same recall
QUERIES_AT_ONCE = 1 << 14
COUNTED_AT_ONCE = 512  # whatever the resources, so that they have no say in what is counted
LEAST_BYTES = 32 << 20


class DenseSettings(EngineSettings):
    """Settings of a dense index."""

    cells: int | None = Field(
        None, ge=1, description="k-means cells; about 6.5 * sqrt(items), or 1 where exact is cheaper"
    )
    reach: int | None = Field(None, description="how far cells are met, in hundredths; found for the recall")


class DenseIndex:
    """Items as 8-bit tiles in cells, with their full vectors beside them.

    Full effort scans the items in one block, longest first, which is faster than cell by cell; that block is
    made when it is first asked for. Under rules they are scanned in blocks that the rules tell apart; how items are
    laid out never changes an exact answer.
    """

    def __init__(self, index: kernels.DenseIndex, settings: DenseSettings) -> None:
        self.index = index
        self.settings = settings
        self._whole = index if index.n_cells == 1 else None
        self._ruled: kernels.DenseIndex | None = index if index.centres is None else None

    def efforts(self, k: int) -> Sequence[Effort]:
        """More and more cells, then all items; only all items where there are no cells."""
        if self.index.n_cells == 1:
            return (EXACT,)
        if self.settings.reach is not None:
            return ({"reach": self.settings.reach},)
        return (*({"reach": reach} for reach in REACHES), EXACT)

    def is_full(self, effort: Effort) -> bool:
        """Whether all items are scanned."""
        return effort == EXACT

    def join(
        self,
        queries: AnyArray,
        k: int,
        *,
        effort: Effort,
        exclude: IntArray | None,
        constraints: Constraints = FREE,
        resources: Resources,
        progress: Progress,
    ) -> Neighbors:
        """Scan what the effort reaches, and score what the bound leaves."""
        found = self._scan(queries, k, effort, exclude, constraints, resources, progress)
        return Neighbors(found.positions, found.scores)

    def pays(
        self, queries: AnyArray, k: int, effort: Effort, resources: Resources, constraints: Constraints = FREE
    ) -> bool:
        """Whether the effort meets few enough items for the cells to save time.

        The cells are made by now, so what they cost has no say. How many items are met is the same on every machine.
        """
        if effort == EXACT or len(queries) == 0:
            return True
        every: float = TILE_ITEMS * -(-len(self.index.items) // TILE_ITEMS)
        if not constraints.free:  # whole blocks may be barred from an exact join
            every = self.met(queries, k, EXACT, resources, constraints)
        return self.met(queries, k, effort, resources, constraints) < MOST_MET * max(1.0, every)

    def met(
        self, queries: AnyArray, k: int, effort: Effort, resources: Resources, constraints: Constraints = FREE
    ) -> float:
        """How many items a query meets on average, with what fills up the last tile of a cell."""
        scan = self._scan(queries, k, effort, None, constraints, resources, no_progress, COUNTED_AT_ONCE)
        return float(TILE_ITEMS * scan.counters.get("tile_rows", 0) / max(1, len(queries)))

    def _scan(
        self,
        queries: AnyArray,
        k: int,
        effort: Effort,
        exclude: IntArray | None,
        constraints: Constraints,
        resources: Resources,
        progress: Progress,
        per_job: int | None = None,
    ) -> kernels.Joined:
        exact = "reach" not in effort
        return (self._all_items(constraints, resources) if exact else self.index).join(
            queries,
            k,
            reach=math.inf if exact else effort["reach"] / 100,
            exclude=exclude,
            constraints=constraints,
            threads=resources.threads,
            memory_bytes=resources.memory_bytes // 4,
            per_job=per_job,
            progress=lambda done, total: progress("join", done, total),
        )

    def _all_items(self, constraints: Constraints, resources: Resources) -> kernels.DenseIndex:
        if constraints.eligibility is not None:
            if self._ruled is None:
                self._ruled = kernels.ruled_index(
                    self.index.items, self.index.metric, constraints.eligibility, threads=resources.threads
                )
            return self._ruled
        if self._whole is None:
            self._whole = kernels.build_index(self.index.items, self.index.metric, cells=1, threads=resources.threads)
        return self._whole

    def save(self, folder: Path) -> None:
        """Write the arrays, one file each."""
        for name, array in kernels.index_arrays(self.index).items():
            np.save(folder / f"{name}.npy", array)


class DenseEngine:
    """Dense arithmetic on all pairs, or on the pairs of near cells."""

    name = "dense"
    metrics = frozenset(Metric)
    exact = True
    honours = frozenset({RULES, CAPS, MIN_SCORE})
    fits_workload = True
    settings: type[EngineSettings] = DenseSettings

    def estimate(
        self, shape: JoinShape, items: Vectors, metric: Metric, settings: EngineSettings, resources: Resources
    ) -> Estimate:
        """Join a few items exactly, and scale by pairs; a pruned join is guessed at a share of that."""
        assert isinstance(settings, DenseSettings)
        _refuse_wide(shape.dim)
        block = np.ascontiguousarray(items.read(0, min(items.n, TRIAL_ITEMS)))
        started = time.perf_counter()
        found = kernels.join_exact(block[:TRIAL_QUERIES], block, shape.k, metric, threads=resources.threads)
        pairs = len(found.positions) * len(block)
        per_pair = (time.perf_counter() - started) / pairs
        seconds = {stage: per_pair * pairs for stage, pairs in work_in_pairs(shape, settings.cells).items()}
        size = shape.n_items * (kernels.width_of(shape.dim) + shape.dim * shape.item_bytes)
        return Estimate(seconds, 2 * size + _working_bytes(shape), size)

    def build(
        self,
        items: Vectors,
        metric: Metric,
        settings: EngineSettings,
        *,
        workload: Workload | None = None,
        seed: int,
        resources: Resources,
        progress: Progress,
    ) -> DenseIndex:
        """Cells where they pay, one block of all items where they do not."""
        assert isinstance(settings, DenseSettings)
        _refuse_wide(items.dim)
        cells = settings.cells or worthwhile_cells(items.n, workload)
        rule = None if workload is None else workload.constraints.eligibility
        if cells == 1 and rule is not None:
            whole = np.ascontiguousarray(items.whole())
            index = kernels.ruled_index(whole, metric, rule, threads=resources.threads)
            progress("build", items.n, items.n)
            return DenseIndex(index, settings)
        index = kernels.build_index(
            np.ascontiguousarray(items.whole()),
            metric,
            cells=cells,
            seed=seed,
            threads=resources.threads,
            query_sample=None if workload is None or len(workload.sample) == 0 else workload.sample,
        )
        progress("build", items.n, items.n)
        return DenseIndex(index, settings)

    def open(self, folder: Path, items: Vectors, metric: Metric, settings: EngineSettings) -> DenseIndex:
        """Map the arrays."""
        assert isinstance(settings, DenseSettings)
        try:
            arrays = {path.stem: map_array(path) for path in folder.glob("*.npy")}
            return DenseIndex(kernels.index_of_arrays(items.whole(), metric, arrays), settings)
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise DamagedError(f"{folder} does not hold what was saved ({error}); remove it and run again") from error


def _refuse_wide(dim: int) -> None:
    """Raise SpecError for vectors of more dimensions than the kernels take."""
    if dim > MOST_DIMENSIONS:
        raise SpecError(
            f'engine dense takes vectors of at most {MOST_DIMENSIONS:,} dimensions, got {dim:,}; set engine = "exact"'
        )


def _working_bytes(shape: JoinShape) -> int:
    """Codes, buffers and results of a task's queries, and the lists of which cells each of them meets."""
    queries = min(shape.n_queries, QUERIES_AT_ONCE)
    buffers = 8 * (5 * shape.k + 208) + 4 * kernels.width_of(shape.dim)
    cells = 8 * kernels.default_cells(shape.n_items) // 4  # a quarter of them is met by a query that needs many
    return LEAST_BYTES + queries * (buffers + cells)


def work_in_pairs(shape: JoinShape, cells: int | None = None) -> dict[str, float]:
    """What build and join take, counted in pairs of an exact join: the same on every machine."""
    cells = cells or _worthwhile(shape.n_items, shape.n_queries, shape.recall)
    pairs = float(shape.n_queries) * shape.n_items
    if cells == 1:
        return {"join": pairs}
    return {"build": shape.n_items * _build_queries(cells), "join": pairs * _pruned_share(cells, shape.recall)}


def worthwhile_cells(n_items: int, workload: Workload | None) -> int:
    """How many cells pay for themselves: one for an exact promise, for few queries, or for queries unknown."""
    if workload is None:
        return 1
    rule = workload.constraints.eligibility
    met, eligible = (1.0, 1.0) if rule is None else kernels.shares_under(rule)
    return _worthwhile(n_items, workload.n_queries, workload.recall, met, eligible)


def _worthwhile(n_items: int, n_queries: int, recall: float, met: float = 1.0, eligible: float = 1.0) -> int:
    """The cells that save more than they cost, both counted in queries that are joined exactly; else 1.

    Under rules an exact join meets a share of the pairs, and a pruned one reaches further for the eligible few.
    """
    cells = kernels.default_cells(n_items)
    if recall == 1 or cells == 1:
        return 1
    saved = n_queries * (met - min(1.0, _pruned_share(cells, recall) / max(eligible, 1e-9) ** RULED_REACH))
    return cells if saved > _build_queries(cells) + CALIBRATION_QUERIES else 1


def _build_queries(cells: int) -> float:
    """How many queries could be joined exactly in the time that making the cells takes."""
    return BUILD_SLOWDOWN * (cells / 8 + math.sqrt(cells))  # centres that an item meets, through groups of them


def _pruned_share(cells: int, recall: float) -> float:
    """What a pruned join takes of an exact join's time: on packages 0.74 at 50,000 items, 0.43 at a recall of 0.99."""
    if recall == 1:
        return 1.0
    share: float = PRUNED_SHARE * (SHARE_CELLS / cells) ** 1.2 * (0.05 / (1 - recall)) ** 0.4
    return min(1.0, share)
