"""The kNN join for arrays in memory: no ids, no files, the same engines and the same promise."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from nearcast import machine
from nearcast.engines import choose_engine
from nearcast.engines.base import Effort, Index, Resources, refuse_unhonoured
from nearcast.errors import InputError, SpecError
from nearcast.join.calibrate import FEW_QUERIES, Calibration, Sample, find_effort, workload_of
from nearcast.knn.constraints import FREE, Constraints, crossing_items
from nearcast.knn.exact_join import exact_join
from nearcast.measure.recall import sample_rows
from nearcast.measure.ties import tie_warning, tied_share
from nearcast.sources.matrix import RowState, lengths_and_states, refuse_masked
from nearcast.spec import parse_bytes, parse_model
from nearcast.types import (
    VECTOR_DTYPES,
    AnyArray,
    ArrayVectors,
    FloatArray,
    IntArray,
    Metric,
    Neighbors,
    Progress,
    no_progress,
)

__all__ = ["JoinReport", "JoinResult", "knn_join"]

CALIBRATION_QUERIES = 1_000
MOST_SLOTS = 2**28  # of a list: 3 GB


@dataclass(frozen=True, slots=True)
class JoinReport:
    """How a join was done and what it took."""

    engine: str
    effort: Mapping[str, int]
    recall: float  # the promise
    reached: float | None  # on held-out queries; None where nothing was left out
    reached_low: float | None  # lower end of its 95% interval
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()  # such as scores that cannot tell items apart


@dataclass(frozen=True, slots=True)
class JoinResult:
    """The k best items of every query, best first; an empty slot has position -1 and score -inf."""

    positions: IntArray  # (n, k) int64 rows of `items`
    scores: FloatArray  # (n, k) float32, larger is better
    lengths: IntArray  # (n,) filled slots
    report: JoinReport


def knn_join(
    queries: AnyArray,
    items: AnyArray,
    *,
    k: int,
    metric: str = "inner_product",
    recall: float = 1.0,
    engine: str = "auto",
    engine_settings: Mapping[str, Any] | None = None,
    exclude_self: bool = False,
    constraints: Constraints = FREE,
    threads: int | None = None,
    memory: int | str = "1GB",
    seed: int = 0,
    progress: Progress = no_progress,
) -> JoinResult:
    """Find the k best items (m, dim) of every query (n, dim), with at least this recall.

    metric: "inner_product", "cosine" or "l2" (the score is minus the squared distance). Equal scores go to
    the smaller row. recall below 1 lets an approximate engine work less: its effort is found on sampled
    queries against exact truth, and checked on others. exclude_self: row i of the queries never gets row i
    of the items. k may exceed m: lists are then short. memory: what the join may take beyond the arrays.
    constraints: which items each query may get, how many of a group, and how good; lists may then be short,
    and recall is that among what the constraints leave. `report.warnings` says where scores cannot tell items apart.

    Arrays of float16, float32, int8 or uint8 are taken as they are, float64 is rounded to float32. Raises
    InputError for arrays that cannot be joined, SpecError for settings that make no sense, such as recall = 1 with an
    effort (`nprobe`, `ef_search`, `reach`) that leaves items out. An effort forced below that is measured, and
    `report.warnings` says where it does not keep the promise.
    """
    chosen_metric = _metric(metric)
    query_vectors, item_vectors = _checked("queries", queries), ArrayVectors(_checked("items", items))
    _check_together(query_vectors, item_vectors, k, recall, seed)
    chosen = choose_engine(engine)
    settings = parse_model(chosen.settings, dict(engine_settings or {}), f"engine_settings of {chosen.name}")
    resources = _resources(threads, memory)
    exclude = _own_rows(len(query_vectors), item_vectors.n) if exclude_self else None
    _check_constraints(constraints, len(query_vectors), item_vectors.n)
    refuse_unhonoured(chosen, constraints)

    started = time.perf_counter()
    index = chosen.build(
        item_vectors,
        chosen_metric,
        settings,
        workload=workload_of(ArrayVectors(query_vectors), k, recall, seed, constraints),
        seed=seed,
        resources=resources,
        progress=progress,
    )
    built = time.perf_counter()
    efforts = index.efforts(k)
    effort, found = efforts[-1], None
    forced = not index.is_full(effort)
    if forced and recall == 1:
        raise SpecError(
            f"recall is 1, and engine_settings of {chosen.name} force {_words(effort)}, which leaves items out: leave "
            "that out, or promise less"
        )
    if recall < 1 and (forced or (len(efforts) > 1 and len(query_vectors) >= FEW_QUERIES)):
        samples = _Sampler(
            index,
            query_vectors,
            item_vectors,
            k,
            chosen_metric,
            exclude,
            constraints,
            resources,
            efforts[-1] if chosen.exact and not forced else None,
        )
        found = samples.calibrate(efforts, recall, seed)
        effort = found.effort
    calibrated = time.perf_counter()
    best = index.join(
        query_vectors,
        k,
        effort=effort,
        exclude=exclude,
        constraints=constraints,
        resources=resources,
        progress=progress,
    )
    seconds = {
        "build": built - started,
        "calibrate": calibrated - built,
        "join": time.perf_counter() - calibrated,
    }
    report = JoinReport(chosen.name, dict(effort), recall, None, None, seconds)
    ties = tie_warning(tied_share(best.scores), best.scores, chosen_metric)
    if ties is not None:
        report = replace(report, warnings=(ties,))
    if found is not None and found.held_out.sample:
        reached = found.held_out
        report = replace(report, reached=reached.value, reached_low=reached.low)
        if forced and reached.value < recall:
            broken = (
                f"{_words(effort)} reaches recall {reached.value:.4f}, below the {recall:g} asked for; leave it out"
            )
            report = replace(report, warnings=(*report.warnings, f"{broken} of engine_settings, and it is found"))
    return JoinResult(best.positions, best.scores, best.lengths, report)


@dataclass(frozen=True, slots=True)
class _Sampler:
    """Draws samples of the queries with their exact truth."""

    index: Index
    queries: AnyArray
    items: ArrayVectors
    k: int
    metric: Metric
    exclude: IntArray | None
    constraints: Constraints
    resources: Resources
    full_effort: Effort | None  # of an exact engine: its own answer is the truth, and a fast one

    def calibrate(self, efforts: Any, recall: float, seed: int) -> Calibration:
        n = len(self.queries)
        size = min(CALIBRATION_QUERIES, max(1, n // 2))
        choosing, checking = sample_rows(n, (size, size), seed)
        if n == 1:
            checking = choosing
        return find_effort(
            efforts, recall, self.sample(choosing), self.sample(checking), n_queries=n, n_report=2 * size
        )

    def sample(self, rows: IntArray) -> Sample:
        queries, barred = self.queries[rows], None if self.exclude is None else self.exclude[rows]
        held = self.constraints.of_queries(rows)

        def join(effort: Effort) -> Neighbors:
            return self.index.join(
                queries,
                self.k,
                effort=effort,
                exclude=barred,
                constraints=held,
                resources=self.resources,
                progress=no_progress,
            )

        def pays(effort: Effort) -> bool:
            return self.index.pays(queries, self.k, effort, self.resources, held)

        truth = join(self.full_effort) if self.full_effort is not None else self.truth(queries, barred, held)
        return Sample(join, truth, pays)

    def truth(self, queries: AnyArray, barred: IntArray | None, held: Constraints) -> Neighbors:
        return exact_join(
            queries,
            self.items,
            self.k,
            self.metric,
            exclude=barred,
            constraints=held,
            threads=self.resources.threads,
            memory_bytes=self.resources.memory_bytes,
        )


def _words(effort: Effort) -> str:
    return ", ".join(f"{name} = {value}" for name, value in effort.items())


def _metric(name: str) -> Metric:
    try:
        return Metric(name)
    except ValueError:
        raise SpecError(f"metric is {name!r}; it can be {', '.join(Metric)}") from None


def _resources(threads: int | None, memory: int | str) -> Resources:
    if threads is not None and threads < 1:
        raise SpecError(f"threads is {threads}; it is at least 1, or None for all cores")
    try:
        return Resources(threads or machine.default_threads(), parse_bytes(memory))
    except ValueError as error:
        raise SpecError(f"memory is {memory!r}: {error}") from None


def _checked(side: str, vectors: AnyArray) -> AnyArray:
    try:
        refuse_masked(vectors, side)
        array = np.asarray(vectors)
    except ValueError as error:
        raise InputError(f"{side} are no array ({error}); give rows of one length") from None
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{side} have shape {array.shape}; give rows: (count, dimension)")
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if array.dtype.name not in VECTOR_DTYPES:
        raise InputError(f"{side} are {array.dtype}; give float16, float32, float64, int8 or uint8")
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    for start in range(0, len(array), 65_536):
        block = array[start : start + 65_536]
        states = lengths_and_states(block, np.zeros(len(block), np.uint8))[1]
        bad = np.flatnonzero(states == RowState.NOT_FINITE)
        if len(bad):
            raise InputError(
                f"row {start + int(bad[0])} of {side} holds NaN or infinity (or is longer than 1e18); "
                "take such rows out before the join"
            )
    return array


def _check_together(queries: AnyArray, items: ArrayVectors, k: int, recall: float, seed: int) -> None:
    if items.n == 0:
        raise InputError("items are empty: there is nothing to find")
    if queries.shape[1] != items.dim:
        raise InputError(f"queries have {queries.shape[1]} components and items {items.dim}; embed both with one model")
    if k < 1:
        raise SpecError(f"k is {k}; it is at least 1")
    if k > MOST_SLOTS:
        raise SpecError(f"k is {k:,}; it is at most {MOST_SLOTS:,}")
    if not 0 < recall <= 1:
        raise SpecError(f"recall is {recall}; it is above 0 and at most 1")
    if seed < 0:
        raise SpecError(f"seed is {seed}; it is at least 0")


def _check_constraints(constraints: Constraints, n_queries: int, n_items: int) -> None:
    rule = constraints.eligibility
    if rule is not None and (rule.n_queries, rule.n_items) != (n_queries, n_items):
        raise InputError(
            f"the eligibility is for {rule.n_queries:,} queries and {rule.n_items:,} items; given are "
            f"{n_queries:,} and {n_items:,}"
        )
    for number, cap in enumerate(constraints.caps):
        if cap.groups.shape != (n_items,):
            raise InputError(
                f"caps[{number}] has groups of shape {cap.groups.shape}; needed is one an item, {n_items:,}"
            )
        if cap.most < 1:
            raise SpecError(f"caps[{number}] lets {cap.most} items of a group through; it is at least 1")
    for inner, outer in pairwise(constraints.caps):
        if crossing_items(inner, outer) is not None:
            raise SpecError(
                "groups of caps must lie within each other, the smallest first: items "
                "{} and {} share a group of one, but not of the next".format(*crossing_items(inner, outer) or ())
            )


def _own_rows(n_queries: int, n_items: int) -> IntArray:
    own = np.arange(n_queries)
    return np.where(own < n_items, own, -1)
