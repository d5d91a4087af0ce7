"""The stages between ingested inputs and a measured table: index, calibration, join, table, measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nearcast.engines.base import Effort, Index
from nearcast.engines.dense import EXACT
from nearcast.engines.exact import ExactEngine
from nearcast.engines.index_folder import ensure_index
from nearcast.files import fingerprint, is_done, link_file
from nearcast.join.assemble import assemble
from nearcast.join.calibrate import FEW_QUERIES, Calibration, Sample, find_effort, workload_of
from nearcast.join.compare_vectors import measure_drift
from nearcast.join.compile_constraints import open_constraints
from nearcast.join.context import RunContext
from nearcast.join.inputs import Checked
from nearcast.join.rank import rank_settings, retrieved_lists
from nearcast.join.run_plan import cut
from nearcast.join.select_candidates import Chosen
from nearcast.join.short_lists import Shortfall, short_reasons
from nearcast.join.task import JoinSettings, JoinTask, as_pairs, do_task, open_index
from nearcast.measure.list_quality import Asked, likely_metric, measure_quality
from nearcast.measure.recall import sample_rows
from nearcast.measure.sampled_recall import exclusions, measure_overlap
from nearcast.measure.tally import Tally
from nearcast.measure.truth import kept_truth
from nearcast.runners.local import Runner
from nearcast.sources.ingest import Inputs
from nearcast.sources.validate_rows import Report
from nearcast.table.snapshot import Snapshot
from nearcast.types import IntArray, Neighbors, no_progress
from nearcast.version import __version__

__all__ = [
    "Samples",
    "calibrated",
    "calibration_sample",
    "draw_samples",
    "have_index",
    "index_name",
    "join_settings",
    "joined",
    "made_from",
    "measure_table",
    "sample_sizes",
    "took_full_effort",
    "write_table",
]


def have_index(run: RunContext, checked: Checked, inputs: Inputs, constraints: Path | None = None) -> Path:
    """Have the index as an artifact; `exact` has none, and its folder is never made."""
    made_of = made_from(run, checked.item_folder)
    held = open_constraints(constraints)
    workload = workload_of(inputs.queries.vectors, run.spec.join_k, run.spec.recall, run.spec.seed, held)
    if run.engine.fits_workload:
        made_of += [checked.query_folder.name, workload.k, workload.recall]
        made_of += [] if constraints is None else [constraints.name]
    folder = run.workspace.artifacts / index_name(made_of)
    if run.engine.name == ExactEngine.name:
        return folder
    with run.meter.stage("build"):
        there = ensure_index(
            run.engine,
            inputs.items.vectors,
            run.spec.metric,
            run.settings,
            folder,
            {"made_of": made_of},
            workload=workload,
            seed=run.spec.seed,
            resources=run.resources,
            progress=run.listener.progress,
        )
    if there:
        run.listener.note(f"the {run.engine.name} index of an earlier run is used again")
    return folder


def made_from(run: RunContext, item_folder: Path) -> list[Any]:
    """What decides an index that does not depend on its workload."""
    return [item_folder.name, run.engine.name, run.settings.model_dump(), run.spec.metric, run.spec.seed]


def index_name(made_of: list[Any]) -> str:
    """The name of the folder of an index: the same for what is made of the same."""
    return f"index-{fingerprint([*made_of, __version__])[:16]}"


def join_settings(run: RunContext, inputs: Inputs, index_folder: Path, constraints: Path | None = None) -> JoinSettings:
    """What all tasks will share; the effort is still open."""
    return JoinSettings(
        items=inputs.items.folder,
        queries=inputs.queries.folder,
        index=index_folder,
        engine=run.engine.name,
        engine_settings=as_pairs(run.settings.model_dump()),
        metric=run.spec.metric,
        k=run.spec.join_k,
        effort=(),
        exclude_self=run.spec.exclude_self,
        constraints=constraints,
        rank=rank_settings(run.spec, run.workspace.base),
        resources=run.resources,
    )


@dataclass(frozen=True, slots=True)
class Samples:
    """Disjoint, sorted samples of query positions."""

    report: IntArray
    choosing: IntArray
    checking: IntArray


def _calibrates(run: RunContext, n_queries: int) -> bool:
    chooses = run.engine.name != ExactEngine.name and run.spec.recall < 1
    return chooses and n_queries >= FEW_QUERIES


def sample_sizes(run: RunContext, n_queries: int) -> tuple[int, int, int]:
    """Queries for the report, to find the effort, and to check it; few queries are shared out among them."""
    if not _calibrates(run, n_queries):
        return min(n_queries, run.spec.measure.sample), 0, 0
    calibration = min(run.spec.measure.calibration, n_queries // 4)
    return min(n_queries // 2, run.spec.measure.sample), calibration, calibration


def draw_samples(run: RunContext, inputs: Inputs) -> Samples:
    """Draw the samples for the report and for the calibration."""
    n = inputs.queries.vectors.n
    return Samples(*sample_rows(n, sample_sizes(run, n), run.spec.seed))


def calibrated(
    run: RunContext, settings: JoinSettings, inputs: Inputs, sampled: Samples
) -> tuple[JoinSettings, dict[str, Any] | None]:
    """The settings with the least effort that keeps the promise, and what was found on the way."""
    if run.engine.name == ExactEngine.name:
        return settings, None
    index, _ = open_index(settings.items, settings.index, settings.engine, settings.engine_settings, settings.metric)
    efforts = index.efforts(run.spec.join_k)
    if len(efforts) == 1 or not _calibrates(run, inputs.queries.vectors.n):
        return replace(settings, effort=as_pairs(efforts[-1])), None
    with run.meter.stage("calibrate"):
        found = find_effort(
            efforts,
            run.spec.recall,
            calibration_sample(run, index, inputs, sampled.choosing, run.workspace.truths, settings.constraints),
            calibration_sample(run, index, inputs, sampled.checking, run.workspace.truths, settings.constraints),
            n_queries=inputs.queries.vectors.n,
            n_report=len(sampled.report),
        )
    seconds = found.seconds_per_query * inputs.queries.vectors.n
    words = ", ".join(name if name == "exact" else f"{name} {value:,}" for name, value in found.effort.items())
    run.listener.note(
        f"{words} reaches recall {found.held_out.value:.4f} on {found.held_out.sample:,} queries that it was not "
        f"chosen on; the join will take {_about(seconds)}"
    )
    return replace(settings, effort=as_pairs(found.effort)), _calibration_facts(found)


def took_full_effort(settings: JoinSettings) -> bool:
    """Whether the join with these settings has left nothing out."""
    index, _ = open_index(settings.items, settings.index, settings.engine, settings.engine_settings, settings.metric)
    return index.is_full(dict(settings.effort))


def _about(seconds: float) -> str:
    return f"about {seconds:,.0f} s" if seconds >= 1 else "less than a second"


def _calibration_facts(found: Calibration) -> dict[str, Any]:
    """What of a calibration is the same in every run: no times."""
    return {"found": asdict(found.found), "held_out": asdict(found.held_out), "efforts_tried": found.tried}


def calibration_sample(
    run: RunContext, index: Index, inputs: Inputs, rows: IntArray, truths: Path, constraints: Path | None = None
) -> Sample:
    """The queries at these positions with their exact neighbors, to hold efforts against.

    truths: where truth is kept; the caller holds its lock.
    """
    barred = exclusions(inputs.items, inputs.queries, rows, exclude_self=run.spec.exclude_self)
    vectors = inputs.queries.vectors.take(rows)
    held = open_constraints(constraints).of_queries(rows)

    def join(effort: Effort) -> Neighbors:
        return index.join(
            vectors,
            run.spec.join_k,
            effort=effort,
            exclude=barred,
            constraints=held,
            resources=run.resources,
            progress=no_progress,
        )

    # The truth of an exact engine is its own full effort, which is fast; the report is measured by the referee.
    full = index.efforts(run.spec.join_k)[-1]

    def pays(effort: Effort) -> bool:
        return index.pays(vectors, run.spec.join_k, effort, run.resources, held)

    return Sample(join, join(full) if run.engine.exact else _truth(run, inputs, rows, truths, constraints), pays)


def _truth(run: RunContext, inputs: Inputs, rows: IntArray, truths: Path, constraints: Path | None) -> Neighbors:
    return kept_truth(
        truths,
        inputs.items,
        inputs.queries,
        rows,
        run.spec.join_k,
        run.spec.metric,
        exclude_self=run.spec.exclude_self,
        resources=run.resources,
        progress=lambda _, done, total: run.listener.progress("ground truth", done, total),
        note=run.listener.note,
        constraints=open_constraints(constraints),
    )


def joined(run: RunContext, settings: JoinSettings, inputs: Inputs, runner: Runner) -> tuple[list[JoinTask], int]:
    """Do the tasks that are not done yet. Returns all of them, and how many were done before."""
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
    run: RunContext, chosen: Chosen, settings: JoinSettings, inputs: Inputs, report: Report, folder: Path
) -> tuple[dict[str, float], int]:
    """Write the table and the attributes of both sides; the measures of the whole table come back."""
    tally = Tally(inputs.items.vectors.n, run.spec.k, report.queries.rows, run.spec.measure.fill_at)
    with run.meter.stage("table"):
        short = chosen.reasons(short_reasons(_shortfall(run, settings), chosen.found, inputs), run.spec.k)
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


def _shortfall(run: RunContext, settings: JoinSettings) -> Shortfall:
    complete = run.engine.exact and dict(settings.effort) in ({}, EXACT)
    held = open_constraints(settings.constraints)
    return Shortfall(run.spec.k, run.spec.metric, run.spec.exclude_self, held, complete, run.resources)


def measure_table(
    run: RunContext,
    snapshot: Snapshot,
    inputs: Inputs,
    rows: IntArray,
    last: Snapshot | None,
    measures: dict[str, float],
    constraints: Path | None,
    chosen: Chosen,
) -> dict[str, Any]:
    """Measure recall on the report's sample, and what has changed since the last snapshot, into `measures`.

    Writes the sketches of both sides into the snapshot. Returns what is no single figure: the slices, the
    queries with the lowest recall, the metric that the lists rather look like, and a warning where scores tie.
    """
    with run.meter.stage("measure"):
        truth = chosen.truth(_truth(run, inputs, rows, run.workspace.truths, constraints), rows, run.spec.k)
        found = measure_quality(run.spec, snapshot, inputs, rows, truth, last, retrieved_lists(run, inputs, rows))
        measures.update(found.measures)
        measures.update(measure_drift(snapshot.folder, inputs, last, run.spec.seed, run.resources))
        asked = Asked(
            run.spec.metric,
            run.spec.recall,
            run.spec.exclude_self,
            run.resources,
            open_constraints(constraints),
        )
        likely = likely_metric(asked, inputs, rows, found.lists, measures["recall"])
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
    return {
        "slices": [part.as_dict() for part in found.slices],
        "worst_queries": found.worst,
        "likely_metric": likely,
        "ties": found.ties,
    }


def _link(source: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(source.iterdir()):
        link_file(path, target / path.name)
