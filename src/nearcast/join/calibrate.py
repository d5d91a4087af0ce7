"""Find the cheapest search parameters that reach a recall target, on sampled queries against exact truth.

The parameters are chosen on one sample and checked on a second; the recall that a snapshot reports is measured on a
third. The calibration aims a little above the target, so that the lower bound of the report can be expected to reach
it. Runs, `knn_join`, online indexes and tuning all calibrate here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
    samples: tuple[QuerySample, QuerySample],
    resources: Resources,
    *,
    n_queries: int,
    n_report: int,
) -> Calibration:
    """Return the cheapest of these operating points that reaches the request's recall target on both samples.

    Bisection finds the first point that reaches the target on the first sample; then points are tried upwards until
    the second sample agrees. The last point is taken if none reaches the target, or if it is cheaper.
    n_queries: all queries, sampled or not. n_report: queries that the recall will be reported on.
    """
    choosing, checking = samples
    target = choosing.request.recall
    curve, check = (RecallCurve(index, points, sample, resources) for sample in samples)

    def reaches_target(point: int) -> bool:
        shares, _ = curve.measure(point)
        return estimate_recall(shares, n_queries).low >= target + _report_error(shares, n_report)

    def reaches_target_again(point: int) -> bool:
        shares, _ = check.measure(point)
        return estimate_recall(shares, n_queries).value >= target + _report_error(shares, n_report)

    last = len(points) - 1
    point = curve.find_first(reaches_target)
    while point < last and not reaches_target_again(point):
        point += 1
    if not index.is_cheaper(checking.queries, checking.request, points[point], resources):
        point = last
    shares, seconds = check.measure(point)
    return Calibration(
        points[point],
        estimate_recall(curve.measure(point)[0], n_queries),
        estimate_recall(shares, n_queries),
        seconds / max(1, len(shares)),
        curve.n_measured,
    )


def _report_error(shares: Float64Array, n_report: int) -> float:
    """Return how far the lower bound of the report will lie below its mean, judged by this sample's spread."""
    return 1.96 * float(shares.std()) / math.sqrt(max(1, n_report))
