"""The engine `exact`: the NumPy join of `knn.exact` behind the engine contract. It builds nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nearcast.engines.base import Effort, EngineSettings, Estimate, JoinShape, Resources
from nearcast.knn.exact import blocks_for, exact_join
from nearcast.types import AnyArray, ArrayVectors, IntArray, Metric, Neighbors, Progress, Vectors, no_progress

__all__ = ["ExactEngine"]

TRIAL_QUERIES = 512
TRIAL_ITEMS = 65_536


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

    def join(
        self,
        queries: AnyArray,
        k: int,
        *,
        effort: Effort,
        exclude: IntArray | None,
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
            threads=resources.threads,
            memory_bytes=resources.memory_bytes,
            progress=progress,
        )

    def save(self, folder: Path) -> None:
        """Nothing to save: the vectors are the index."""


class ExactEngine:
    """Every pair is scored, by blocks."""

    name = "exact"
    metrics = frozenset(Metric)
    exact = True
    settings: type[EngineSettings] = ExactSettings

    def estimate(
        self,
        shape: JoinShape,
        items: Vectors,
        metric: Metric,
        settings: EngineSettings,
        resources: Resources,
    ) -> Estimate:
        """Join a few items with each other and scale up by pairs."""
        block = np.array(items.read(0, min(items.n, TRIAL_ITEMS)))
        queries = block[:TRIAL_QUERIES]
        trial = ExactIndex(ArrayVectors(block), metric)
        started = time.perf_counter()
        trial.join(queries, shape.k, effort={}, exclude=None, resources=resources, progress=no_progress)
        per_pair = (time.perf_counter() - started) / max(1, len(queries) * len(block))
        blocks = blocks_for(shape.dim, shape.k, resources.memory_bytes, resources.threads)
        return Estimate(
            {"join": per_pair * shape.n_queries * shape.n_items},
            blocks.bytes_per_thread * resources.threads,
        )

    def build(
        self,
        items: Vectors,
        metric: Metric,
        settings: EngineSettings,
        *,
        seed: int,
        resources: Resources,
        progress: Progress,
    ) -> ExactIndex:
        """Nothing to build."""
        return ExactIndex(items, metric)

    def open(self, folder: Path, items: Vectors, metric: Metric, settings: EngineSettings) -> ExactIndex:
        """Nothing to open."""
        return ExactIndex(items, metric)
