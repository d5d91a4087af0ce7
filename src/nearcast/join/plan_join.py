"""The plan of a join: build the index, draw the query samples, choose the search parameters.

Everything that the tasks share is decided here. Knows nothing of tables or snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.engines.base import Index, IndexSpec, JoinRequest, SearchParams
from nearcast.engines.index_folder import ensure_index
from nearcast.engines.sharded_index import ShardedIndex
from nearcast.errors import BusyError
from nearcast.files import hold_lock
from nearcast.join.calibrate import MIN_QUERIES, Calibration, QuerySample, calibrate, make_workload
from nearcast.join.compile_constraints import open_constraints
from nearcast.join.context import RunContext
from nearcast.join.index_stage import open_sharded_index, shard_index_names
from nearcast.join.open_index import index_inputs, index_name, open_run_index
from nearcast.join.prepare_inputs import PreparedInputs
from nearcast.measure.sampled_recall import find_truth, resolve_request, sample_queries
from nearcast.measure.truth import TruthCache
from nearcast.sources.ingest import Inputs
from nearcast.spec import GeneratorSpec
from nearcast.types import IntArray, Neighbors

__all__ = [
    "JoinPlan",
    "SampleRows",
    "draw_samples",
    "find_sample_truth",
    "hold_truth_lock",
    "index_names",
    "join_index",
    "make_request",
    "make_run_request",
    "make_sample",
    "plan_join",
    "sample_sizes",
]


@dataclass(frozen=True, slots=True)
class SampleRows:
    """Disjoint, sorted samples of query positions."""

    report: IntArray
    choosing: IntArray
    checking: IntArray


@dataclass(frozen=True, slots=True)
class JoinPlan:
    """What the tasks of a join share, and the decisions that led to it."""

    request: JoinRequest
    index: str  # name of the artifact; no such artifact for an engine that persists no index. "" for several shards
    params: SearchParams
    calibration: dict[str, Any] | None  # facts for the manifest; None if parameters were not calibrated
    is_exact: bool  # the join scans every item
    shard_params: tuple[SearchParams, ...] = ()  # of each shard; empty for one


def make_request(spec: GeneratorSpec, inputs: Inputs, constraints: Path | None) -> JoinRequest:
    """Return the join request of a run, with its compiled constraints opened from their folder."""
    return JoinRequest(
        inputs.metric, spec.join_k, spec.recall, spec.exclude_self, constraints=open_constraints(constraints)
    )


def make_run_request(run: RunContext, prepared: PreparedInputs) -> JoinRequest:
    """Return the join request of a run. On several item shards, its constraints are compiled by shard."""
    request = make_request(run.spec, prepared.inputs, prepared.constraints)
    if prepared.shards is None:
        return request
    return replace(request, constraints=prepared.shards.make_constraints(run.spec, prepared.inputs))


def plan_join(run: RunContext, prepared: PreparedInputs, shards: Sequence[Mapping[str, Any]] = ()) -> JoinPlan:
    """Build the index if it is missing, and choose the search parameters.

    shards: on several item shards, the facts of their index tasks (see `describe_points`).
    """
    inputs = prepared.inputs
    request = make_run_request(run, prepared)
    if prepared.shards is not None:
        return _plan_sharded_join(run, request, prepared, shards)
    name = join_index(run, request, prepared)
    index, _ = open_run_index(run, inputs.items, name, request.metric)
    params, calibration = _choose_params(run, request, index, inputs)
    return JoinPlan(request, name, params, calibration, index.is_exact(params))


def _plan_sharded_join(
    run: RunContext, request: JoinRequest, prepared: PreparedInputs, shards: Sequence[Mapping[str, Any]]
) -> JoinPlan:
    """Choose the search parameters of the merged lists of all shards.

    Opens the shards for a calibration only: the host would have to hold all of their files.
    """
    inputs = prepared.inputs
    if not _needs_calibration(run, inputs.queries.vectors.n) or all(shard["points"] == 1 for shard in shards):
        lasts = [shard["last"] for shard in shards]
        whole = max(shards, key=lambda shard: (shard["points"], not shard["is_exact"]))
        is_exact = all(shard["is_exact"] for shard in shards)
        return JoinPlan(request, "", whole["last"], None, is_exact, tuple(lasts))
    index = open_sharded_index(run, request, prepared)
    params, calibration = _choose_params(run, request, index, inputs)
    of_shards = tuple(index.params_of_shard(shard, request.k, params) for shard in range(len(shards)))
    return JoinPlan(request, "", params, calibration, index.is_exact(params), of_shards)


def index_names(run: RunContext, prepared: PreparedInputs, plan: JoinPlan) -> list[str]:
    """Return the artifact names of the indexes that a join reads, in the order of their shards."""
    return [plan.index] if prepared.shards is None else shard_index_names(run, plan.request, prepared)


def join_index(run: RunContext, request: JoinRequest, prepared: PreparedInputs) -> str:
    """Return the artifact name of the index; build it if it is missing. An engine may persist no index."""
    inputs, constraints = prepared.inputs, prepared.constraints
    made_of = index_inputs(run, inputs)
    if run.engine.fits_workload:
        made_of += [inputs.queries.fingerprint, request.k, request.recall]
        made_of += [] if constraints is None else [constraints.name]
    name = index_name(made_of)
    if not run.engine.persists_index:
        return name
    spec, items = IndexSpec(inputs.metric, run.settings, run.spec.seed), inputs.items.vectors

    def build() -> Index:
        workload = make_workload(inputs.queries.vectors, request, run.spec.seed)
        return run.engine.build(items, spec, run.resources, workload=workload, progress=run.listener.progress)

    if run.artifacts.facts(name) is not None:
        run.listener.note(f"the {run.engine.name} index of an earlier run is used again")
    with run.meter.stage("build"):
        ensure_index(run.artifacts, name, {"made_of": made_of}, run.resources, build)
    return name


def _needs_calibration(run: RunContext, n_queries: int) -> bool:
    return run.engine.persists_index and run.spec.recall < 1 and n_queries >= MIN_QUERIES


def sample_sizes(run: RunContext, n_queries: int) -> tuple[int, int, int]:
    """Return how many queries to sample for the report, to choose search parameters, and to check them."""
    if not _needs_calibration(run, n_queries):
        return min(n_queries, run.spec.measure.sample), 0, 0
    calibration = min(run.spec.measure.calibration, n_queries // 4)
    return min(n_queries // 2, run.spec.measure.sample), calibration, calibration


def draw_samples(run: RunContext, inputs: Inputs) -> SampleRows:
    """Draw the samples for the report and for the calibration."""
    return SampleRows(*sample_queries(inputs.queries, sample_sizes(run, inputs.queries.vectors.n), run.spec.seed))


def _choose_params(
    run: RunContext, request: JoinRequest, index: Index, inputs: Inputs
) -> tuple[SearchParams, dict[str, Any] | None]:
    """Return the cheapest search parameters that reach the recall target, and facts about the calibration."""
    if not run.engine.persists_index:
        return {}, None
    points, n = index.operating_points(request.k), inputs.queries.vectors.n
    if len(points) == 1 or not _needs_calibration(run, n):
        return dict(points[-1]), None
    with run.meter.stage("calibrate"):
        samples = draw_samples(run, inputs)
        rows, n_choosing = np.concatenate([samples.choosing, samples.checking]), len(samples.choosing)
        sample = make_sample(run, request, index, inputs, rows, run.workspace.truths)
        if isinstance(index, ShardedIndex):
            truth = Neighbors(sample.truth.positions[:n_choosing], sample.truth.scores[:n_choosing])
            points = index.shorten_lists(points, request, truth)
        calibration = calibrate(
            index,
            points,
            sample,
            run.resources,
            n_choosing=n_choosing,
            n_queries=n,
            n_report=len(samples.report),
        )
    params, held_out = dict(calibration.params), calibration.held_out
    words = ", ".join(name if name == "exact" else f"{name} {value:,}" for name, value in params.items())
    run.listener.note(
        f"{words} reaches recall {held_out.value:.4f} on {held_out.sample:,} held-out queries; "
        f"the join will take {_format_seconds(calibration.seconds_per_query * n)}"
    )
    return params, _calibration_facts(calibration)


def _format_seconds(seconds: float) -> str:
    return f"about {seconds:,.0f} s" if seconds >= 1 else "less than a second"


def _calibration_facts(calibration: Calibration) -> dict[str, Any]:
    """Return the facts of a calibration that are equal in every run: no times."""
    return {
        "found": asdict(calibration.chosen_on),
        "held_out": asdict(calibration.held_out),
        "efforts_tried": calibration.points_tried,
    }


def make_sample(
    run: RunContext, request: JoinRequest, index: Index, inputs: Inputs, rows: IntArray, truths: Path
) -> QuerySample:
    """Return the queries at these positions with their exact neighbors, for a calibration.

    truths: folder of the truth cache; the caller holds its lock.
    """
    queries, sampled = inputs.queries.vectors.take(rows), resolve_request(request, inputs, rows)
    if run.engine.exact:  # its own exact join is fast; the report is measured by the reference join
        last = index.operating_points(request.k)[-1]
        return QuerySample(queries, sampled, index.join(queries, sampled, last, run.resources))
    return QuerySample(queries, sampled, find_sample_truth(run, request, inputs, rows, truths))


def hold_truth_lock(truths: Path) -> AbstractContextManager[None]:
    """Hold the lock of the cache of exact neighbors in a folder. Raises BusyError while another process holds it."""
    return hold_lock(truths.parent.with_name(".truth.lock"), "the cache of exact neighbors")


def find_sample_truth(run: RunContext, request: JoinRequest, inputs: Inputs, rows: IntArray, truths: Path) -> Neighbors:
    """Find the exact neighbors of the queries at these positions, from the cache in `truths` where it holds them.

    While another process uses the cache, finds them without it.
    """

    def report(_stage: str, done: int, total: int) -> None:
        run.listener.progress("ground truth", done, total)

    try:
        with hold_truth_lock(truths):
            return TruthCache(truths, run.listener.note).find(inputs, rows, request, run.resources, report)
    except BusyError:
        return find_truth(inputs, rows, request, run.resources, report)
