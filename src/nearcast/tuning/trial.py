"""One trial: build an index of a sample, and see which effort reaches which recall, at what cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nearcast.engines import ENGINES
from nearcast.engines.base import Effort, Index, JoinShape, Resources, Workload
from nearcast.engines.dense import DenseIndex
from nearcast.join.context import RunContext
from nearcast.measure.recall import Recall, estimate_recall, recall_per_query
from nearcast.spec import parse_model
from nearcast.tuning.scaling import Growth, Point, settings_at
from nearcast.tuning.tuning_samples import Questions, Shard
from nearcast.types import ArrayVectors, Metric, no_progress

__all__ = ["PROMISES", "Job", "Reached", "Trial", "held_out_recall", "least_seconds", "memory_of", "try_point"]

PROMISES = (0.8, 0.9, 0.95, 0.99)  # that the frontier shows beside the one that was asked for
TIMES, SHORT_SECONDS = 3, 0.3
UNSEEN = 1 << 62  # queries to come: a sample is never all of them


@dataclass(frozen=True, slots=True)
class Job:
    """What is being tuned: the whole job, as far as its cost depends on it."""

    run: RunContext
    shape: JoinShape
    seconds_per_pair: float  # of an exact native join
    growth: Growth
    exact_join: float | None = None  # seconds of the join of everything, by the trial of the exact point

    @property
    def promises(self) -> tuple[float, ...]:
        """Promises that trials are judged by, ascending."""
        return tuple(sorted({*PROMISES, self.shape.recall}))

    @property
    def exact_seconds(self) -> float:
        """What an exact native join of everything takes: by its trial, and until there is one by the rate."""
        if self.exact_join is not None:
            return self.exact_join
        per_query = self.growth.exact_overhead + self.seconds_per_pair * self.shape.n_items
        return per_query * self.shape.n_queries


@dataclass(frozen=True, slots=True)
class Reached:
    """The least effort that keeps a promise on a sample."""

    promise: float
    recall: float  # on the queries that the effort was chosen on
    effort: Mapping[str, int]
    rows_met: float | None  # items that a query meets, where the engine counts them


@dataclass(frozen=True, slots=True)
class Trial:
    """A point that was tried on a sample."""

    point: Point  # as the whole job would have it
    share: float  # of the items, that the sample was
    sample_items: int
    build_seconds: float  # of the sample's index
    query_seconds: float  # of a query of the sample's join, at `timed`
    timed: float  # the promise whose effort was timed
    reached: tuple[Reached, ...]  # by promise, ascending; without promises that it does not keep
    memory_bytes: int  # of the whole job, beyond what the process has already
    seconds: float  # that the trial took

    def at(self, promise: float) -> Reached | None:
        """What it takes to keep a promise; None where it does not."""
        return next((r for r in self.reached if r.promise == promise), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "point": {"engine": self.point.engine, "settings": dict(self.point.settings)}}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Trial:
        """The inverse of `as_dict`."""
        point = Point(facts["point"]["engine"], facts["point"]["settings"])
        return cls(**{**facts, "point": point, "reached": tuple(Reached(**r) for r in facts["reached"])})


def try_point(job: Job, point: Point, shard: Shard) -> Trial:
    """Build an index of the sample's items, find the efforts that keep the promises, and time the one asked for."""
    began = time.perf_counter()
    k, resources = min(job.shape.k, shard.items.n), job.run.resources
    small = Point(point.engine, settings_at(point, shard.share))
    index, build_seconds = _built(job, small, shard)
    efforts = index.efforts(k)
    reached = tuple(
        Reached(promise, recall, dict(efforts[rung]), _met(index, shard, efforts[rung], k, resources))
        for promise, (rung, recall) in _rungs(index, efforts, shard.chosen, k, job.promises, resources).items()
    )
    timed = next((r for r in reached if r.promise == job.shape.recall), reached[-1] if reached else None)
    per_query = _timed(index, shard, timed.effort, k, resources) / len(shard.timed) if timed else 0.0
    return Trial(
        point=point,
        share=shard.share,
        sample_items=shard.items.n,
        build_seconds=build_seconds,
        query_seconds=per_query,
        timed=timed.promise if timed else 0.0,
        reached=reached,
        memory_bytes=memory_of(job, point),
        seconds=time.perf_counter() - began,
    )


