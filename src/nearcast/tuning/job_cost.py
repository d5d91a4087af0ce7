"""What the whole job would take, by a trial on a sample: build, calibration and join. The rest is the same for all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nearcast.engines import ENGINES
from nearcast.tuning.scaling import EXACT_POINT, Configuration, Growth, build_work, items_met, query_work, settings_at
from nearcast.tuning.trial import Trial, TuningJob

__all__ = ["JobCost", "build_and_join", "cost_of", "told_by_exact"]

MOST_OVERHEAD = 0.9  # of what a query of a sample took
CALIBRATION_JOINS = 8  # of its samples, until the effort is found
REFEREE_SLOWDOWN = 4.0  # of the NumPy join that gives engines without an exact mode their truth


@dataclass(frozen=True, slots=True)
class JobCost:
    """Seconds by stage."""

    build: float
    calibrate: float
    join: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.build + self.calibrate + self.join


def cost_of(job: TuningJob, trial: Trial, promise: float) -> JobCost | None:
    """The cost of the whole job with a trial's point; None where it does not keep the promise.

    A run whose cells would be met too often joins exactly after all, and so it is reckoned here: by the same clock as
    the exact point, so that cells which end up unused never look cheaper than none.
    """
    both = build_and_join(trial, promise, job.shape.n_items, job.shape.n_queries, 1.0, job.growth)
    if both is None:
        return None
    build, join = both
    calibration = _calibration(job, trial.point, join / max(1, job.shape.n_queries))
    return JobCost(build, calibration, job.exact_seconds if _ends_exact(job, trial, promise) else join)


def told_by_exact(job: TuningJob, trials: Iterable[Trial]) -> TuningJob:
    """The job with what the trial of the exact point, if it is among these, tells of an exact join of everything."""
    for trial in trials:
        if trial.point == EXACT_POINT:
            both = build_and_join(trial, job.request.recall, job.shape.n_items, job.shape.n_queries, 1.0, job.growth)
            job = job if both is None else replace(job, exact_join=both[1])
    return job


def _ends_exact(job: TuningJob, trial: Trial, promise: float) -> bool:
    """Whether the run will count that cells do not pay, by what a trial met and how that grows."""
    reached = trial.at(promise)
    if reached is None or reached.items_scanned is None:
        return False
    met = items_met(job.shape.n_items, reached.items_scanned, trial.sample_items, job.growth)
    return met >= ENGINES[trial.point.engine].max_scan_share * job.shape.n_items


def build_and_join(
    trial: Trial, promise: float, n_items: int, n_queries: int, share: float, growth: Growth
) -> tuple[float, float] | None:
    """Seconds to build over so many items, a share of all, and to join so many queries; None as in `cost_of`."""
    reached, timed = trial.at(promise), trial.at(trial.timed)
    if reached is None or timed is None:
        return None
    tried = Configuration(trial.point.engine, settings_at(trial.point, trial.share))
    meant = Configuration(trial.point.engine, settings_at(trial.point, share))
    build = trial.build_seconds * build_work(meant, n_items) / build_work(tried, trial.sample_items)
    done = query_work(tried, trial.sample_items, timed.params, timed.items_scanned, trial.sample_items, growth)
    work = query_work(meant, n_items, reached.params, reached.items_scanned, trial.sample_items, growth)
    resting = 0.0
    if trial.point.engine == "dense":
        resting = growth.overhead if reached.items_scanned is not None else growth.exact_overhead
    overhead = min(resting, MOST_OVERHEAD * trial.query_seconds)
    return build, n_queries * (overhead + (trial.query_seconds - overhead) * work / done)


def _calibration(job: TuningJob, point: Configuration, seconds_per_query: float) -> float:
    """What finding the effort takes in the run: the truth of two samples, and some joins of them."""
    if point.settings.get("cells") == 1:
        return 0.0
    sample = min(job.run.spec.measure.calibration, job.shape.n_queries // 4)
    slowdown = 1.0 if ENGINES[point.engine].exact else REFEREE_SLOWDOWN
    truth = 2 * sample * job.shape.n_items * job.seconds_per_pair * slowdown
    return truth + CALIBRATION_JOINS * sample * seconds_per_query
