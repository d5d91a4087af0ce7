"""The engine `faiss-ivf`: cells by k-means and a scan of the nearest few, as faiss does it online.

Source: Jegou, Douze, Schmid, "Product quantization for nearest neighbor search", 2011 (the inverted file
part); faiss `IndexIVFFlat`. At full effort (every cell) a join scores every item as the engine `exact` does, since
faiss ranks by float32 sums, which lose digits under l2, and leaves it open which of equal items it keeps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from nearcast.engines.base import MIN_SCORE, Effort, EngineSettings, Estimate, JoinShape, Resources, Workload
from nearcast.engines.faiss_common import (
    blocks,
    faiss,
    faiss_metric,
    ladder,
    open_faiss,
    prepared,
    save_faiss,
    search_or_scan,
    trial,
)
from nearcast.knn.constraints import FREE, Constraints
from nearcast.types import AnyArray, FloatArray, IntArray, Metric, Neighbors, Progress, Vectors

__all__ = ["FaissIvfEngine"]

ITERATIONS = 10  # k-means gains little after that for probing
SCAN_SLOWDOWN = 4  # a list scan runs at about a quarter of the rate of a large matrix product
WORKING_BYTES = 192 << 20  # a block of items to file, a batch of queries and their candidates's vectors
GUESSED_SHARE = 16  # before calibration: a sixteenth of the cells


class IvfSettings(EngineSettings):
    """Settings of an IVF index."""

    nlist: int | None = Field(None, ge=1, description="cells; 4 * sqrt(items) where it is not given")
    train_rows_per_cell: int = Field(64, ge=1, description="items that k-means sees, per cell")
    nprobe: int | None = Field(None, ge=1, description="cells a query visits; found for the recall if not given")

    def cells(self, n_items: int) -> int:
        """How many cells an index of this many items has."""
        return max(1, min(n_items, self.nlist or round(4 * math.sqrt(n_items))))


@dataclass(frozen=True, slots=True)
class IvfIndex:
    """An open faiss IVF index."""

    index: Any
    items: Vectors
    metric: Metric
    settings: IvfSettings

    def efforts(self, k: int) -> Sequence[Effort]:
        """From one probe to all cells, or the one that the settings force."""
        if self.settings.nprobe is not None:
            return ({"nprobe": min(self.settings.nprobe, self.index.nlist)},)
        return ladder(1, self.index.nlist, "nprobe")

    def is_full(self, effort: Effort) -> bool:
        """Whether every cell is visited."""
        return effort["nprobe"] >= int(self.index.nlist)

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
        """Search every query with the effort's nprobe; with all cells, score every item instead."""
        return search_or_scan(
            self,
            queries,
            k,
            effort=effort,
            exclude=exclude,
            constraints=constraints,
            resources=resources,
            progress=progress,
        )

    def positions(self, prepared_queries: FloatArray, k: int, effort: Effort) -> IntArray:
        """(n, k) what a search of some effort finds, -1 for nothing.

        Safe from many threads; takes as many threads as faiss was told to in the caller's.
        """
        positions: IntArray = self.index.search(prepared_queries, k, params=_parameters(effort["nprobe"]))[1]
        return positions

    def pays(
        self, queries: AnyArray, k: int, effort: Effort, resources: Resources, constraints: Constraints = FREE
    ) -> bool:
        """Always: full effort visits everything one query at a time."""
        return True

    def save(self, folder: Path) -> None:
        """Write the faiss index."""
        save_faiss(self.index, folder)


class FaissIvfEngine:
    """Cells and probes by faiss."""

    name = "faiss-ivf"
    metrics = frozenset(Metric)
    exact = False
    honours = frozenset({MIN_SCORE})
    fits_workload = False
    settings: type[EngineSettings] = IvfSettings

    def estimate(
        self, shape: JoinShape, items: Vectors, metric: Metric, settings: EngineSettings, resources: Resources
    ) -> Estimate:
        """Count multiplications of training, filing and scanning; divide by a measured rate."""
        assert isinstance(settings, IvfSettings)
        cells = settings.cells(shape.n_items)
        train_rows = min(shape.n_items, cells * settings.train_rows_per_cell)
        nprobe = settings.nprobe or max(1, cells // GUESSED_SHARE)
        block = trial(items, metric)
        started = time.perf_counter()
        block @ block.T
        rate = len(block) ** 2 * shape.dim / max(1e-6, time.perf_counter() - started)
        build = (train_rows * ITERATIONS + shape.n_items) * cells * shape.dim / rate
        scanned = shape.n_items * min(1.0, nprobe / cells) * SCAN_SLOWDOWN + cells
        vectors = shape.n_items * (shape.dim * 4 + 8)
        return Estimate(
            {"build": build, "join": shape.n_queries * scanned * shape.dim / rate},
            round(vectors * 1.15) + WORKING_BYTES,  # faiss grows its lists by doubling, but few at a time
            vectors + cells * shape.dim * 4,
        )

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
    ) -> IvfIndex:
        """Train on a random sample of the items, then file all of them."""
        assert isinstance(settings, IvfSettings)
        faiss().omp_set_num_threads(resources.threads)
        cells = settings.cells(items.n)
        kind = faiss_metric(metric)
        coarse = faiss().IndexFlat(items.dim, kind)
        index = faiss().IndexIVFFlat(coarse, items.dim, cells, kind)
        coarse.this.disown()
        index.own_fields = True
        index.cp.seed, index.cp.niter = seed + 1, ITERATIONS
        index.cp.min_points_per_centroid = 1
        index.cp.max_points_per_centroid = settings.train_rows_per_cell
        progress("build", 0, items.n)
        index.train(_training_rows(items, cells * settings.train_rows_per_cell, metric, seed))
        for done, block in blocks(items, metric):
            index.add(block)
            progress("build", done, items.n)
        return IvfIndex(index, items, metric, settings)

    def open(self, folder: Path, items: Vectors, metric: Metric, settings: EngineSettings) -> IvfIndex:
        """Read the faiss index."""
        assert isinstance(settings, IvfSettings)
        return IvfIndex(open_faiss(folder), items, metric, settings)


@cache
def _parameters(nprobe: int) -> Any:
    return faiss().SearchParametersIVF(nprobe=nprobe)


def _training_rows(items: Vectors, wanted: int, metric: Metric, seed: int) -> FloatArray:
    rng = np.random.default_rng([seed, 1])
    chosen = np.sort(rng.choice(items.n, min(items.n, wanted), replace=False))
    return prepared(items.take(chosen), metric)
