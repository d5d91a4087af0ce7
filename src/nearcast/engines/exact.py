"""The engine `exact`: the NumPy join of `knn.exact_join` behind the engine contract. It builds nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nearcast.engines.base import (
    CAPS,
    MIN_SCORE,
    RULES,
    EngineSettings,
    Estimate,
    IndexSpec,
    JoinRequest,
    JoinShape,
    Resources,
    SearchParams,
    Workload,
)
from nearcast.knn.exact_join import choose_blocks, exact_join
from nearcast.types import AnyArray, ArrayVectors, IntArray, Metric, Neighbors, Progress, Vectors, no_progress

__all__ = ["ExactEngine"]

TRIAL_QUERIES = 512
TRIAL_ITEMS = 65_536
WORKING_BYTES = 64 << 20  # vectors gathered for true scores, and the results of a task


class ExactSettings(EngineSettings):
    """Settings of the engine `exact`: none."""


@dataclass(frozen=True, slots=True)
class ExactIndex:
    """The items themselves."""

    items: Vectors

    def operating_points(self, k: int) -> Sequence[SearchParams]:
        """Return the one operating point: exact, without parameters."""
        return ({},)

    def is_exact(self, params: SearchParams) -> bool:
        """Return True."""
        return True

    def join(
        self,
        queries: AnyArray,
        request: JoinRequest,
        params: SearchParams,
        resources: Resources,
        progress: Progress = no_progress,
    ) -> Neighbors:
        """Score every pair."""
        return exact_join(queries, self.items, request, resources, progress)

    def count_found(
        self,
        queries: AnyArray,
        request: JoinRequest,
        truth: Neighbors,
        points: Sequence[SearchParams],
        resources: Resources,
    ) -> IntArray | None:
        """Return None: there is nothing to choose."""
        return None

    def items_scanned(
        self, queries: AnyArray, request: JoinRequest, params: SearchParams, resources: Resources
    ) -> float:
        """Return the number of items: every query scans all of them."""
        return float(self.items.n)

    def is_cheaper(self, queries: AnyArray, request: JoinRequest, params: SearchParams, resources: Resources) -> bool:
        """Return True: there is one operating point."""
        return True

    def save(self, folder: Path, resources: Resources) -> None:
        """Write nothing: the index is the vectors."""


class ExactEngine:
    """Scores every pair, block by block."""

    name = "exact"
    metrics = frozenset(Metric)
    exact = True
    supports = frozenset({RULES, CAPS, MIN_SCORE})
    fits_workload = False
    persists_index = False
    search_param: str | None = None
    max_scan_share = 1.0
    libraries: tuple[str, ...] = ()
    settings: type[EngineSettings] = ExactSettings

    def is_exact(self, params: SearchParams) -> bool:
        """Return True."""
        return True

    def estimate(self, shape: JoinShape, items: Vectors, settings: EngineSettings, resources: Resources) -> Estimate:
        """Join a few items with each other, and half as many, and scale up the cost of the second half.

        The first items of a join cost more than the later ones: they fill the lists.
        """
        request = JoinRequest(shape.request.metric, shape.request.k)
        block = np.array(items.read(0, min(items.n, TRIAL_ITEMS)))
        half = max(1, len(block) // 2)
        few = _time_join(block[:TRIAL_QUERIES], block[:half], request, resources)
        all_ = _time_join(block[:TRIAL_QUERIES], block, request, resources)
        n_queries = min(len(block), TRIAL_QUERIES)
        per_pair = max(all_ - few, all_ / 8) / (n_queries * max(1, len(block) - half))
        start = max(0.0, all_ / n_queries - per_pair * len(block))
        blocks = choose_blocks(shape.dim, request.k, resources, capped=bool(shape.request.constraints.caps))
        return Estimate(
            {"join": (start + per_pair * shape.n_items) * shape.n_queries},
            blocks.bytes_per_thread * resources.threads + WORKING_BYTES,
        )

    def estimate_sizes(self, shape: JoinShape, settings: EngineSettings) -> Estimate | None:
        """Return None: `estimate` makes a trial."""
        return None

    def count_pairs(self, shape: JoinShape) -> Mapping[str, float]:
        """Return the number of pairs."""
        return {"join": float(shape.n_queries) * shape.n_items}

    def build(
        self,
        items: Vectors,
        spec: IndexSpec,
        resources: Resources,
        *,
        workload: Workload | None = None,
        progress: Progress = no_progress,
    ) -> ExactIndex:
        """Return the items as an index. Nothing is built."""
        return ExactIndex(items)

    def open(self, folder: Path, items: Vectors, spec: IndexSpec) -> ExactIndex:
        """Return the items as an index. Nothing is opened."""
        return ExactIndex(items)

    def open_moved(self, folder: Path, items: Vectors, spec: IndexSpec, now: IntArray) -> None:
        """Return None: the index is bound to its items."""


def _time_join(queries: AnyArray, items: AnyArray, request: JoinRequest, resources: Resources) -> float:
    """Return the seconds of a join, with a block of queries for every thread, as in the join itself."""
    threads = resources.threads
    started = time.process_time()  # of this process alone, whatever else the machine does
    exact_join(np.tile(queries, (threads, 1)), ArrayVectors(items), request, resources)
    return (time.process_time() - started) / threads**2
