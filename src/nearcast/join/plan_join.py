"""The plan of a join: build the index, draw the query samples, choose the search parameters.

Everything that the tasks share is decided here. Knows nothing of tables or snapshots.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nearcast.engines.base import Index, IndexSpec, JoinRequest
from nearcast.engines.index_folder import ensure_index
from nearcast.files import fingerprint
from nearcast.join.calibrate import MIN_QUERIES, Calibration, QuerySample, calibrate, make_workload
from nearcast.join.compile_constraints import open_constraints
from nearcast.join.context import RunContext
from nearcast.join.prepare_inputs import PreparedInputs
from nearcast.join.rank import make_rank_settings
from nearcast.join.task import JoinSettings, as_pairs, open_shared_index
from nearcast.knn.constraints import FREE
from nearcast.measure.recall import sample_rows
from nearcast.measure.sampled_recall import resolve_request
from nearcast.measure.truth import TruthCache
from nearcast.sources.ingest import Inputs
from nearcast.spec import GeneratorSpec
from nearcast.types import IntArray, Neighbors
from nearcast.version import __version__

__all__ = [
    "JoinPlan",
    "SampleRows",
    "draw_samples",
    "find_sample_truth",
    "index_inputs",
    "index_name",
    "make_request",
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
    """The settings of a join's tasks, and the decisions that led to them."""

    request: JoinRequest
    settings: JoinSettings
    samples: SampleRows
    calibration: dict[str, Any] | None  # facts for the manifest; None if parameters were not calibrated
    is_exact: bool  # the join scans every item


def make_request(spec: GeneratorSpec, inputs: Inputs, constraints: Path | None) -> JoinRequest:
    """Return the join request of a run, with its compiled constraints opened from their folder."""
    return JoinRequest(
        inputs.metric, spec.join_k, spec.recall, spec.exclude_self, constraints=open_constraints(constraints)
    )


def plan_join(run: RunContext, prepared: PreparedInputs) -> JoinPlan:
    """Build the index if it is missing, draw the samples, and choose the search parameters."""
    inputs = prepared.inputs
    request = make_request(run.spec, inputs, prepared.constraints)
    settings = _make_settings(run, request, prepared, _build_index(run, request, prepared))
    samples = draw_samples(run, inputs)
    settings, calibration = _choose_params(run, request, settings, inputs, samples)
    index, _ = open_shared_index(settings)
    return JoinPlan(request, settings, samples, calibration, index.is_exact(dict(settings.params)))


def _build_index(run: RunContext, request: JoinRequest, prepared: PreparedInputs) -> Path:
    """Return the index folder; build the index if it is missing. An engine without an index writes no folder."""
    inputs, constraints = prepared.inputs, prepared.constraints
    made_of = index_inputs(run, inputs)
    workload = make_workload(inputs.queries.vectors, request, run.spec.seed)
    if run.engine.fits_workload:
        made_of += [inputs.queries.fingerprint, request.k, request.recall]
        made_of += [] if constraints is None else [constraints.name]
    folder = run.workspace.artifacts / index_name(made_of)
    if not run.engine.persists_index:
        return folder
    spec, items = IndexSpec(inputs.metric, run.settings, run.spec.seed), inputs.items.vectors

    def build() -> Index:
        return run.engine.build(items, spec, run.resources, workload=workload, progress=run.listener.progress)

    with run.meter.stage("build"):
        if ensure_index(folder, {"made_of": made_of}, run.resources, build):
            run.listener.note(f"the {run.engine.name} index of an earlier run is used again")
    return folder


def index_inputs(run: RunContext, inputs: Inputs) -> list[Any]:
    """Return the inputs of an index that does not depend on its workload."""
    return [inputs.items.fingerprint, run.engine.name, run.settings.model_dump(), inputs.metric, run.spec.seed]


def index_name(made_of: list[Any]) -> str:
    """Return the folder name of an index: equal for equal inputs."""
    return f"index-{fingerprint([*made_of, __version__])[:16]}"


def _make_settings(run: RunContext, request: JoinRequest, prepared: PreparedInputs, index_folder: Path) -> JoinSettings:
    """Return the settings that all tasks share, without search parameters."""
    return JoinSettings(
        items=prepared.inputs.items.folder,
        queries=prepared.inputs.queries.folder,
        index=index_folder,
        engine=run.engine.name,
        engine_settings=as_pairs(run.settings.model_dump()),
        request=replace(request, constraints=FREE),
        constraints=prepared.constraints,
        params=(),
        rank=make_rank_settings(run.spec, run.workspace.base),
        resources=run.resources,
    )


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
    n = inputs.queries.vectors.n
    return SampleRows(*sample_rows(n, sample_sizes(run, n), run.spec.seed))


def _choose_params(
    run: RunContext, request: JoinRequest, settings: JoinSettings, inputs: Inputs, samples: SampleRows
) -> tuple[JoinSettings, dict[str, Any] | None]:
    """Return the settings with the cheapest search parameters that reach the recall target, and the calibration."""
    if not run.engine.persists_index:
        return settings, None
    index, _ = open_shared_index(settings)
    points, n = index.operating_points(request.k), inputs.queries.vectors.n
    if len(points) == 1 or not _needs_calibration(run, n):
        return replace(settings, params=as_pairs(points[-1])), None
    with run.meter.stage("calibrate"):
        choosing = make_sample(run, request, index, inputs, samples.choosing, run.workspace.truths)
        checking = make_sample(run, request, index, inputs, samples.checking, run.workspace.truths)
        calibration = calibrate(
            index, points, (choosing, checking), run.resources, n_queries=n, n_report=len(samples.report)
        )
    params, held_out = calibration.params, calibration.held_out
    words = ", ".join(name if name == "exact" else f"{name} {value:,}" for name, value in params.items())
    run.listener.note(
        f"{words} reaches recall {held_out.value:.4f} on {held_out.sample:,} held-out queries; "
        f"the join will take {_format_seconds(calibration.seconds_per_query * n)}"
    )
    return replace(settings, params=as_pairs(params)), _calibration_facts(calibration)


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


def find_sample_truth(run: RunContext, request: JoinRequest, inputs: Inputs, rows: IntArray, truths: Path) -> Neighbors:
    """Find the exact neighbors of the queries at these positions, from the cache in `truths` where it holds them."""

    def report(_stage: str, done: int, total: int) -> None:
        run.listener.progress("ground truth", done, total)

    return TruthCache(truths, run.listener.note).find(inputs, rows, request, run.resources, report)
