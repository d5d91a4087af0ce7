"""Estimate the cost of the whole job from a trial on a sample: build, calibration and join."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nearcast.engines import ENGINES
from nearcast.tuning.scaling import (
    EXACT_POINT,
    TUNED_ENGINES,
    Configuration,
    Growth,
    build_work,
    query_work,
    scale_scanned,
    scale_settings,
)
from nearcast.tuning.trial import Trial, TuningJob

__all__ = ["JobCost", "build_and_join", "estimate_cost", "with_exact_time"]

MAX_OVERHEAD = 0.9  # of the time of a query of a sample
CALIBRATION_JOINS = 8  # of its samples, until the search parameters are found
REFERENCE_SLOWDOWN = 4.0  # of the NumPy join, the reference of engines without a fast exact join


@dataclass(frozen=True, slots=True)
class JobCost:
    """Seconds by stage."""

    build: float
    calibrate: float
    join: float

    @property
    def seconds(self) -> float:
        """Return the sum of all stages."""
        return self.build + self.calibrate + self.join


def estimate_cost(job: TuningJob, trial: Trial, target: float) -> JobCost | None:
    """Return the cost of the whole job with a trial's configuration; None if it misses the recall target.

    A run that would scan too large a share of the items joins exactly instead. Such a run gets the measured time of the
    exact configuration, so that unused cells never look cheaper than no cells.
    """
    both = build_and_join(trial, target, job.shape.n_items, job.shape.n_queries, 1.0, job.growth)
    if both is None:
        return None
    build, join = both
    calibration = _estimate_calibration(job, trial.point, join / max(1, job.shape.n_queries))
    return JobCost(build, calibration, job.exact_seconds if _ends_exact(job, trial, target) else join)


def with_exact_time(job: TuningJob, trials: Iterable[Trial]) -> TuningJob:
    """Return the job with the time of an exact join of the whole tables, if the exact configuration is among these."""
    for trial in trials:
        if trial.point == EXACT_POINT:
            both = build_and_join(trial, job.request.recall, job.shape.n_items, job.shape.n_queries, 1.0, job.growth)
            job = job if both is None else replace(job, exact_join=both[1])
    return job


def _ends_exact(job: TuningJob, trial: Trial, target: float) -> bool:
    """Return whether the run will join exactly, judged by the items that a trial scanned and their growth."""
    reached = trial.at(target)
    if reached is None or reached.items_scanned is None:
        return False
    scanned = scale_scanned(job.shape.n_items, reached.items_scanned, trial.sample_items, job.growth)
    return scanned >= ENGINES[trial.point.engine].max_scan_share * job.shape.n_items


def build_and_join(
    trial: Trial, target: float, n_items: int, n_queries: int, share: float, growth: Growth
) -> tuple[float, float] | None:
    """Return seconds to build over n_items, a share of all, and to join n_queries; None as in `estimate_cost`."""
    reached, timed = trial.at(target), trial.at(trial.timed)
    if reached is None or timed is None:
        return None
    tried = Configuration(trial.point.engine, scale_settings(trial.point, trial.share))
    meant = Configuration(trial.point.engine, scale_settings(trial.point, share))
    build = trial.build_seconds * build_work(meant, n_items) / build_work(tried, trial.sample_items)
    done = query_work(tried, trial.sample_items, timed.params, timed.items_scanned, trial.sample_items, growth)
    work = query_work(meant, n_items, reached.params, reached.items_scanned, trial.sample_items, growth)
    constant = TUNED_ENGINES[trial.point.engine].overhead(growth, reached.items_scanned)
    overhead = min(constant, MAX_OVERHEAD * trial.query_seconds)
    return build, n_queries * (overhead + (trial.query_seconds - overhead) * work / done)


def _estimate_calibration(job: TuningJob, point: Configuration, seconds_per_query: float) -> float:
    """Return the seconds of the run's calibration: the truth of two samples, and some joins of them."""
    if point.settings.get("cells") == 1:
        return 0.0
    sample = min(job.run.spec.measure.calibration, job.shape.n_queries // 4)
    slowdown = 1.0 if ENGINES[point.engine].exact else REFERENCE_SLOWDOWN
    truth = 2 * sample * job.shape.n_items * job.seconds_per_pair * slowdown
    return truth + CALIBRATION_JOINS * sample * seconds_per_query
