"""Score a list of items for one query: the fast variant of `knn.scores`, equal to the last bit.

For single queries, where preparation costs as much as scoring. A `ListScorer` holds all precomputed values.
Does not search or sort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.kernels import isa as _isa
from nearcast.kernels.join import METRIC_NUMBERS
from nearcast.knn.scores import norms, pair_scores
from nearcast.types import AnyArray, FloatArray, IntArray, Metric

__all__ = ["ListScorer", "compute_norms", "list_scorer"]

WIDEST = 8192  # components of a vector that the native kernels take


@dataclass(frozen=True, slots=True)
class ListScorer:
    """Items prepared for scoring. Safe to use from many threads; a call uses the caller's thread alone."""

    items: AnyArray  # (m, dim) one of VECTOR_DTYPES; may be mapped
    metric: Metric
    isa: str
    item_norms: npt.NDArray[np.float64]  # (m,) under cosine, else empty

    def scores(self, query: AnyArray, positions: IntArray) -> FloatArray:
        """Return (n,) scores of a query (1, dim) with the items at these n positions."""
        if self.isa == _isa.NUMPY:
            return pair_scores(np.repeat(query, len(positions), axis=0), self.items[positions], self.metric)
        scores: FloatArray = _isa.native().score_lists(
            self.isa,
            METRIC_NUMBERS[self.metric],
            query,
            self.items,
            np.array([0, len(positions)], np.uint64),
            positions.astype(np.uint32),
            self.item_norms,
            1,
        )
        return scores


def list_scorer(items: AnyArray, metric: Metric) -> ListScorer:
    """Prepare items for scoring. Under cosine this computes their lengths, 8 bytes per item."""
    isa = _isa.isa_info().taken
    items = np.ascontiguousarray(items)
    if metric is not Metric.COSINE:
        return ListScorer(items, metric, isa, np.empty(0))
    return ListScorer(items, metric, isa, compute_norms(items))


def compute_norms(vectors: AnyArray) -> npt.NDArray[np.float64]:
    """Return (n,) Euclidean lengths of contiguous vectors (n, dim): the fast variant of `knn.scores.norms`."""
    isa = _isa.isa_info().taken
    if isa == _isa.NUMPY or vectors.shape[1] > WIDEST:
        return norms(vectors)
    lengths: npt.NDArray[np.float64] = _isa.native().norms(isa, vectors, 1)
    return lengths
