"""The kNN join for arrays in memory: no ids, no files, the same engines and the same recall target."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from nearcast import machine
from nearcast.engines import choose_engine
from nearcast.engines.base import (
    Engine,
    Index,
    IndexSpec,
    JoinRequest,
    Resources,
    SearchParams,
    require_constraints,
)
from nearcast.engines.query_parts import join_in_parts
from nearcast.errors import InputError, SpecError
from nearcast.join.build_array_index import build_array_index
from nearcast.join.calibrate import MIN_QUERIES, Calibration, QuerySample, calibrate, make_workload
from nearcast.knn.constraints import FREE, Constraints, find_crossing
from nearcast.knn.exact_join import exact_join
from nearcast.measure.recall import sample_rows
from nearcast.measure.ties import tie_warning, tied_share
from nearcast.sources.matrix import RowState, compute_lengths, refuse_masked
from nearcast.spec import parse_bytes, parse_model
from nearcast.types import (
    VECTOR_DTYPES,
    AnyArray,
    ArrayVectors,
    FloatArray,
    IntArray,
    Metric,
    Progress,
    no_progress,
)

__all__ = ["JoinReport", "JoinResult", "knn_join"]

CALIBRATION_QUERIES = 1_000
MAX_SLOTS = 2**28  # of a list: 3 GB


@dataclass(frozen=True, slots=True)
class JoinReport:
    """Engine, search parameters, recall and time of a join."""

    engine: str
    params: Mapping[str, int]  # search parameters
    recall: float  # the target
    reached: float | None  # on held-out queries; None if all items were scanned
    reached_low: float | None  # lower end of its 95% interval
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()  # for example that many scores tie

    @property
    def effort(self) -> Mapping[str, int]:
        """Return `params`. Deprecated name."""
        warnings.warn("JoinReport.effort is now JoinReport.params", DeprecationWarning, stacklevel=2)
        return self.params


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

    metric: "inner_product", "cosine" or "l2" (the score is minus the squared distance). Equal scores go to the smaller
    row. recall: below 1, an approximate engine may scan fewer items; its search parameters are found on sampled queries
    against exact truth, and checked on others. exclude_self: query i never gets item i. k may exceed m: lists are then
    short. memory: bytes that the join may use besides the arrays; a larger index is built and joined in shards, in
    temporary files. constraints: eligible items per query, caps on groups of items, and a minimum score; lists may then
    be short, and recall counts the items that the constraints allow.
    `report.warnings` names scores that tie for many items.

    Arrays of float16, float32, int8 or uint8 are used as they are; float64 is rounded to float32. Raises InputError for
    arrays that cannot be joined, and SpecError for invalid settings, for example recall = 1 with a search parameter
    (`nprobe`, `ef_search`, `reach`) that leaves items out. With recall below 1 such a parameter is measured, and
    `report.warnings` says if it misses the target.
    """
    job = _make_job(
        queries,
        items,
        JoinRequest(_parse_metric(metric), k, recall, exclude_self, constraints=constraints),
        engine,
        dict(engine_settings or {}),
        _parse_resources(threads, memory),
        seed,
    )
    with tempfile.TemporaryDirectory(prefix="nearcast-join-") as folder:
        return _run_job(job, Path(folder), progress)


@dataclass(frozen=True, slots=True)
class _ArrayJob:
    """Validated arguments of a `knn_join`."""

    queries: AnyArray
    items: ArrayVectors
    request: JoinRequest  # with `exclude_self` resolved
    engine: Engine
    spec: IndexSpec
    resources: Resources


def _make_job(
    queries: AnyArray,
    items: AnyArray,
    request: JoinRequest,
    engine_name: str,
    engine_settings: dict[str, Any],
    resources: Resources,
    seed: int,
) -> _ArrayJob:
    """Validate all arguments, the arrays first. Raises InputError or SpecError."""
    query_vectors, item_vectors = _validate_vectors("queries", queries), ArrayVectors(_validate_vectors("items", items))
    _check_sizes(query_vectors, item_vectors, request, seed)
    engine = choose_engine(engine_name)
    settings = parse_model(engine.settings, engine_settings, f"engine_settings of {engine.name}")
    if request.exclude_self:
        request = replace(request, exclude=_own_rows(len(query_vectors), item_vectors.n))
    _check_constraints(request.constraints, len(query_vectors), item_vectors.n)
    require_constraints(engine, request.constraints)
    return _ArrayJob(query_vectors, item_vectors, request, engine, IndexSpec(request.metric, settings, seed), resources)


def _run_job(job: _ArrayJob, folder: Path, progress: Progress) -> JoinResult:
    started = time.perf_counter()
    request, seed = job.request, job.spec.seed
    workload = make_workload(ArrayVectors(job.queries), request, seed)
    index = build_array_index(job.engine, job.items, job.spec, workload, job.resources, folder, progress)
    built = time.perf_counter()
    points = index.operating_points(request.k)
    params, calibration = points[-1], None
    fixed = not index.is_exact(params)  # by the settings
    if fixed and request.recall == 1:
        raise SpecError(
            f"recall is 1, and engine_settings of {job.engine.name} force {_in_words(params)}, which leaves items out: "
            "leave that out, or set recall below 1"
        )
    if request.recall < 1 and (fixed or (len(points) > 1 and len(job.queries) >= MIN_QUERIES)):
        calibration = _calibrate(job, index)
        params = calibration.params
    calibrated = time.perf_counter()
    best = join_in_parts(index, job.queries, request, params, job.resources, progress)
    seconds = {
        "build": built - started,
        "calibrate": calibrated - built,
        "join": time.perf_counter() - calibrated,
    }
    report = JoinReport(job.engine.name, dict(params), request.recall, None, None, seconds)
    ties = tie_warning(tied_share(best.scores), best.scores, request.metric)
    if ties is not None:
        report = replace(report, warnings=(ties,))
    if calibration is not None and calibration.held_out.sample:
        reached = calibration.held_out
        report = replace(report, reached=reached.value, reached_low=reached.low)
        if fixed and reached.value < request.recall:
            missed = (
                f"{_in_words(params)} reaches recall {reached.value:.4f}, below the target of {request.recall:g}; "
                "leave it out of engine_settings, and it is found"
            )
            report = replace(report, warnings=(*report.warnings, missed))
    return JoinResult(best.positions, best.scores, best.lengths, report)


