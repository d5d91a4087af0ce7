"""The stages between ingested inputs and a measured table: index, calibration, join, table, measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nearcast.engines.base import Index, IndexSpec, JoinRequest
from nearcast.engines.index_folder import ensure_index
from nearcast.files import fingerprint, is_done, link_file
from nearcast.join.assemble import assemble
from nearcast.join.calibrate import MIN_QUERIES, Calibration, QuerySample, calibrate, make_workload
from nearcast.join.compare_vectors import measure_drift
from nearcast.join.compile_constraints import open_constraints
from nearcast.join.context import RunContext
from nearcast.join.inputs import Checked
from nearcast.join.rank import rank_settings, retrieved_lists
from nearcast.join.run_plan import cut
from nearcast.join.select_candidates import Chosen
from nearcast.join.short_lists import find_reasons
from nearcast.join.task import JoinSettings, JoinTask, as_pairs, do_task, open_index, open_shared_index
from nearcast.knn.constraints import FREE
from nearcast.measure.list_quality import guess_metric, measure_quality
from nearcast.measure.recall import sample_rows
from nearcast.measure.sampled_recall import measure_overlap, resolve_request
from nearcast.measure.tally import Tally
from nearcast.measure.truth import TruthCache
from nearcast.runners.base import Runner
from nearcast.sources.ingest import Inputs
from nearcast.sources.validate_rows import Report
from nearcast.table.snapshot import Snapshot
from nearcast.types import IntArray, Neighbors
from nearcast.version import __version__

__all__ = [
    "SampleRows",
    "build_index",
    "choose_params",
    "draw_samples",
    "index_inputs",
    "index_name",
    "is_exact_join",
    "make_request",
    "make_sample",
    "make_settings",
    "measure_table",
    "run_tasks",
    "sample_sizes",
    "write_table",
]


def make_request(run: RunContext, constraints: Path | None) -> JoinRequest:
    """Return the join request of a run, with its compiled constraints opened from their folder."""
    spec = run.spec
    return JoinRequest(
        spec.metric, spec.join_k, spec.recall, spec.exclude_self, constraints=open_constraints(constraints)
    )


def build_index(
    run: RunContext, request: JoinRequest, checked: Checked, inputs: Inputs, constraints: Path | None = None
) -> Path:
    """Return the index folder; build the index if it is missing. An engine without an index writes no folder."""
    made_of = index_inputs(run, checked.item_folder)
    workload = make_workload(inputs.queries.vectors, request, run.spec.seed)
    if run.engine.fits_workload:
        made_of += [checked.query_folder.name, request.k, request.recall]
        made_of += [] if constraints is None else [constraints.name]
    folder = run.workspace.artifacts / index_name(made_of)
    if not run.engine.persists_index:
        return folder
    spec, items = IndexSpec(run.spec.metric, run.settings, run.spec.seed), inputs.items.vectors

    def build() -> Index:
        return run.engine.build(items, spec, run.resources, workload=workload, progress=run.listener.progress)

    with run.meter.stage("build"):
        if ensure_index(folder, {"made_of": made_of}, run.resources, build):
            run.listener.note(f"the {run.engine.name} index of an earlier run is used again")
    return folder


def index_inputs(run: RunContext, item_folder: Path) -> list[Any]:
    """Return the inputs of an index that does not depend on its workload."""
    return [item_folder.name, run.engine.name, run.settings.model_dump(), run.spec.metric, run.spec.seed]


def index_name(made_of: list[Any]) -> str:
    """Return the folder name of an index: equal for equal inputs."""
    return f"index-{fingerprint([*made_of, __version__])[:16]}"


def make_settings(
    run: RunContext, request: JoinRequest, inputs: Inputs, index_folder: Path, constraints: Path | None = None
) -> JoinSettings:
    """Return the settings that all tasks share, without search parameters."""
    return JoinSettings(
        items=inputs.items.folder,
        queries=inputs.queries.folder,
        index=index_folder,
        engine=run.engine.name,
        engine_settings=as_pairs(run.settings.model_dump()),
        request=replace(request, constraints=FREE),
        constraints=constraints,
        params=(),
        rank=rank_settings(run.spec, run.workspace.base),
        resources=run.resources,
    )


@dataclass(frozen=True, slots=True)
class SampleRows:
    """Disjoint, sorted samples of query positions."""

    report: IntArray
    choosing: IntArray
    checking: IntArray


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


def choose_params(
    run: RunContext, request: JoinRequest, settings: JoinSettings, inputs: Inputs, sampled: SampleRows
) -> tuple[JoinSettings, dict[str, Any] | None]:
    """Return the settings with the cheapest search parameters that reach the recall target, and the calibration."""
    if not run.engine.persists_index:
        return settings, None
    index, _ = open_shared_index(settings)
    points, n = index.operating_points(request.k), inputs.queries.vectors.n
    if len(points) == 1 or not _needs_calibration(run, n):
        return replace(settings, params=as_pairs(points[-1])), None
    with run.meter.stage("calibrate"):
        choosing = make_sample(run, request, index, inputs, sampled.choosing, run.workspace.truths)
        checking = make_sample(run, request, index, inputs, sampled.checking, run.workspace.truths)
        calibration = calibrate(
            index, points, (choosing, checking), run.resources, n_queries=n, n_report=len(sampled.report)
        )
    params, held_out = calibration.params, calibration.held_out
    words = ", ".join(name if name == "exact" else f"{name} {value:,}" for name, value in params.items())
    run.listener.note(
        f"{words} reaches recall {held_out.value:.4f} on {held_out.sample:,} held-out queries; "
        f"the join will take {_about(calibration.seconds_per_query * n)}"
    )
    return replace(settings, params=as_pairs(params)), _calibration_facts(calibration)


def is_exact_join(settings: JoinSettings) -> bool:
    """Return whether a join with these settings scans every item."""
    index, _ = open_shared_index(settings)
    return index.is_exact(dict(settings.params))


def _about(seconds: float) -> str:
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
    return QuerySample(queries, sampled, _find_truth(run, request, inputs, rows, truths))


def _find_truth(run: RunContext, request: JoinRequest, inputs: Inputs, rows: IntArray, truths: Path) -> Neighbors:
    def report(_stage: str, done: int, total: int) -> None:
        run.listener.progress("ground truth", done, total)

    return TruthCache(truths, run.listener.note).find(inputs, rows, request, run.resources, report)


def run_tasks(run: RunContext, settings: JoinSettings, inputs: Inputs, runner: Runner) -> tuple[list[JoinTask], int]:
    """Run the tasks that are not done yet. Return all tasks, and how many were done before."""
    n = inputs.queries.vectors.n
    tasks = [
        JoinTask(number, start, stop, run.workspace.work / "tasks" / f"{number:06d}", settings)
        for number, (start, stop) in enumerate(cut(n, inputs.queries.vectors.dim, run.spec.join_k))
    ]
    left = [task for task in tasks if not is_done(task.folder)]
    if len(left) < len(tasks):
        run.listener.note(f"{len(tasks) - len(left)} of {len(tasks)} tasks were done before: continuing")
    with run.meter.stage("join"):
        runner.run(
            lambda task: do_task(task, run.listener.progress),
            left,
            lambda task: run.listener.progress("join", task.stop, n),
        )
    open_index.cache_clear()  # the index is not needed any more, and may be large
    return tasks, len(tasks) - len(left)


def write_table(
    run: RunContext, request: JoinRequest, chosen: Chosen, inputs: Inputs, report: Report, folder: Path, *, exact: bool
) -> tuple[dict[str, float], int]:
    """Write the table and the attributes of both tables. Return the measures of the whole table, and its rows.

    exact: whether the join scanned every item.
    """
    tally = Tally(inputs.items.vectors.n, run.spec.k, report.queries.rows, run.spec.measure.fill_at)
    with run.meter.stage("table"):
        final = replace(request, k=run.spec.k)
        reasons = find_reasons(final, run.resources, chosen.found, inputs, exact=exact)
        short = chosen.reasons(reasons, run.spec.k)
        n_rows = assemble(
            chosen.stored,
            inputs.items,
            inputs.queries,
            folder / "candidates",
            run.spec.k,
            short,
            tally,
            run.listener.progress,
            chosen.lengths,
        )
        _link(inputs.items.attributes, folder / "items")
        if inputs.queries is not inputs.items:
            _link(inputs.queries.attributes, folder / "queries")
    return tally.measures() | chosen.measures_of(short, n_rows, run.spec.k), n_rows


def measure_table(
    run: RunContext,
    request: JoinRequest,
    snapshot: Snapshot,
    inputs: Inputs,
    rows: IntArray,
    last: Snapshot | None,
    chosen: Chosen,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure recall on the report's sample, and the changes since the last snapshot.

    Writes the sketches of both tables into the snapshot. Returns the measures, and the facts that are not single
    figures: slices, queries with the lowest recall, a more likely metric, and a warning about ties.
    """
    measures: dict[str, float] = {}
    with run.meter.stage("measure"):
        truth = chosen.truth(_find_truth(run, request, inputs, rows, run.workspace.truths), rows, run.spec.k)
        found = measure_quality(run.spec, snapshot, inputs, rows, truth, last, retrieved_lists(run, inputs, rows))
        measures.update(found.measures)
        measures.update(measure_drift(snapshot.folder, inputs, last, run.spec.seed, run.resources))
        likely = guess_metric(request, run.resources, inputs, rows, found.lists, measures["recall"])
    if last is not None:
        with run.meter.stage("overlap"):
            measures.update(measure_overlap(last, snapshot, inputs.items, run.listener.progress))
    if found.ties is not None:
        run.listener.note(found.ties)
    for part in found.slices:
        if part.below_promise:
            run.listener.note(
                f"recall of {part.by} {part.value} is {part.recall:.4f} ({part.low:.4f} to {part.high:.4f}, "
                f"{part.queries:,} queries): below the promise of {run.spec.recall:g}"
            )
    facts = {
        "slices": [part.as_dict() for part in found.slices],
        "worst_queries": found.worst,
        "likely_metric": likely,
        "ties": found.ties,
    }
    return measures, facts


def _link(source: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(source.iterdir()):
        link_file(path, target / path.name)
