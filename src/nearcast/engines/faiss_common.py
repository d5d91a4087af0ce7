"""What the two faiss engines share: the import of faiss, preparing vectors for it, and joining by searching.

The one place that imports faiss. Its scores are not trusted: positions come from faiss, scores from
`knn.scores`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nearcast.engines.base import Effort, Resources
from nearcast.engines.exact import ExactIndex
from nearcast.errors import DamagedError, MissingExtraError
from nearcast.knn.constraints import Constraints
from nearcast.knn.scores import norms, rescore
from nearcast.knn.topk import drop_excluded
from nearcast.types import AnyArray, FloatArray, IntArray, Metric, Neighbors, Progress, Vectors, as_score

__all__ = [
    "BLOCK_ROWS",
    "above",
    "blocks",
    "faiss",
    "ladder",
    "open_faiss",
    "prepared",
    "save_faiss",
    "search_or_scan",
    "trial",
]

BLOCK_ROWS = 65_536
QUERY_ROWS = 4_096  # fixed: faiss rounds a little differently for batches of other sizes
INDEX_FILE = "index.faiss"
TRIAL_ITEMS = 4_096


@cache
def faiss() -> Any:
    """The faiss module; MissingExtraError where it is not installed."""
    try:
        import faiss as module
    except ImportError as error:
        raise MissingExtraError("the faiss engines need faiss: pip install 'nearcast[faiss]'") from error
    return module


def prepared(vectors: AnyArray, metric: Metric) -> FloatArray:
    """Vectors as faiss wants them: float32, contiguous, and of unit length under cosine."""
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if metric is Metric.COSINE:
        lengths = norms(vectors)
        scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        matrix = np.ascontiguousarray(matrix * scale[:, None], dtype=np.float32)
    return matrix


def faiss_metric(metric: Metric) -> int:
    """The constant of faiss for a metric; cosine is the inner product of unit vectors."""
    module = faiss()
    chosen: int = module.METRIC_L2 if metric is Metric.L2 else module.METRIC_INNER_PRODUCT
    return chosen


def blocks(items: Vectors, metric: Metric) -> Iterator[tuple[int, FloatArray]]:
    """All items, prepared, in blocks; each with the number of rows up to and including it."""
    for start in range(0, items.n, BLOCK_ROWS):
        stop = min(items.n, start + BLOCK_ROWS)
        yield stop, prepared(items.read(start, stop), metric)


def ladder(first: int, last: int, name: str) -> tuple[Effort, ...]:
    """Efforts from `first` to `last`, each about a fifth above the one before."""
    values = [min(first, last)]
    while values[-1] < last:
        values.append(min(last, max(values[-1] + 1, math.ceil(values[-1] * 1.2))))
    return tuple({name: value} for value in values)


class SearchedIndex(Protocol):
    """An open index that finds positions by searching, and can say when a search would leave nothing out."""

    @property
    def items(self) -> Vectors:
        """The vectors that are searched."""
        ...

    @property
    def metric(self) -> Metric:
        """What scores are."""
        ...

    def is_full(self, effort: Effort) -> bool:
        """Return whether a search of this effort visits every item."""
        ...

    def positions(self, prepared_queries: FloatArray, k: int, effort: Effort) -> IntArray:
        """Return (n, k or more) positions, -1 for none."""
        ...


def search_or_scan(
    index: SearchedIndex,
    queries: AnyArray,
    k: int,
    *,
    effort: Effort,
    exclude: IntArray | None,
    constraints: Constraints,
    resources: Resources,
    progress: Progress,
) -> Neighbors:
    """Search every query with this effort; score every item instead where the effort is full."""
    if index.is_full(effort):
        return ExactIndex(index.items, index.metric).join(
            queries,
            k,
            effort={},
            exclude=exclude,
            constraints=constraints,
            resources=resources,
            progress=progress,
        )
    faiss().omp_set_num_threads(resources.threads)

    def search(block: FloatArray, wanted: int) -> IntArray:
        return index.positions(block, wanted, effort)

    found = search_join(search, queries, index.items, k, index.metric, exclude=exclude, progress=progress)
    return above(found, constraints)


def search_join(
    search: Callable[[FloatArray, int], IntArray],  # (queries, k) -> (n, k) positions, -1 for none
    queries: AnyArray,
    items: Vectors,
    k: int,
    metric: Metric,
    *,
    exclude: IntArray | None,
    progress: Progress,
) -> Neighbors:
    """Answer a join by searching: fixed batches of queries, one slot more where an item is left out."""
    n = len(queries)
    wanted = min(items.n, k + (exclude is not None))
    best = Neighbors.empty(n, k)
    for start in range(0, n, QUERY_ROWS):
        part = slice(start, min(n, start + QUERY_ROWS))
        positions = search(prepared(queries[part], metric), wanted)
        found = rescore(queries[part], items, positions, metric)
        kept = drop_excluded(found, None if exclude is None else exclude[part], k)
        best.positions[part], best.scores[part] = kept.positions, kept.scores
        progress("join", part.stop, n)
    return best


def above(found: Neighbors, constraints: Constraints) -> Neighbors:
    """The lists without what scores too little: the one constraint that needs no help from the search."""
    assert constraints.eligibility is None, "rules are refused before a join"
    assert not constraints.caps, "caps are refused before a join"
    if constraints.min_score is None:
        return found
    good = found.scores >= as_score(constraints.min_score)
    return Neighbors(np.where(good, found.positions, -1), np.where(good, found.scores, np.float32(-np.inf)))


def save_faiss(index: Any, folder: Path) -> None:
    """Write a faiss index into a folder."""
    faiss().write_index(index, str(folder / INDEX_FILE))


def open_faiss(folder: Path) -> Any:
    """Read a faiss index from a folder."""
    path = folder / INDEX_FILE
    try:
        return faiss().read_index(str(path))
    except RuntimeError as error:
        raise DamagedError(f"{path} cannot be read by faiss: remove {folder} and run again") from error


def trial(items: Vectors, metric: Metric) -> FloatArray:
    """A few of the items, spread evenly, for a timing trial."""
    positions = np.unique(np.linspace(0, items.n - 1, min(items.n, TRIAL_ITEMS)).astype(np.int64))
    return prepared(items.take(positions), metric)
