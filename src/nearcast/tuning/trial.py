"""One trial: build an index of a sample, and measure the recall and the cost of its operating points."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from nearcast.engines import ENGINES
from nearcast.engines.base import Index, IndexSpec, JoinRequest, JoinShape, Resources, SearchParams, Workload
from nearcast.join.calibrate import WORKLOAD_SAMPLE, QuerySample, RecallCurve
from nearcast.join.context import RunContext
from nearcast.measure.recall import Recall, estimate_recall
from nearcast.spec import parse_model
from nearcast.tuning.scaling import Configuration, Growth, scale_settings
from nearcast.tuning.tuning_samples import TuningSample
from nearcast.types import ArrayVectors

__all__ = [
    "TARGETS",
    "ReachedTarget",
    "Trial",
    "TuningJob",
    "estimate_memory",
    "least_seconds",
    "measure_held_out",
    "try_point",
]

TARGETS = (0.8, 0.9, 0.95, 0.99)  # recalls on the frontier besides the spec's own target
TIMES, SHORT_SECONDS = 3, 0.3
UNSEEN = 1 << 62  # future queries: a sample is never all of them


@dataclass(frozen=True, slots=True)
class TuningJob:
    """The join of the whole tables that is tuned, with the rates that its cost depends on."""

    run: RunContext
    shape: JoinShape
    seconds_per_pair: float  # of an exact native join
    growth: Growth
    exact_join: float | None = None  # seconds of an exact join of the whole tables, by the trial of the exact point

    @property
    def request(self) -> JoinRequest:
        """Return the join request."""
        return self.shape.request

    @property
    def resources(self) -> Resources:
        """Return the threads and the memory of the run."""
        return self.run.resources

    @property
    def targets(self) -> tuple[float, ...]:
        """Return the recall targets of a trial, ascending."""
        return tuple(sorted({*TARGETS, self.request.recall}))

    @property
    def exact_seconds(self) -> float:
        """Return the seconds of an exact native join of the whole tables: by its trial, before that by the rate."""
        if self.exact_join is not None:
            return self.exact_join
        per_query = self.growth.exact_overhead + self.seconds_per_pair * self.shape.n_items
        return per_query * self.shape.n_queries


@dataclass(frozen=True, slots=True)
class ReachedTarget:
    """The cheapest operating point that reaches a recall target on a sample."""

    target: float
    recall: float  # on the queries that the point was chosen on
    params: Mapping[str, int]
    items_scanned: float | None  # per query; None if the engine does not count, or scans all

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "promise": self.target,
            "recall": self.recall,
            "effort": dict(self.params),
            "rows_met": self.items_scanned,
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> ReachedTarget:
        """Return the value that `as_dict` wrote."""
        return cls(facts["promise"], facts["recall"], facts["effort"], facts["rows_met"])


@dataclass(frozen=True, slots=True)
class Trial:
    """A configuration that was tried on a sample."""

    point: Configuration  # for the whole job
    share: float  # of the items in the sample
    sample_items: int
    build_seconds: float  # of the sample's index
    query_seconds: float  # per query of the sample's join, at `timed`
    timed: float  # recall target whose operating point was timed
    reached: tuple[ReachedTarget, ...]  # by target, ascending
    memory_bytes: int  # of the whole job, without the memory of this process
    seconds: float  # of the trial

    def at(self, target: float) -> ReachedTarget | None:
        """Return the operating point of a recall target; None if it is not reached."""
        return next((r for r in self.reached if r.target == target), None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        point = {"engine": self.point.engine, "settings": dict(self.point.settings)}
        return {**asdict(self), "point": point, "reached": [reached.as_dict() for reached in self.reached]}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Trial:
        """Return the value that `as_dict` wrote."""
        point = Configuration(facts["point"]["engine"], facts["point"]["settings"])
        return cls(**{**facts, "point": point, "reached": tuple(ReachedTarget.from_dict(r) for r in facts["reached"])})


def try_point(job: TuningJob, point: Configuration, sample: TuningSample) -> Trial:
    """Build an index of the sample's items, find the operating point per recall target, and time the spec's target."""
    began = time.perf_counter()
    small = Configuration(point.engine, scale_settings(point, sample.share))
    index, build_seconds = _build_sample_index(job, small, sample)
    points = index.operating_points(sample.chosen.request.k)
    reached = tuple(
        ReachedTarget(
            target, recall, dict(points[number]), _count_scanned(index, sample, points[number], job.resources)
        )
        for target, (number, recall) in _find_points(index, points, sample.chosen, job.targets, job.resources).items()
    )
    timed = next((r for r in reached if r.target == job.request.recall), reached[-1] if reached else None)
    per_query = 0.0
    if timed is not None:
        join = partial(index.join, sample.timed, sample.timed_request, timed.params, job.resources)
        per_query = least_seconds(join) / len(sample.timed)
    return Trial(
        point=point,
        share=sample.share,
        sample_items=sample.items.n,
        build_seconds=build_seconds,
        query_seconds=per_query,
        timed=timed.target if timed else 0.0,
        reached=reached,
        memory_bytes=estimate_memory(job, point),
        seconds=time.perf_counter() - began,
    )


def measure_held_out(job: TuningJob, point: Configuration, sample: TuningSample) -> Recall:
    """Return the recall on the held-out queries, with its 95% interval."""
    small = Configuration(point.engine, scale_settings(point, sample.share))
    index, _ = _build_sample_index(job, small, sample)
    points, target = index.operating_points(sample.chosen.request.k), job.request.recall
    numbers = _find_points(index, points, sample.chosen, (target,), job.resources)
    number = numbers[target][0] if numbers else len(points) - 1
    held_out = RecallCurve(index, points, sample.held_out, job.resources)
    return estimate_recall(_measure_recall(held_out, number), UNSEEN)


def estimate_memory(job: TuningJob, point: Configuration) -> int:
    """Return the memory of the whole job by the engine's own estimate, without the memory of this process."""
    engine = ENGINES[point.engine]
    settings = parse_model(engine.settings, point.settings, point.name)
    few = ArrayVectors(np.zeros((2, job.shape.dim), np.float32))  # only the sizes of the whole matter
    return engine.estimate(job.shape, few, settings, job.resources).memory_bytes


