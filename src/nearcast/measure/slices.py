"""Recall by slice: a mean hides the groups of queries that it is made of.

Arrays in, figures out. Slices overlap freely: each is one way to look at the same sample.
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

FEWEST = 20  # sampled queries: below that an interval says nothing
MOST_VALUES = 20  # of one attribute; the rest is one slice
QUARTERS = 4
REST = "(other)"
MISSING = "(none)"
HEAD_SHARE = 0.5  # of the traffic, taken by the heaviest queries
RARE_SHARE = 0.1  # of the queries, in the smallest cells
CELLS = 32
ROUNDS = 5

Mask = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of the sampled queries, and what they have in common."""

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
    best_score: float | None  # None: no query of it has a candidate
    below_promise: bool  # the promise lies above an interval that is wide enough for so many slices at once

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def value_slices(by: str, codes: IntArray, labels: Sequence[str]) -> Iterator[Slice]:
    """A slice per value, the most frequent first, then one of the others. codes: (sampled,) labels by number, or -1."""
    counts = np.bincount(codes[codes >= 0], minlength=len(labels))
    order = sorted(range(len(labels)), key=lambda i: (-counts[i], labels[i]))
    for code in order[:MOST_VALUES]:
        yield Slice(by, labels[code], codes == code)
    yield Slice(by, REST, np.isin(codes, order[MOST_VALUES:]))
    yield Slice(by, MISSING, codes < 0)


def quarter_slices(by: str, numbers: Float64Array) -> Iterator[Slice]:
    """A slice per quarter of a number's values. numbers: (sampled,), NaN where there is none."""
    known = ~np.isnan(numbers)
    if known.any():
        yield from _quarters(by, numbers, known)
    yield Slice(by, MISSING, ~known)


def _quarters(name: str, numbers: Float64Array, known: Mask) -> Iterator[Slice]:
    bounds = np.unique(np.quantile(numbers[known], np.linspace(0, 1, QUARTERS + 1)))
    if len(bounds) == 1:
        yield Slice(name, f"{bounds[0]:g}", known)
    for number, (low, high) in enumerate(pairwise(bounds)):
        first = number == 0
        inside = known & ((numbers >= low) if first else (numbers > low)) & (numbers <= high)
        yield Slice(name, f"{low:g} to {high:g}" if first else f"above {low:g} to {high:g}", inside)


def traffic_slices(weights: Float64Array) -> Iterator[Slice]:
    """The head, which is the heaviest queries that together take half of the traffic, and the tail."""
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    head = np.zeros(len(weights), np.bool_)
    head[order[before < HEAD_SHARE * weights.sum()]] = True
    yield Slice("traffic", "head", head)
    yield Slice("traffic", "tail", ~head)


def rare_slices(vectors: FloatArray, seed: int) -> Iterator[Slice]:
    """The queries of the smallest of 32 k-means cells, a tenth of all at most: those that few others are like."""
    if len(vectors) < CELLS * FEWEST // 2:
        return
    cells = _cells(vectors.astype(np.float64), seed)
    sizes = np.bincount(cells, minlength=CELLS)
    order = np.argsort(sizes, kind="stable")
    small = order[np.cumsum(sizes[order]) <= RARE_SHARE * len(vectors)]
    rare: Mask = np.isin(cells, small)
    yield Slice("cells", "rare", rare)
    yield Slice("cells", "common", ~rare)


def _cells(vectors: Float64Array, seed: int) -> IntArray:
    """Lloyd's k-means on directions: a few rounds, since only the sizes of the cells matter."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = vectors / np.where(lengths > 0, lengths, 1.0)
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
    """Recall of every slice that is large enough to be judged, and is not the whole sample.

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
    """Recall of one slice, of whose queries one in `per_sampled` is in the sample.

    With many slices one falls below its 95% interval by chance alone; a slice is therefore only called below the
    promise by an interval that all of them together hold in 95 of 100 cases (Bonferroni).
    """
    population = max(len(shares), round(per_sampled * len(shares)))
    recall = estimate_recall(shares, population)
    widest = estimate_recall(shares, population, z=NormalDist().inv_cdf(1 - 0.025 / n_slices))
    known = best[np.isfinite(best)]
    score = float(np.median(known)) if len(known) else None
    return SliceRecall(by, value, len(shares), recall.value, recall.low, recall.high, score, widest.high < promise)
