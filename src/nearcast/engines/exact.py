"""The engine `exact`: the NumPy join of `knn.exact` behind the engine contract. It builds nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
from nearcast.knn.constraints import FREE, Constraints
from nearcast.knn.exact_join import blocks_for, exact_join
from nearcast.types import AnyArray, ArrayVectors, IntArray, Metric, Neighbors, Progress, Vectors

__all__ = ["ExactEngine"]

TRIAL_QUERIES = 512
TRIAL_ITEMS = 65_536
WORKING_BYTES = 64 << 20  # vectors gathered for true scores, and the results of a task


class ExactSettings(EngineSettings):
    """There is nothing to set."""


@dataclass(frozen=True, slots=True)
class ExactIndex:
    """The items themselves."""

    items: Vectors
    metric: Metric

    def efforts(self, k: int) -> Sequence[Effort]:
        """One: exact."""
        return ({},)

    def is_full(self, effort: Effort) -> bool:
        """Always."""
        return True

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
        """Score every pair."""
        return exact_join(
            queries,
            self.items,
            k,
            self.metric,
            exclude=exclude,
            constraints=constraints,
            threads=resources.threads,
            memory_bytes=resources.memory_bytes,
            progress=progress,
        )

    def pays(
        self, queries: AnyArray, k: int, effort: Effort, resources: Resources, constraints: Constraints = FREE
    ) -> bool:
        """There is one effort."""
        return True

    def save(self, folder: Path) -> None:
        """Nothing to save: the vectors are the index."""


class ExactEngine:
    """Every pair is scored, by blocks."""

    name = "exact"
    metrics = frozenset(Metric)
    exact = True
    honours = frozenset({RULES, CAPS, MIN_SCORE})
    fits_workload = False
    settings: type[EngineSettings] = ExactSettings

    def estimate(
        self,
        shape: JoinShape,
        items: Vectors,
        metric: Metric,
        settings: EngineSettings,
        resources: Resources,
    ) -> Estimate:
        """Join a few items with each other, and half as many, and scale up what the other half has cost.

        The first items of a join cost more than the later ones: they fill the lists.
        """
        block = np.array(items.read(0, min(items.n, TRIAL_ITEMS)))
        half = max(1, len(block) // 2)
        few = _seconds_of(block[:TRIAL_QUERIES], block[:half], shape.k, metric, resources)
        all_ = _seconds_of(block[:TRIAL_QUERIES], block, shape.k, metric, resources)
        n_queries = min(len(block), TRIAL_QUERIES)
        per_pair = max(all_ - few, all_ / 8) / (n_queries * max(1, len(block) - half))
        start = max(0.0, all_ / n_queries - per_pair * len(block))
        blocks = blocks_for(shape.dim, shape.k, resources.memory_bytes, resources.threads)
        return Estimate(
            {"join": (start + per_pair * shape.n_items) * shape.n_queries},
            blocks.bytes_per_thread * resources.threads + WORKING_BYTES,
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
    ) -> ExactIndex:
        """Nothing to build."""
        return ExactIndex(items, metric)

    def open(self, folder: Path, items: Vectors, metric: Metric, settings: EngineSettings) -> ExactIndex:
        """Nothing to open."""
        return ExactIndex(items, metric)


def _seconds_of(queries: AnyArray, items: AnyArray, k: int, metric: Metric, resources: Resources) -> float:
    started = time.perf_counter()
    # a block of queries for every thread, as in the join itself
    exact_join(np.tile(queries, (resources.threads, 1)), ArrayVectors(items), k, metric, threads=resources.threads)
    return (time.perf_counter() - started) / resources.threads