def _build_sample_index(job: TuningJob, small: Configuration, sample: TuningSample) -> tuple[Index, float]:
    engine = ENGINES[small.engine]
    started = time.perf_counter()
    settings = parse_model(engine.settings, small.settings, small.name)
    index = engine.build(
        sample.items,
        IndexSpec(job.request.metric, settings, job.run.spec.seed),
        job.resources,
        workload=Workload(job.request, job.shape.n_queries, sample.timed[:WORKLOAD_SAMPLE]),
    )
    return index, time.perf_counter() - started


def _find_points(
    index: Index,
    points: Sequence[SearchParams],
    sample: QuerySample,
    targets: Sequence[float],
    resources: Resources,
) -> dict[float, tuple[int, float]]:
    """Return, for every recall target that is reached, the first point that reaches it and the recall there."""
    curve = RecallCurve(index, points, sample, resources)

    def recall(number: int) -> float:
        return float(_measure_recall(curve, number).mean())

    reached, start = {}, 0
    for target in targets:
        if recall(len(points) - 1) < target:
            break
        start = curve.find_first(lambda number, target=target: recall(number) >= target, start)  # type: ignore[misc]
        reached[target] = (start, recall(start))
    return reached


def _measure_recall(curve: RecallCurve, number: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return (n,) recall per query."""
    if curve.index.is_exact(curve.points[number]):
        return np.ones(len(curve.sample.queries))  # a join could build a second layout of the index
    return curve.measure(number)[0]


def _count_scanned(index: Index, sample: TuningSample, params: SearchParams, resources: Resources) -> float | None:
    """Return the mean number of items scanned per query; None for an exact scan, or if the engine does not count."""
    if index.is_exact(params):
        return None
    chosen = sample.chosen
    return index.items_scanned(chosen.queries, chosen.request, params, resources)


def least_seconds(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes; the least of several times if they are short, since clocks are noisy."""
    times: list[float] = []
    while not times or (len(times) < TIMES and sum(times) < SHORT_SECONDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
