"""The engine `faiss-hnsw`: a navigable small-world graph, the most common kind of online index.

Source: Malkov, Yashunin, "Efficient and robust approximate nearest neighbor search using hierarchical
navigable small world graphs", 2018; faiss `IndexHNSWFlat`. Equal vectors enter the graph once: many copies
of one vector would link to each other only and be unreachable from the rest.
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
    BLOCK_ROWS,
    FaissEngine,
    FaissIndex,
    faiss,
    faiss_metric,
    geometric_points,
    open_faiss,
    prepare_vectors,
    sample_items,
)
from nearcast.errors import DamagedError
from nearcast.knn.identical_vectors import Copies, find_copies
from nearcast.types import FloatArray, IntArray, Metric, Progress, Vectors, no_progress

__all__ = ["FaissHnswEngine"]

GUESSED_EF = 4  # before calibration: four times k
WORKING_BYTES = 192 << 20  # a block of items to insert, a batch of queries and their candidates' vectors
CACHE_SLOWDOWN = 2.0  # a large graph misses the caches that a trial graph fits


class HnswSettings(EngineSettings):
    """Settings of an HNSW index."""

    m: int = Field(32, ge=2, le=512, description="links per item and layer, twice that on the lowest")
    ef_construction: int = Field(100, ge=1, description="candidates considered for the links of an item")
    ef_search: int | None = Field(
        None, ge=1, description="candidates that a search keeps. Default: found for the recall"
    )
    build_threads: int = Field(
        1, ge=1, description="threads of a build. With more than 1, two builds differ, and two runs may differ"
    )


@dataclass(frozen=True, slots=True)
class HnswIndex(FaissIndex):
    """An open faiss HNSW index over the distinct vectors of the items."""

    copies: Copies
    ef_search: int | None  # fixed by the settings

    @property
    def n_distinct(self) -> int:
        """Return the number of distinct vectors."""
        return len(self.copies.starts) - 1

    def operating_points(self, k: int) -> Sequence[SearchParams]:
        """Return ef = k up to all distinct vectors, or the ef that the settings fix."""
        n = self.n_distinct
        if self.ef_search is not None:
            return ({"ef_search": min(self.ef_search, n)},)
        graph = geometric_points(k, max(k, n // 8), "ef_search")  # beyond an eighth of all items a scan costs less
        return (*(point for point in graph if point["ef_search"] < n), {"ef_search": n})

    def is_exact(self, params: SearchParams) -> bool:
        """Return whether ef covers all distinct vectors."""
        return params["ef_search"] >= self.n_distinct

    def search(self, queries: FloatArray, k: int, params: SearchParams) -> IntArray:
        """Return (n, k or more) positions from a graph search with `ef_search`, -1 for an empty slot."""
        groups = self.index.search(queries, min(k, self.n_distinct), params=_faiss_params(params["ef_search"]))[1]
        return _expand_copies(groups, self.copies, k)

    def save(self, folder: Path, resources: Resources) -> None:
        """Write the faiss index and the groups of equal vectors."""
        FaissIndex.save(self, folder, resources)  # slots: a dataclass with slots has no zero-argument super()
        np.save(folder / "members.npy", self.copies.members)
        np.save(folder / "starts.npy", self.copies.starts)


class FaissHnswEngine(FaissEngine):
    """A graph of items by faiss."""

    name = "faiss-hnsw"
    search_param: str | None = "ef_search"
    settings: type[EngineSettings] = HnswSettings

    def estimate(self, shape: JoinShape, items: Vectors, settings: EngineSettings, resources: Resources) -> Estimate:
        """Build and search a small graph of real items; scale by n log n and by log n."""
        assert isinstance(settings, HnswSettings)
        metric, k = shape.request.metric, shape.request.k
        block = sample_items(items, metric)
        faiss().omp_set_num_threads(1)
        small = _new_index(shape.dim, metric, settings)
        started = time.perf_counter()
        small.add(block)
        built = time.perf_counter()
        ef = settings.ef_search or GUESSED_EF * k
        queries = block[:: max(1, len(block) // 128)]
        small.search(queries, min(k, len(block)), params=faiss().SearchParametersHNSW(efSearch=ef))
        searched = time.perf_counter()
        growth = math.log(max(2, shape.n_items)) / math.log(max(2, len(block))) * CACHE_SLOWDOWN
        if shape.n_items <= len(block):
            growth = 1.0
        build = (built - started) / len(block) * shape.n_items * growth / settings.build_threads
        join = (searched - built) / len(queries) * shape.n_queries * growth / resources.threads
        return replace(self.estimate_sizes(shape, settings), seconds={"build": build, "join": join})

    def estimate_sizes(self, shape: JoinShape, settings: EngineSettings) -> Estimate:
        """Return memory and disk of the graph: it is in memory while it is built and while it is searched."""
        assert isinstance(settings, HnswSettings)
        size = shape.n_items * (shape.dim * 4 + settings.m * 2 * 4 + 32)
        return Estimate({}, size + WORKING_BYTES, size)

    def build(
        self,
        items: Vectors,
        spec: IndexSpec,
        resources: Resources,
        *,
        workload: Workload | None = None,
        progress: Progress = no_progress,
    ) -> HnswIndex:
        """Insert the distinct vectors one after another, so that equal inputs give an equal graph."""
        settings, metric = spec.settings, spec.metric
        assert isinstance(settings, HnswSettings)
        copies = find_copies(items)
        faiss().omp_set_num_threads(settings.build_threads)
        index = _new_index(items.dim, metric, settings)
        first = copies.first
        step = BLOCK_ROWS // 8  # small: an insertion is slow, and people watch
        for start in range(0, len(first), step):
            index.add(prepare_vectors(items.take(first[start : start + step]), metric))
            progress("build", min(start + step, len(first)), len(first))
        return HnswIndex(index, items, metric, copies, settings.ef_search)

    def open(self, folder: Path, items: Vectors, spec: IndexSpec) -> HnswIndex:
        """Read the faiss index and the groups of equal vectors."""
        assert isinstance(spec.settings, HnswSettings)
        try:
            copies = Copies(*(np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("members", "starts")))
        except (OSError, ValueError, EOFError) as error:
            raise DamagedError(f"{folder} does not hold a saved index ({error}); remove it and run again") from error
        return HnswIndex(open_faiss(folder), items, spec.metric, copies, spec.settings.ef_search)

    def open_moved(self, folder: Path, items: Vectors, spec: IndexSpec, now: IntArray) -> None:
        """Return None: the index is bound to its items."""


@cache
def _faiss_params(ef_search: int) -> Any:
    return faiss().SearchParametersHNSW(efSearch=ef_search)


def _expand_copies(groups: IntArray, copies: Copies, k: int) -> IntArray:
    """Replace every group by its items, at most k of each, in rows wide enough for all of them."""
    if len(copies.members) == len(copies.starts) - 1:
        positions: IntArray = np.where(groups >= 0, copies.members[groups], -1)
        return positions
    sizes = np.where(groups >= 0, np.minimum(np.diff(copies.starts)[groups], k), 0)
    row_sizes, flat_sizes = sizes.sum(axis=1), sizes.ravel()
    within = np.arange(flat_sizes.sum()) - np.repeat(np.cumsum(flat_sizes) - flat_sizes, flat_sizes)
    members = copies.members[np.repeat(copies.starts[groups.ravel()], flat_sizes) + within]
    rows = np.repeat(np.arange(len(groups)), row_sizes)
    slots = np.arange(len(rows)) - np.repeat(np.cumsum(row_sizes) - row_sizes, row_sizes)
    wide = np.full((len(groups), int(row_sizes.max(initial=k))), -1, np.int64)
    wide[rows, slots] = members
    return wide


def _new_index(dim: int, metric: Metric, settings: HnswSettings) -> Any:
    index = faiss().IndexHNSWFlat(dim, settings.m, faiss_metric(metric))
    index.hnsw.efConstruction = settings.ef_construction
    return index
