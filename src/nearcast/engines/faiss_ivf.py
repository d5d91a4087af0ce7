"""The engine `faiss-ivf`: k-means cells, and a scan of the cells nearest to a query, as faiss searches online.

Source: Jegou, Douze, Schmid, "Product quantization for nearest neighbor search", 2011 (the inverted file
part); faiss `IndexIVFFlat`. With every cell probed a join scores every item as the engine `exact` does: faiss ranks by
float32 sums, which lose digits under l2, and does not define which of equal items it keeps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from nearcast.engines.base import (
    EngineSettings,
    Estimate,
    IndexSpec,
    JoinShape,
    Resources,
    SearchParams,
    Workload,
)
from nearcast.engines.faiss_common import (
    FaissEngine,
    FaissIndex,
    faiss,
    faiss_metric,
    geometric_points,
    open_faiss,
    prepare_vectors,
    read_blocks,
    sample_items,
)
from nearcast.types import FloatArray, IntArray, Metric, Progress, Vectors, no_progress

__all__ = ["FaissIvfEngine"]

ITERATIONS = 10  # k-means gains little after that for probing
SCAN_SLOWDOWN = 4  # a list scan runs at about a quarter of the rate of a large matrix product
WORKING_BYTES = 192 << 20  # a block of items to file, a batch of queries and their candidates's vectors
GUESSED_SHARE = 16  # before calibration: a sixteenth of the cells


class IvfSettings(EngineSettings):
    """Settings of an IVF index."""

    nlist: int | None = Field(None, ge=1, description="k-means cells. Default: 4 * sqrt(items)")
    train_rows_per_cell: int = Field(64, ge=1, description="items per cell that k-means is trained on")
    nprobe: int | None = Field(None, ge=1, description="cells that a query probes. Default: found for the recall")

    def cells(self, n_items: int) -> int:
        """Return the number of cells of an index over so many items."""
        return max(1, min(n_items, self.nlist or round(4 * math.sqrt(n_items))))


@dataclass(frozen=True, slots=True)
class IvfIndex(FaissIndex):
    """An open faiss IVF index."""

    nprobe: int | None  # fixed by the settings

    def operating_points(self, k: int) -> Sequence[SearchParams]:
        """Return one probe up to all cells, or the number of probes that the settings fix."""
        if self.nprobe is not None:
            return ({"nprobe": min(self.nprobe, self.index.nlist)},)
        return geometric_points(1, self.index.nlist, "nprobe")

    def is_exact(self, params: SearchParams) -> bool:
        """Return whether every cell is probed."""
        return params["nprobe"] >= int(self.index.nlist)

    def search(self, queries: FloatArray, k: int, params: SearchParams) -> IntArray:
        """Return (n, k) positions from the nearest `nprobe` cells, -1 for an empty slot."""
        positions: IntArray = self.index.search(queries, k, params=_faiss_params(params["nprobe"]))[1]
        return positions


class FaissIvfEngine(FaissEngine):
    """Cells and probes by faiss."""

    name = "faiss-ivf"
    search_param: str | None = "nprobe"
    settings: type[EngineSettings] = IvfSettings

    def estimate(self, shape: JoinShape, items: Vectors, settings: EngineSettings, resources: Resources) -> Estimate:
        """Count the multiplications of training, filing and scanning; divide by a measured rate."""
        assert isinstance(settings, IvfSettings)
        cells = settings.cells(shape.n_items)
        train_rows = min(shape.n_items, cells * settings.train_rows_per_cell)
        nprobe = settings.nprobe or max(1, cells // GUESSED_SHARE)
        block = sample_items(items, shape.request.metric)
        started = time.perf_counter()
        block @ block.T
        rate = len(block) ** 2 * shape.dim / max(1e-6, time.perf_counter() - started)
        build = (train_rows * ITERATIONS + shape.n_items) * cells * shape.dim / rate
        scanned = shape.n_items * min(1.0, nprobe / cells) * SCAN_SLOWDOWN + cells
        seconds = {"build": build, "join": shape.n_queries * scanned * shape.dim / rate}
        return replace(self.estimate_sizes(shape, settings), seconds=seconds)

    def estimate_sizes(self, shape: JoinShape, settings: EngineSettings) -> Estimate:
        """Return memory and disk of the lists: they are in memory while they are built and while they are searched."""
        assert isinstance(settings, IvfSettings)
        vectors = shape.n_items * (shape.dim * 4 + 8)
        memory = round(vectors * 1.15) + WORKING_BYTES  # faiss grows its lists by doubling, but few at a time
        return Estimate({}, memory, vectors + settings.cells(shape.n_items) * shape.dim * 4)

    def build(
        self,
        items: Vectors,
        spec: IndexSpec,
        resources: Resources,
        *,
        workload: Workload | None = None,
        progress: Progress = no_progress,
    ) -> IvfIndex:
        """Train on a random sample of the items, then file all of them."""
        settings, metric = spec.settings, spec.metric
        assert isinstance(settings, IvfSettings)
        faiss().omp_set_num_threads(resources.threads)
        cells = settings.cells(items.n)
        kind = faiss_metric(metric)
        coarse = faiss().IndexFlat(items.dim, kind)
        index = faiss().IndexIVFFlat(coarse, items.dim, cells, kind)
        coarse.this.disown()
        index.own_fields = True
        index.cp.seed, index.cp.niter = spec.seed + 1, ITERATIONS
        index.cp.min_points_per_centroid = 1
        index.cp.max_points_per_centroid = settings.train_rows_per_cell
        progress("build", 0, items.n)
        index.train(_training_rows(items, cells * settings.train_rows_per_cell, metric, spec.seed))
        for done, block in read_blocks(items, metric):
            index.add(block)
            progress("build", done, items.n)
        return IvfIndex(index, items, metric, settings.nprobe)

    def open(self, folder: Path, items: Vectors, spec: IndexSpec) -> IvfIndex:
        """Read the faiss index."""
        assert isinstance(spec.settings, IvfSettings)
        return IvfIndex(open_faiss(folder), items, spec.metric, spec.settings.nprobe)

    def open_moved(self, folder: Path, items: Vectors, spec: IndexSpec, now: IntArray) -> None:
        """Return None: the index is bound to its items."""


@cache
def _faiss_params(nprobe: int) -> Any:
    return faiss().SearchParametersIVF(nprobe=nprobe)


def _training_rows(items: Vectors, size: int, metric: Metric, seed: int) -> FloatArray:
    rng = np.random.default_rng([seed, 1])
    chosen = np.sort(rng.choice(items.n, min(items.n, size), replace=False))
    return prepare_vectors(items.take(chosen), metric)
