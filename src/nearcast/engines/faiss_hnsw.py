"""The engine `faiss-hnsw`: a navigable small-world graph, the most common kind of online index.

Source: Malkov, Yashunin, "Efficient and robust approximate nearest neighbor search using hierarchical
navigable small world graphs", 2018; faiss `IndexHNSWFlat`. Equal vectors enter the graph once: many copies
of one vector would link to each other only and be cut off from the rest.
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
    BLOCK_ROWS,
    faiss,
    faiss_metric,
    ladder,
    open_faiss,
    prepared,
    save_faiss,
    search_or_scan,
    trial,
)
from nearcast.errors import DamagedError
from nearcast.knn.constraints import FREE, Constraints
from nearcast.knn.identical_vectors import Copies, find_copies
from nearcast.types import AnyArray, FloatArray, IntArray, Metric, Neighbors, Progress, Vectors

__all__ = ["FaissHnswEngine"]

GUESSED_EF = 4  # before calibration: four times k
WORKING_BYTES = 192 << 20  # a block of items to insert, a batch of queries and their candidates' vectors
CACHE_SLOWDOWN = 2.0  # a large graph misses the caches that a trial graph fits


class HnswSettings(EngineSettings):
    """Settings of an HNSW index."""

    m: int = Field(32, ge=2, le=512, description="links per item and layer, twice that on the lowest")
    ef_construction: int = Field(100, ge=1, description="candidates considered for the links of an item")
    ef_search: int | None = Field(None, ge=1, description="candidates kept by a search; found for the recall")
    build_threads: int = Field(
        1, ge=1, description="more build faster, but two builds then differ, and so may two runs"
    )


@dataclass(frozen=True, slots=True)
class HnswIndex:
    """An open faiss HNSW index over the distinct vectors of the items."""

    index: Any
    copies: Copies
    items: Vectors
    metric: Metric
    settings: HnswSettings

    def efforts(self, k: int) -> Sequence[Effort]:
        """From ef = k to a scan of all items, or the one that the settings force."""
        n = len(self.copies.starts) - 1
        if self.settings.ef_search is not None:
            return ({"ef_search": min(self.settings.ef_search, n)},)
        graph = ladder(k, max(k, n // 8), "ef_search")  # beyond an eighth of all items a scan costs less
        return (*(e for e in graph if e["ef_search"] < n), {"ef_search": n})

    def is_full(self, effort: Effort) -> bool:
        """Whether ef is all distinct vectors."""
        return effort["ef_search"] >= len(self.copies.starts) - 1

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
        """Search every query with the effort's ef; with ef of all items, score every item instead."""
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
        """(n, k or more) what a search of some effort finds, -1 for nothing.

        Safe from many threads; takes as many threads as faiss was told to in the caller's.
        """
        n = len(self.copies.starts) - 1
        groups = self.index.search(prepared_queries, min(k, n), params=_parameters(effort["ef_search"]))[1]
        return _expanded(groups, self.copies, k)

    def pays(
        self, queries: AnyArray, k: int, effort: Effort, resources: Resources, constraints: Constraints = FREE
    ) -> bool:
        """Always: full effort visits everything one query at a time."""
        return True

    def save(self, folder: Path) -> None:
        """Write the faiss index and the groups of equal vectors."""
        save_faiss(self.index, folder)
        np.save(folder / "members.npy", self.copies.members)
        np.save(folder / "starts.npy", self.copies.starts)


class FaissHnswEngine:
    """A graph of items by faiss."""

    name = "faiss-hnsw"
    metrics = frozenset(Metric)
    exact = False
    honours = frozenset({MIN_SCORE})
    fits_workload = False
    settings: type[EngineSettings] = HnswSettings

    def estimate(
        self, shape: JoinShape, items: Vectors, metric: Metric, settings: EngineSettings, resources: Resources
    ) -> Estimate:
        """Build and search a small graph of real items, and scale by n log n and by log n."""
        assert isinstance(settings, HnswSettings)
        block = trial(items, metric)
        faiss().omp_set_num_threads(1)
        small = _new_index(shape.dim, metric, settings)
        started = time.perf_counter()
        small.add(block)
        built = time.perf_counter()
        ef = settings.ef_search or GUESSED_EF * shape.k
        queries = block[:: max(1, len(block) // 128)]
        small.search(queries, min(shape.k, len(block)), params=faiss().SearchParametersHNSW(efSearch=ef))
        searched = time.perf_counter()
        growth = math.log(max(2, shape.n_items)) / math.log(max(2, len(block))) * CACHE_SLOWDOWN
        if shape.n_items <= len(block):
            growth = 1.0
        build = (built - started) / len(block) * shape.n_items * growth / settings.build_threads
        join = (searched - built) / len(queries) * shape.n_queries * growth / resources.threads
        size = shape.n_items * (shape.dim * 4 + settings.m * 2 * 4 + 32)
        return Estimate({"build": build, "join": join}, size + WORKING_BYTES, size)

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
    ) -> HnswIndex:
        """Insert the distinct vectors one after another, so that equal inputs give an equal graph."""
        assert isinstance(settings, HnswSettings)
        copies = find_copies(items)
        faiss().omp_set_num_threads(settings.build_threads)
        index = _new_index(items.dim, metric, settings)
        first = copies.first
        step = BLOCK_ROWS // 8  # small: an insertion is slow, and people watch
        for start in range(0, len(first), step):
            index.add(prepared(items.take(first[start : start + step]), metric))
            progress("build", min(start + step, len(first)), len(first))
        return HnswIndex(index, copies, items, metric, settings)

    def open(self, folder: Path, items: Vectors, metric: Metric, settings: EngineSettings) -> HnswIndex:
        """Read the faiss index and the groups."""
        assert isinstance(settings, HnswSettings)
        try:
            copies = Copies(*(np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("members", "starts")))
        except (OSError, ValueError, EOFError) as error:
            raise DamagedError(f"{folder} does not hold what was saved ({error}); remove it and run again") from error
        return HnswIndex(open_faiss(folder), copies, items, metric, settings)


@cache
def _parameters(ef_search: int) -> Any:
    return faiss().SearchParametersHNSW(efSearch=ef_search)


def _expanded(groups: IntArray, copies: Copies, wanted: int) -> IntArray:
    """Put every copy in the place of its group, at most `wanted` of each, and widen the rows to hold them."""
    if len(copies.members) == len(copies.starts) - 1:
        positions: IntArray = np.where(groups >= 0, copies.members[groups], -1)
        return positions
    sizes = np.where(groups >= 0, np.minimum(np.diff(copies.starts)[groups], wanted), 0)
    row_sizes, flat_sizes = sizes.sum(axis=1), sizes.ravel()
    within = np.arange(flat_sizes.sum()) - np.repeat(np.cumsum(flat_sizes) - flat_sizes, flat_sizes)
    members = copies.members[np.repeat(copies.starts[groups.ravel()], flat_sizes) + within]
    rows = np.repeat(np.arange(len(groups)), row_sizes)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(row_sizes) - row_sizes, row_sizes)
    wide = np.full((len(groups), int(row_sizes.max(initial=wanted))), -1, np.int64)
    wide[rows, places] = members
    return wide


def _new_index(dim: int, metric: Metric, settings: HnswSettings) -> Any:
    index = faiss().IndexHNSWFlat(dim, settings.m, faiss_metric(metric))
    index.hnsw.efConstruction = settings.ef_construction
    return index