def _calibrate(job: _ArrayJob, index: Index) -> Calibration:
    """Find the search parameters on samples of the queries."""
    n = len(job.queries)
    size = min(CALIBRATION_QUERIES, max(1, n // 2))
    choosing, checking = sample_rows(n, (size, size), job.spec.seed)
    sample = _make_sample(job, index, np.concatenate([choosing, checking]))
    points = index.operating_points(job.request.k)
    return calibrate(index, points, sample, job.resources, n_choosing=size, n_queries=n, n_report=2 * size)


def _make_sample(job: _ArrayJob, index: Index, rows: IntArray) -> QuerySample:
    """Return some of the queries with their exact neighbors."""
    queries, request = job.queries[rows], job.request.of_queries(rows)
    last = index.operating_points(request.k)[-1]
    if job.engine.exact and index.is_exact(last):  # its own exact join is fast
        return QuerySample(queries, request, index.join(queries, request, last, job.resources))
    return QuerySample(queries, request, exact_join(queries, job.items, request, job.resources))


def _in_words(params: SearchParams) -> str:
    return ", ".join(f"{name} = {value}" for name, value in params.items())


def _parse_metric(name: str) -> Metric:
    try:
        return Metric(name)
    except ValueError:
        raise SpecError(f"metric must be one of {', '.join(Metric)}, got {name!r}") from None


def _parse_resources(threads: int | None, memory: int | str) -> Resources:
    if threads is not None and threads < 1:
        raise SpecError(f"threads must be at least 1, got {threads}; leave it out for all cores")
    try:
        return Resources(threads or machine.default_threads(), parse_bytes(memory))
    except ValueError as error:
        raise SpecError(f"memory is {memory!r}: {error}") from None


def _validate_vectors(table: str, vectors: AnyArray) -> AnyArray:
    try:
        refuse_masked(vectors, table)
        array = np.asarray(vectors)
    except ValueError as error:
        raise InputError(f"{table} must be an array ({error}); give rows of one length") from None
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{table} must have shape (count, dimension), got {array.shape}")
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if array.dtype.name not in VECTOR_DTYPES:
        raise InputError(f"{table} must be float16, float32, float64, int8 or uint8, got {array.dtype}")
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    for start in range(0, len(array), 65_536):
        block = array[start : start + 65_536]
        states = compute_lengths(block, np.zeros(len(block), np.uint8))[1]
        bad = np.flatnonzero(states == RowState.NOT_FINITE)
        if len(bad):
            raise InputError(
                f"row {start + int(bad[0])} of {table} holds NaN or infinity (or is longer than 1e18); "
                "remove such rows before the join"
            )
    return array


def _check_sizes(queries: AnyArray, items: ArrayVectors, request: JoinRequest, seed: int) -> None:
    k, recall = request.k, request.recall
    if items.n == 0:
        raise InputError("items are empty; give at least one")
    if queries.shape[1] != items.dim:
        raise InputError(f"queries have {queries.shape[1]} components and items {items.dim}; embed both with one model")
    if k < 1:
        raise SpecError(f"k must be at least 1, got {k}")
    if k > MAX_SLOTS:
        raise SpecError(f"k must be at most {MAX_SLOTS:,}, got {k:,}")
    if not 0 < recall <= 1:
        hint = f"; write {recall / 100:g} for {recall:g}%" if 1 < recall <= 100 else ""
        raise SpecError(f"recall must be in (0, 1], got {recall:g}{hint}")
    if seed < 0:
        raise SpecError(f"seed must be at least 0, got {seed}")


def _check_constraints(constraints: Constraints, n_queries: int, n_items: int) -> None:
    rule = constraints.eligibility
    if rule is not None and (rule.n_queries, rule.n_items) != (n_queries, n_items):
        raise InputError(
            f"eligibility must be for {n_queries:,} queries and {n_items:,} items, got "
            f"{rule.n_queries:,} and {rule.n_items:,}"
        )
    for number, cap in enumerate(constraints.caps):
        if cap.groups.shape != (n_items,):
            raise InputError(
                f"caps[{number}] has groups of shape {cap.groups.shape}; give one group per item, ({n_items},)"
            )
        if cap.most < 1:
            raise SpecError(f"caps[{number}] must allow at least 1 item per group, got {cap.most}")
    for inner, outer in pairwise(constraints.caps):
        if find_crossing(inner, outer) is not None:
            raise SpecError(
                "groups of caps must lie within each other, smallest first; items "
                "{} and {} share a group of one cap, but not of the next".format(*find_crossing(inner, outer) or ())
            )


def _own_rows(n_queries: int, n_items: int) -> IntArray:
    own = np.arange(n_queries)
    return np.where(own < n_items, own, -1)
