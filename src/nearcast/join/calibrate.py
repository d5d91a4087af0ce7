"""Find the least effort that keeps a recall promise, on sampled queries against exact truth.

The effort is found on one sample and checked on a second; the recall that a snapshot reports is measured on
a third. Aimed a little above the promise, so that the report's lower bound can be expected to hold it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.engines.base import Effort, Workload
from nearcast.knn.constraints import FREE, Constraints
from nearcast.measure.recall import Recall, estimate_recall, recall_per_query, sample_rows
from nearcast.types import Neighbors, Vectors

__all__ = ["FEW_QUERIES", "Calibration", "Sample", "find_effort", "workload_of"]

FEW_QUERIES = 200  # for fewer, a calibration would cost about as much as full effort for all of them
WORKLOAD_SAMPLE = 4_096  # queries that an index may be fitted to: moments, not neighbors, are taken from them


@dataclass(frozen=True, slots=True)
class Sample:
    """Queries with their exact neighbors."""

    join: Callable[[Effort], Neighbors]  # answers the sample's queries with an effort
    truth: Neighbors
    pays: Callable[[Effort], bool]  # whether an effort costs less than full effort

    def recall(self, effort: Effort) -> tuple[npt.NDArray[np.float64], float]:
        """Per-query recall of an effort, and the seconds that it took."""
        started = time.perf_counter()
        found = self.join(effort)
        seconds = time.perf_counter() - started
        return recall_per_query(found.scores, self.truth), seconds


@dataclass(frozen=True, slots=True)
class Calibration:
    """The effort found, and what it reached."""

    effort: Effort
    found: Recall  # on the sample that it was chosen on
    held_out: Recall  # on the sample that it was not chosen on
    seconds_per_query: float
    tried: int


def workload_of(queries: Vectors, k: int, recall: float, seed: int, constraints: Constraints = FREE) -> Workload:
    """What an index will be asked, with a random sample of the queries that it may be fitted to."""
    (rows,) = sample_rows(queries.n, (min(queries.n, WORKLOAD_SAMPLE),), seed + 1)
    return Workload(queries.n, k, recall, queries.take(rows), constraints)


def find_effort(
    efforts: Sequence[Effort],
    promise: float,
    choosing: Sample,
    checking: Sample,
    *,
    n_queries: int,
    n_report: int,
) -> Calibration:
    """The cheapest of `efforts` (cheapest first) that keeps `promise` on both samples.

    Recall is taken to grow with effort, so bisection finds the first that keeps it; the check then walks up
    until the held-out sample agrees. Full effort is taken where none does, and where it costs less.
    """
    tried: dict[int, tuple[npt.NDArray[np.float64], float]] = {}

    def shares(rung: int) -> npt.NDArray[np.float64]:
        if rung not in tried:
            tried[rung] = choosing.recall(efforts[rung])
        return tried[rung][0]

    def keeps(rung: int) -> bool:
        sampled = shares(rung)
        return estimate_recall(sampled, n_queries).low >= promise + _report_error(sampled, n_report)

    low, high = 0, len(efforts) - 1
    while low < high:
        middle = (low + high) // 2
        if keeps(middle):
            high = middle
        else:
            low = middle + 1
    while True:
        checked, seconds = checking.recall(efforts[low])
        held_out = estimate_recall(checked, n_queries)
        if low == len(efforts) - 1 or held_out.value >= promise + _report_error(checked, n_report):
            break
        low += 1
    if not checking.pays(efforts[low]):
        low = len(efforts) - 1
        checked, seconds = checking.recall(efforts[low])
        held_out = estimate_recall(checked, n_queries)
    return Calibration(
        efforts[low],
        estimate_recall(shares(low), n_queries),
        held_out,
        seconds / max(1, len(checked)),
        len(tried),
    )


def _report_error(shares: npt.NDArray[np.float64], n_report: int) -> float:
    """How far the lower bound of the report will lie below its mean, judging by this sample's spread."""
    return 1.96 * float(shares.std()) / math.sqrt(max(1, n_report))
