"""Recall by slice: groups of the sampled queries by attribute, traffic or cell. Slices may overlap.

Arrays in, figures out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.measure.recall import estimate_recall
from nearcast.types import FloatArray, IntArray

__all__ = [
    "FEWEST",
    "MOST_VALUES",
    "Slice",
    "SliceRecall",
    "quarter_slices",
    "rare_slices",
    "slice_recall",
    "slice_recalls",
    "traffic_slices",
    "value_slices",
]

FEWEST = 20  # sampled queries of a slice: with fewer the interval is too wide
MOST_VALUES = 20  # of one attribute; the rest is one slice
QUARTERS = 4
REST = "(other)"
MISSING = "(none)"
HEAD_SHARE = 0.5  # of the traffic: the heaviest queries
RARE_SHARE = 0.1  # of the queries, in the smallest cells
CELLS = 32
ROUNDS = 5
ROWS_AT_ONCE = 256

Mask = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slice:
    """A group of the sampled queries with a common value."""

    by: str  # an attribute, or traffic, cells, items
    value: str
    members: Mask  # (sampled queries,)


@dataclass(frozen=True, slots=True)
class SliceRecall:
    """Recall of a slice with its 95% interval, and the median score of the best candidate."""

    by: str
    value: str
    queries: int  # of the sample
    recall: float
    low: float
    high: float
    best_score: float | None  # None: no query has a candidate
    below_promise: bool  # the recall target lies above an interval that accounts for the number of slices

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def value_slices(by: str, codes: IntArray, labels: Sequence[str]) -> Iterator[Slice]:
    """Yield a slice per frequent value, then one of the others. codes: (sampled,) indexes of labels, -1 for null."""
    counts = np.bincount(codes[codes >= 0], minlength=len(labels))
    order = sorted(range(len(labels)), key=lambda i: (-counts[i], labels[i]))
    for code in order[:MOST_VALUES]:
        yield Slice(by, labels[code], codes == code)
    yield Slice(by, REST, np.isin(codes, order[MOST_VALUES:]))
    yield Slice(by, MISSING, codes < 0)


def quarter_slices(by: str, numbers: Float64Array) -> Iterator[Slice]:
    """Yield a slice per quartile of a number. numbers: (sampled,), NaN for null."""
    known = ~np.isnan(numbers)
    if known.any():
        yield from _split_quarters(by, numbers, known)
    yield Slice(by, MISSING, ~known)


def _split_quarters(name: str, numbers: Float64Array, known: Mask) -> Iterator[Slice]:
    bounds = np.unique(np.quantile(numbers[known], np.linspace(0, 1, QUARTERS + 1)))
    if len(bounds) == 1:
        yield Slice(name, f"{bounds[0]:g}", known)
    for number, (low, high) in enumerate(pairwise(bounds)):
        first = number == 0
        inside = known & ((numbers >= low) if first else (numbers > low)) & (numbers <= high)
        yield Slice(name, f"{low:g} to {high:g}" if first else f"above {low:g} to {high:g}", inside)


def traffic_slices(weights: Float64Array) -> Iterator[Slice]:
    """Yield the head, the heaviest queries with half of the traffic, and the tail."""
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    head = np.zeros(len(weights), np.bool_)
    head[order[before < HEAD_SHARE * weights.sum()]] = True
    yield Slice("traffic", "head", head)
    yield Slice("traffic", "tail", ~head)


def rare_slices(vectors: FloatArray, seed: int) -> Iterator[Slice]:
    """Yield the queries of the smallest of 32 k-means cells, at most a tenth of all, and the others."""
    if len(vectors) < CELLS * FEWEST // 2:
        return
    cells = _cells(vectors, seed)
    sizes = np.bincount(cells, minlength=CELLS)
    order = np.argsort(sizes, kind="stable")
    small = order[np.cumsum(sizes[order]) <= RARE_SHARE * len(vectors)]
    rare: Mask = np.isin(cells, small)
    yield Slice("cells", "rare", rare)
    yield Slice("cells", "common", ~rare)


def _cells(vectors: FloatArray, seed: int) -> IntArray:
    """Cluster directions by Lloyd's k-means, in few rounds: only the sizes of the cells matter."""
    rows = vectors.astype(np.float64)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        lengths = np.linalg.norm(some, axis=1, keepdims=True)
        some /= np.where(lengths > 0, lengths, 1.0)
    centres = rows[np.random.default_rng([seed, 3]).choice(len(rows), CELLS, replace=False)]
    cells: IntArray = np.zeros(len(rows), np.int64)
    for _ in range(ROUNDS):
        cells = np.argmax(rows @ centres.T - 0.5 * (centres * centres).sum(axis=1), axis=1).astype(np.int64)
        sums = np.zeros_like(centres)
        np.add.at(sums, cells, rows)
        counts = np.bincount(cells, minlength=CELLS)[:, None]
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
    return cells


def slice_recalls(
    slices: list[Slice], shares: Float64Array, best: Float64Array, n_queries: int, promise: float
) -> list[SliceRecall]:
    """Estimate the recall of every slice with enough queries that is not the whole sample.

    shares: (sampled,) recall per query. best: (sampled,) score of the best candidate, -inf for none.
    """
    large = [s for s in slices if FEWEST <= int(s.members.sum()) < len(shares)]
    per_sampled = n_queries / max(1, len(shares))
    return [
        slice_recall(s.by, s.value, shares[s.members], best[s.members], per_sampled, promise, n_slices=len(large))
        for s in large
    ]


def slice_recall(
    by: str,
    value: str,
    shares: Float64Array,
    best: Float64Array,
    per_sampled: float,
    promise: float,
    *,
    n_slices: int,
) -> SliceRecall:
    """Estimate the recall of one slice; one in `per_sampled` of its queries is in the sample.

    With many slices, one falls below its 95% interval by chance. So a slice is below the recall target only by an
    interval that holds for all slices together in 95 of 100 cases (Bonferroni).
    """
    population = max(len(shares), round(per_sampled * len(shares)))
    recall = estimate_recall(shares, population)
    widest = estimate_recall(shares, population, z=NormalDist().inv_cdf(1 - 0.025 / n_slices))
    known = best[np.isfinite(best)]
    score = float(np.median(known)) if len(known) else None
    return SliceRecall(by, value, len(shares), recall.value, recall.low, recall.high, score, widest.high < promise)
