"""Search an open index with single vectors at request time: ids and exact scores, at little more than faiss' own cost.

Knows nothing of building or calibrating the index: see `join.online_index`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.engines.base import SearchParams
from nearcast.engines.faiss_common import FaissIndex, faiss
from nearcast.errors import InputError
from nearcast.kernels import ListScorer
from nearcast.measure.recall import Recall
from nearcast.sources.matrix import LONGEST, RowState, compute_lengths
from nearcast.table.manifest import Manifest
from nearcast.types import AnyArray, FloatArray, IntArray, Metric

__all__ = ["OnlineIndex", "SearchSettings"]


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How an online index is searched."""

    engine: str
    k: int  # list length that the parameters were found for
    recall: float  # target
    params: SearchParams
    reached: Recall | None  # on held-out queries; None if every item is scanned


class OnlineIndex:
    """An open index. Safe to search from many threads: each search uses its caller's thread alone."""

    def __init__(
        self, settings: SearchSettings, index: FaissIndex, scorer: ListScorer, ids: pa.Array, *, items_fingerprint: str
    ) -> None:
        self.settings = settings
        self.name = settings.engine
        self.dim = int(scorer.items.shape[1])
        self.n_items = len(ids)
        self.items_fingerprint = items_fingerprint  # of a snapshot of these items: see `same_items`
        self._index = index
        self._scorer = scorer
        self._lookup_ids = _id_lookup(ids)
        self._params_of: dict[int, SearchParams] = {}  # by list length above settings.k

    @property
    def k(self) -> int:
        """Return the list length that the search parameters were found for."""
        return self.settings.k

    @property
    def recall(self) -> float:
        """Return the recall target."""
        return self.settings.recall

    @property
    def reached(self) -> Recall | None:
        """Return the recall on held-out queries; None if every item is scanned."""
        return self.settings.reached

    @property
    def params(self) -> SearchParams:
        """Return the search parameters."""
        return self.settings.params

    @property
    def effort(self) -> SearchParams:
        """Return `params`. Deprecated name."""
        warnings.warn("OnlineIndex.effort is now OnlineIndex.params", DeprecationWarning, stacklevel=2)
        return self.params

    def same_items(self, manifest: Manifest) -> bool:
        """Return whether the snapshot with this manifest was made of the same items."""
        return f"items-{self.items_fingerprint}" in manifest.artifacts

    def search(self, vectors: AnyArray, k: int) -> tuple[list[list[Any]], list[list[float]]]:
        """Return ids and exact scores of the best items for each vector (n, dim) float32, best first.

        Lists are shorter than k if there are fewer items. For a k above the generator's own, the search parameter grows
        in proportion. Raises InputError for vectors of another dimension, NaN or infinity, or k below 1.
        """
        queries = self._validate_vectors(vectors, k)
        faiss().omp_set_num_threads(1)  # of this thread: other requests have the other cores
        width, params = min(k, self.n_items), self._choose_params(k)
        if self._index.is_exact(params):
            return self._scan(queries, width)
        rows = self._index.search(_normalize(queries, self._scorer.metric), width, params)
        ids, scores = [], []
        for row, positions in enumerate(rows):  # few rows: work done once per call must not cost more than a row
            if positions.min() < 0:
                positions = positions[positions >= 0]
            own = self._scorer.scores(queries[row : row + 1], positions)
            order = np.lexsort((positions, -own))[:k]
            ids.append(self._lookup_ids(positions[order]))
            scores.append(own[order].tolist())
        return ids, scores

    def _scan(self, queries: FloatArray, k: int) -> tuple[list[list[Any]], list[list[float]]]:
        """Return the k best of all items, exactly; ties by position. A full search by faiss guarantees neither."""
        every = np.arange(self.n_items)
        ids, scores = [], []
        for row in range(len(queries)):
            own = self._scorer.scores(queries[row : row + 1], every)
            threshold = np.partition(own, self.n_items - k)[self.n_items - k]
            positions = np.flatnonzero(own >= threshold)
            order = positions[np.argsort(-own[positions], kind="stable")][:k]
            ids.append(self._lookup_ids(order))
            scores.append(own[order].tolist())
        return ids, scores

    def _choose_params(self, k: int) -> SearchParams:
        if k <= self.k:
            return self.params
        if k not in self._params_of:
            ((name, value),) = self.params.items()
            points = self._index.operating_points(k)
            least = math.ceil(value * k / self.k)
            self._params_of[k] = next((point for point in points if point[name] >= least), points[-1])
        return self._params_of[k]

    def _validate_vectors(self, vectors: AnyArray, k: int) -> FloatArray:
        if k < 1:
            raise InputError(f"k is {k}; it is at least 1")
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # infinite then, and refused below
                queries = np.ascontiguousarray(vectors, np.float32)
                flat = queries.reshape(-1)
                product = float(np.dot(flat, flat))
        except (TypeError, ValueError) as error:
            raise InputError(f"the vectors are no array of numbers: {error}") from error
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InputError(f"vectors have shape {queries.shape}; these items take (count, {self.dim})")
        if not product < LONGEST**2:  # one product for all rows; a closer look where it is odd
            states = compute_lengths(queries, np.zeros(len(queries), np.uint8))[1]
            bad = np.flatnonzero(states == RowState.NOT_FINITE)
            if len(bad):
                raise InputError(f"vector {bad[0]} holds NaN or infinity, or is longer than {LONGEST:g}")
        return queries


def _id_lookup(ids: pa.Array) -> Callable[[IntArray], list[Any]]:
    """Return a function from positions to ids. Strings are sliced from the buffers: a quarter of the time of `take`."""
    if pa.types.is_integer(ids.type):
        numbers = ids.to_numpy()
        return lambda positions: numbers[positions].tolist()
    width = np.int64 if pa.types.is_large_string(ids.type) else np.int32
    ends = np.frombuffer(ids.buffers()[1], width)[ids.offset :]
    text = memoryview(ids.buffers()[2] or b"")

    def slice_ids(positions: IntArray) -> list[Any]:
        pieces = zip(ends[positions].tolist(), ends[positions + 1].tolist(), strict=True)
        return [str(text[start:stop], "utf-8") for start, stop in pieces]

    return slice_ids


def _normalize(queries: FloatArray, metric: Metric) -> FloatArray:
    """Return the queries as faiss takes them: of unit length under cosine."""
    if metric is not Metric.COSINE:
        return queries
    lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    unit: FloatArray = (queries * scale[:, None]).astype(np.float32)
    return unit