def held_out_recall(job: Job, point: Point, shard: Shard) -> Recall:
    """Recall on queries that the effort was not chosen on, with its 95% interval."""
    k, resources, asked = min(job.shape.k, shard.items.n), job.run.resources, shard.held_out
    index, _ = _built(job, Point(point.engine, settings_at(point, shard.share)), shard)
    efforts = index.efforts(k)
    rungs = _rungs(index, efforts, shard.chosen, k, (job.shape.recall,), resources)
    effort = efforts[rungs[job.shape.recall][0]] if rungs else efforts[-1]
    return estimate_recall(_recalls(index, effort, asked, k, resources), UNSEEN)


def memory_of(job: Job, point: Point) -> int:
    """What the whole job takes beyond what the process has, by the engine's own estimate."""
    engine = ENGINES[point.engine]
    settings = parse_model(engine.settings, point.settings, point.name)
    few = ArrayVectors(np.zeros((2, job.shape.dim), np.float32))  # only the shape of the whole matters
    return engine.estimate(job.shape, few, Metric(job.run.spec.metric), settings, job.run.resources).memory_bytes


def _built(job: Job, small: Point, shard: Shard) -> tuple[Index, float]:
    engine, run = ENGINES[small.engine], job.run
    started = time.perf_counter()
    index = engine.build(
        shard.items,
        Metric(run.spec.metric),
        parse_model(engine.settings, small.settings, small.name),
        workload=Workload(job.shape.n_queries, job.shape.k, job.shape.recall, shard.timed[:4096]),
        seed=run.spec.seed,
        resources=run.resources,
        progress=no_progress,
    )
    return index, time.perf_counter() - started


def _rungs(
    index: Index, efforts: Sequence[Effort], asked: Questions, k: int, promises: Sequence[float], resources: Resources
) -> dict[float, tuple[int, float]]:
    """For every promise the first effort that keeps it, by its place, and the recall there; by bisection."""
    known: dict[int, float] = {}

    def recall(rung: int) -> float:
        if rung not in known:
            known[rung] = float(_recalls(index, efforts[rung], asked, k, resources).mean())
        return known[rung]

    found, start = {}, 0
    for promise in promises:
        low, high = start, len(efforts) - 1
        if recall(high) < promise:
            break
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if recall(middle) >= promise else (middle + 1, high)
        found[promise] = (low, recall(low))
        start = low
    return found


def _recalls(
    index: Index, effort: Effort, asked: Questions, k: int, resources: Resources
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(n,) recall of every query."""
    if _is_exact(index, effort):
        return np.ones(len(asked.vectors))  # by its bound; to join would build a second index
    found = index.join(
        asked.vectors, k, effort=effort, exclude=asked.exclude, resources=resources, progress=no_progress
    )
    return recall_per_query(found.scores, asked.truth)


def _is_exact(index: Index, effort: Effort) -> bool:
    return isinstance(index, DenseIndex) and "reach" not in effort


def _met(index: Index, shard: Shard, effort: Effort, k: int, resources: Resources) -> float | None:
    if not isinstance(index, DenseIndex) or _is_exact(index, effort):
        return None
    return index.met(shard.chosen.vectors, k, effort, resources)


def _timed(index: Index, shard: Shard, effort: Effort, k: int, resources: Resources) -> float:
    return least_seconds(
        lambda: index.join(shard.timed, k, effort=effort, exclude=None, resources=resources, progress=no_progress)
    )


def least_seconds(work: Callable[[], object]) -> float:
    """The seconds that something takes; the least of several times where that is short, since clocks are noisy."""
    times: list[float] = []
    while not times or (len(times) < TIMES and sum(times) < SHORT_SECONDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
