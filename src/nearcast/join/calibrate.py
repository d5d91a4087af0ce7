"""Find the cheapest search parameters that reach a recall target, on sampled queries against exact truth.

The parameters are chosen on one part of a sample and checked on the other; the recall that a snapshot reports is
measured on another sample. The calibration aims a little above the target, so that the lower bound of the report can be
expected to reach it. Runs, `knn_join`, online indexes and tuning all calibrate here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from nearcast.engines.base import Index, JoinRequest, Resources, SearchParams, Workload
from nearcast.measure.recall import Recall, estimate_recall, recall_per_query, sample_rows
from nearcast.types import AnyArray, IntArray, Neighbors, Vectors

__all__ = [
    "MIN_QUERIES",
    "Calibration",
    "QuerySample",
    "RecallCurve",
    "calibrate",
    "make_workload",
    "sample_workload",
]

MIN_QUERIES = 200  # for fewer, a calibration costs about as much as an exact join of all of them
MOST_CORRECTIONS = 3  # of a predicted recall by a measured one; then the points are tried upwards
WORKLOAD_SAMPLE = 4_096  # queries that an index may be fitted to: it uses their moments, not their neighbors

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class QuerySample:
    """Some queries with their exact neighbors."""

    queries: AnyArray  # (n, dim)
    request: JoinRequest  # for these queries
    truth: Neighbors


@dataclass(frozen=True, slots=True)
class RecallCurve:
    """Recall of an index at its operating points, on one sample. Each point is joined at most once."""

    index: Index
    points: Sequence[SearchParams]  # cheapest first
    sample: QuerySample
    resources: Resources
    _measured: dict[int, tuple[Float64Array, float]] = field(default_factory=dict)

    def measure(self, point: int) -> tuple[Float64Array, float]:
        """Return the (n,) recall per query at a point, and the seconds of its join."""
        if point not in self._measured:
            sample, started = self.sample, time.perf_counter()
            lists = self.index.join(sample.queries, sample.request, self.points[point], self.resources)
            seconds = time.perf_counter() - started
            self._measured[point] = recall_per_query(lists.scores, sample.truth), seconds
        return self._measured[point]

    @property
    def n_measured(self) -> int:
        """Return the number of points that were joined."""
        return len(self._measured)

    def find_first(self, reaches: Callable[[int], bool], start: int = 0) -> int:
        """Return the first point from `start` on that `reaches` accepts, by bisection; the last point if none does.

        Recall is assumed to grow along the points. The last point is never tested.
        """
        low, high = start, len(self.points) - 1
        while low < high:
            middle = (low + high) // 2
            if reaches(middle):
                high = middle
            else:
                low = middle + 1
        return low


@dataclass(frozen=True, slots=True)
class Calibration:
    """The chosen search parameters, and the recall that they reached."""

    params: SearchParams
    chosen_on: Recall  # on the sample that they were chosen on
    held_out: Recall  # on the other sample
    seconds_per_query: float
    points_tried: int


def sample_workload(n_queries: int, seed: int) -> IntArray:
    """Draw the positions of the queries that an index may be fitted to."""
    (rows,) = sample_rows(n_queries, (min(n_queries, WORKLOAD_SAMPLE),), seed + 1)
    return rows


def make_workload(queries: Vectors, request: JoinRequest, seed: int) -> Workload:
    """Return the workload of an index, with a random sample of the queries that it may be fitted to."""
    return Workload(request, queries.n, queries.take(sample_workload(queries.n, seed)))


def calibrate(
    index: Index,
    points: Sequence[SearchParams],
    sample: QuerySample,
    resources: Resources,
    *,
    n_choosing: int,
    n_queries: int,
    n_report: int,
) -> Calibration:
    """Return the cheapest of these operating points that reaches the request's recall target on both parts of a sample.

    The first n_choosing queries choose, and the lower end of their interval counts; the others check, and their mean
    counts. If the index predicts recall, few points are joined: the measured recall corrects the prediction, and alone
    decides. Else bisection finds the point. The last point is taken if none reaches the target, or if it is cheaper.
    n_queries: all queries, sampled or not. n_report: queries that the recall will be reported on.
    """
    curve, target = RecallCurve(index, points, sample, resources), sample.request.recall

    def split(shares: Float64Array) -> tuple[Float64Array, Float64Array]:
        return shares[:n_choosing], shares[n_choosing:] if n_choosing < len(shares) else shares

    def reaches_target(shares: Float64Array) -> bool:
        choosing, checking = split(shares)
        low, value = estimate_recall(choosing, n_queries).low, estimate_recall(checking, n_queries).value
        return low >= target + _report_error(choosing, n_report) and value >= target + _report_error(checking, n_report)

    predicted = predict_recall(index, points, sample, resources)
    if predicted is None:
        point = curve.find_first(lambda point: reaches_target(curve.measure(point)[0]))
    else:
        point = _correct_prediction(curve, predicted, reaches_target)
    last = len(points) - 1
    while point < last and not reaches_target(curve.measure(point)[0]):
        point += 1
    if not index.is_cheaper(sample.queries, sample.request, points[point], resources):
        point = last
    shares, seconds = curve.measure(point)
    choosing, checking = split(shares)
    return Calibration(
        points[point],
        estimate_recall(choosing, n_queries),
        estimate_recall(checking, n_queries),
        seconds / max(1, len(shares)),
        curve.n_measured,
    )


def predict_recall(
    index: Index, points: Sequence[SearchParams], sample: QuerySample, resources: Resources
) -> Float64Array | None:
    """Return (points, n) the recall per query that the index predicts, without joins; None if it cannot."""
    found = index.count_found(sample.queries, sample.request, sample.truth, points, resources)
    if found is None:
        return None
    lengths = sample.truth.lengths
    shares: Float64Array = np.where(lengths > 0, found / np.maximum(lengths, 1), 1.0)
    return shares


def _correct_prediction(
    curve: RecallCurve, predicted: Float64Array, reaches_target: Callable[[Float64Array], bool]
) -> int:
    """Return the first point that reaches the target by a prediction corrected by the recall measured there.

    A prediction counts positions, and knows nothing of ties or of what the scan loses within a cell.
    """
    point, error = -1, 0.0
    for _ in range(MOST_CORRECTIONS):
        before = point
        expected = np.clip(predicted - error, 0, 1)
        point = curve.find_first(partial(_reaches_at, expected, reaches_target))
        if point == before or point == len(curve.points) - 1:
            break
        error = float((predicted[point] - curve.measure(point)[0]).mean())
    return point


def _reaches_at(expected: Float64Array, reaches_target: Callable[[Float64Array], bool], point: int) -> bool:
    return reaches_target(expected[point])


def _report_error(shares: Float64Array, n_report: int) -> float:
    """Return how far the lower bound of the report will lie below its mean, judged by this sample's spread."""
    return 1.96 * float(shares.std()) / math.sqrt(max(1, n_report))
