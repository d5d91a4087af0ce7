"""Search an open index with single vectors, at request time: ids and exact scores, at little more than faiss' own cost.

Knows nothing of how the index was made, or which effort reaches what: that is `join.online`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from nearcast.engines.base import Effort, Index
from nearcast.engines.faiss_common import faiss
from nearcast.errors import InputError
from nearcast.kernels import ListScorer
from nearcast.measure.recall import Recall
from nearcast.sources.matrix import LONGEST, RowState, lengths_and_states
from nearcast.table.manifest import Manifest
from nearcast.types import AnyArray, FloatArray, IntArray, Metric

__all__ = ["OnlineIndex", "Searched"]


class Searched(Index, Protocol):
    """An index that can be asked for one query at a time."""

    def positions(self, prepared_queries: FloatArray, k: int, effort: Effort) -> IntArray:
        """(n, k or more) what a search of some effort finds, -1 for nothing."""
        ...


class OnlineIndex:
    """An open index. Safe to search from many threads: each search takes its caller's thread and no other."""

    def __init__(
        self,
        *,
        engine: str,
        index: Searched,
        scorer: ListScorer,
        ids: pa.Array,
        k: int,
        recall: float,
        effort: Effort,
        reached: Recall | None,
        items_fingerprint: str,
    ) -> None:
        self.name = engine
        self.dim = int(scorer.items.shape[1])
        self.n_items = len(ids)
        self.k = k  # that the effort was found for
        self.recall = recall  # aimed for
        self.reached = reached  # on held-out queries; None at full effort
        self.effort = effort
        self.items_fingerprint = items_fingerprint  # of a snapshot of these items: see `same_items`
        self._index = index
        self._scorer = scorer
        self._named = _namer(ids)
        self._harder: dict[int, Effort] = {}

    def same_items(self, manifest: Manifest) -> bool:
        """Whether the snapshot with this manifest was made of the same items."""
        return f"items-{self.items_fingerprint}" in manifest.artifacts

    def search(self, vectors: AnyArray, k: int) -> tuple[list[list[Any]], list[list[float]]]:
        """Ids and exact scores of the best items for each of the vectors (n, dim) float32, best first.

        Lists are shorter than k where there are not that many items. A k above the generator's own is searched
        harder in proportion. InputError for vectors of another dimension, NaN or infinity, or k below 1.
        """
        queries = self._checked(vectors, k)
        faiss().omp_set_num_threads(1)  # of this thread: other requests have the other cores
        wanted = min(k, self.n_items)
        effort = self._effort_for(k)
        if self._index.is_full(effort):
            return self._scan(queries, wanted)
        found = self._index.positions(_unit(queries, self._scorer.metric), wanted, effort)
        ids, scores = [], []
        for row, positions in enumerate(found):  # few: what is done once per call must not cost more than a row
            if positions.min() < 0:
                positions = positions[positions >= 0]
            own = self._scorer.scores(queries[row : row + 1], positions)
            order = np.lexsort((positions, -own))[:k]
            ids.append(self._named(positions[order]))
            scores.append(own[order].tolist())
        return ids, scores

    def _scan(self, queries: FloatArray, k: int) -> tuple[list[list[Any]], list[list[float]]]:
        """The k best of all items: exact, equal ones by position. What faiss finds with full effort is neither."""
        every = np.arange(self.n_items)
        ids, scores = [], []
        for row in range(len(queries)):
            own = self._scorer.scores(queries[row : row + 1], every)
            least = np.partition(own, self.n_items - k)[self.n_items - k]
            positions = np.flatnonzero(own >= least)
            order = positions[np.argsort(-own[positions], kind="stable")][:k]
            ids.append(self._named(order))
            scores.append(own[order].tolist())
        return ids, scores

    def _effort_for(self, k: int) -> Effort:
        if k <= self.k:
            return self.effort
        if k not in self._harder:
            ((name, value),) = self.effort.items()
            efforts = self._index.efforts(k)
            hard = math.ceil(value * k / self.k)
            self._harder[k] = next((effort for effort in efforts if effort[name] >= hard), efforts[-1])
        return self._harder[k]

    def _checked(self, vectors: AnyArray, k: int) -> FloatArray:
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
            states = lengths_and_states(queries, np.zeros(len(queries), np.uint8))[1]
            bad = np.flatnonzero(states == RowState.NOT_FINITE)
            if len(bad):
                raise InputError(f"vector {bad[0]} holds NaN or infinity, or is longer than {LONGEST:g}")
        return queries


def _namer(ids: pa.Array) -> Callable[[IntArray], list[Any]]:
    """What turns positions into ids. Strings are cut from the buffers by hand: a quarter of the time of `take`."""
    if pa.types.is_integer(ids.type):
        numbers = ids.to_numpy()
        return lambda positions: numbers[positions].tolist()
    width = np.int64 if pa.types.is_large_string(ids.type) else np.int32
    ends = np.frombuffer(ids.buffers()[1], width)[ids.offset :]
    text = memoryview(ids.buffers()[2] or b"")

    def named(positions: IntArray) -> list[Any]:
        pieces = zip(ends[positions].tolist(), ends[positions + 1].tolist(), strict=True)
        return [str(text[start:stop], "utf-8") for start, stop in pieces]

    return named


def _unit(queries: FloatArray, metric: Metric) -> FloatArray:
    """The queries as faiss searches with them: of unit length under cosine."""
    if metric is not Metric.COSINE:
        return queries
    lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    unit: FloatArray = (queries * scale[:, None]).astype(np.float32)
    return unit
