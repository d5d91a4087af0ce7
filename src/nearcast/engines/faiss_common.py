"""Shared code of the two faiss engines: import faiss, prepare vectors, and join by searching.

The one module that imports faiss. faiss returns positions; scores come from `knn.scores`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.engines.base import (
    MIN_SCORE,
    JoinRequest,
    JoinShape,
    Resources,
    SearchParams,
)
from nearcast.errors import DamagedError, MissingExtraError
from nearcast.knn.constraints import Constraints
from nearcast.knn.exact_join import exact_join
from nearcast.knn.scores import norms, rescore
from nearcast.knn.topk import drop_excluded
from nearcast.types import AnyArray, FloatArray, IntArray, Metric, Neighbors, Progress, Vectors, as_score, no_progress

__all__ = [
    "BLOCK_ROWS",
    "FaissEngine",
    "FaissIndex",
    "faiss",
    "faiss_metric",
    "geometric_points",
    "open_faiss",
    "prepare_vectors",
    "read_blocks",
    "sample_items",
]

BLOCK_ROWS = 65_536
QUERY_ROWS = 4_096  # fixed: faiss rounds a little differently for batches of other sizes
INDEX_FILE = "index.faiss"
TRIAL_ITEMS = 4_096


@cache
def faiss() -> Any:
    """Return the faiss module. Raises MissingExtraError if it is not installed."""
    try:
        import faiss as module
    except ImportError as error:
        raise MissingExtraError("the faiss engines need faiss: pip install 'nearcast[faiss]'") from error
    return module


def prepare_vectors(vectors: AnyArray, metric: Metric) -> FloatArray:
    """Return the vectors as faiss takes them: float32, contiguous, and of unit length under cosine."""
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if metric is Metric.COSINE:
        lengths = norms(vectors)
        scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        matrix = np.ascontiguousarray(matrix * scale[:, None], dtype=np.float32)
    return matrix


def faiss_metric(metric: Metric) -> int:
    """Return the faiss constant of a metric. Cosine is the inner product of unit vectors."""
    module = faiss()
    chosen: int = module.METRIC_L2 if metric is Metric.L2 else module.METRIC_INNER_PRODUCT
    return chosen


def read_blocks(items: Vectors, metric: Metric) -> Iterator[tuple[int, FloatArray]]:
    """Yield all items in prepared blocks, each with the number of rows read so far."""
    for start in range(0, items.n, BLOCK_ROWS):
        stop = min(items.n, start + BLOCK_ROWS)
        yield stop, prepare_vectors(items.read(start, stop), metric)


def geometric_points(first: int, last: int, name: str) -> tuple[SearchParams, ...]:
    """Return operating points from `first` to `last`, each about a fifth above the one before."""
    values = [min(first, last)]
    while values[-1] < last:
        values.append(min(last, max(values[-1] + 1, math.ceil(values[-1] * 1.2))))
    return tuple({name: value} for value in values)


@dataclass(frozen=True, slots=True)
class FaissIndex(ABC):
    """An open faiss index: joins by searching single queries; the exact operating point scores every item instead."""

    index: Any
    items: Vectors
    metric: Metric

    @abstractmethod
    def operating_points(self, k: int) -> Sequence[SearchParams]:
        """Return the search parameters to choose from, cheapest first."""

    @abstractmethod
    def is_exact(self, params: SearchParams) -> bool:
        """Return whether a search with these parameters visits every item."""

    @abstractmethod
    def search(self, queries: FloatArray, k: int, params: SearchParams) -> IntArray:
        """Return (n, k or more) item positions for prepared queries, -1 for an empty slot.

        Safe from many threads. Uses as many threads as the caller's thread has set in faiss.
        """

    def join(
        self,
        queries: AnyArray,
        request: JoinRequest,
        params: SearchParams,
        resources: Resources,
        progress: Progress = no_progress,
    ) -> Neighbors:
        """Search every query with these parameters, or score every item if they are exact."""
        if self.is_exact(params):
            return exact_join(queries, self.items, request, resources, progress)
        faiss().omp_set_num_threads(resources.threads)

        def search(block: FloatArray, k: int) -> IntArray:
            return self.search(block, k, params)

        return drop_low_scores(search_join(search, queries, self.items, request, progress), request.constraints)

    def count_found(
        self,
        queries: AnyArray,
        request: JoinRequest,
        truth: Neighbors,
        points: Sequence[SearchParams],
        resources: Resources,
    ) -> IntArray | None:
        """Return None: a search tells no more than its list."""
        return None

    def items_scanned(
        self, queries: AnyArray, request: JoinRequest, params: SearchParams, resources: Resources
    ) -> float | None:
        """Return None: faiss does not count per query."""
        return None

    def is_cheaper(self, queries: AnyArray, request: JoinRequest, params: SearchParams, resources: Resources) -> bool:
        """Return True: the exact operating point visits every item, one query at a time."""
        return True

    def save(self, folder: Path, resources: Resources) -> None:
        """Write the faiss index."""
        faiss().write_index(self.index, str(folder / INDEX_FILE))


def search_join(
    search: Callable[[FloatArray, int], IntArray],  # (queries, k) -> (n, k or more) positions, -1 for an empty slot
    queries: AnyArray,
    items: Vectors,
    request: JoinRequest,
    progress: Progress,
) -> Neighbors:
    """Join by searching fixed batches of queries, one slot wider if the request excludes an item per query."""
    n, k, exclude = len(queries), request.k, request.exclude
    width = min(items.n, k + (exclude is not None))
    best = Neighbors.empty(n, k)
    for start in range(0, n, QUERY_ROWS):
        part = slice(start, min(n, start + QUERY_ROWS))
        positions = search(prepare_vectors(queries[part], request.metric), width)
        scored = rescore(queries[part], items, positions, request.metric)
        lists = drop_excluded(scored, None if exclude is None else exclude[part], k)
        best.positions[part], best.scores[part] = lists.positions, lists.scores
        progress("join", part.stop, n)
    return best


def drop_low_scores(lists: Neighbors, constraints: Constraints) -> Neighbors:
    """Return the lists without scores below `min_score`: the one constraint that needs no help from the search."""
    assert constraints.eligibility is None, "rules are refused before a join"
    assert not constraints.caps, "caps are refused before a join"
    if constraints.min_score is None:
        return lists
    good = lists.scores >= as_score(constraints.min_score)
    return Neighbors(np.where(good, lists.positions, -1), np.where(good, lists.scores, np.float32(-np.inf)))


class FaissEngine:
    """The declarations that both faiss engines share."""

    metrics = frozenset(Metric)
    exact = False
    supports = frozenset({MIN_SCORE})
    fits_workload = False
    persists_index = True
    max_scan_share = 1.0
    libraries: tuple[str, ...] = ("faiss",)

    def is_exact(self, params: SearchParams) -> bool:
        """Return False: only the open index knows whether a search visits every item."""
        return False

    def count_pairs(self, shape: JoinShape) -> Mapping[str, float]:
        """Return the pairs of an exact join, an upper bound: the work of a search is not known in advance."""
        return {"join": float(shape.n_queries) * shape.n_items}


def open_faiss(folder: Path) -> Any:
    """Read the faiss index of a folder. Raises DamagedError if faiss cannot read it."""
    path = folder / INDEX_FILE
    try:
        return faiss().read_index(str(path))
    except RuntimeError as error:
        raise DamagedError(f"{path} cannot be read by faiss: remove {folder} and run again") from error


def sample_items(items: Vectors, metric: Metric) -> FloatArray:
    """Return a few of the items, evenly spread and prepared, for a timing trial."""
    positions = np.unique(np.linspace(0, items.n - 1, min(items.n, TRIAL_ITEMS)).astype(np.int64))
    return prepare_vectors(items.take(positions), metric)
