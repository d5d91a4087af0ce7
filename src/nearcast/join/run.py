"""Run a generator: the order of the stages, and what is remembered of them.

    hash -> check -> estimate -> ingest -> index -> calibrate -> join -> table -> measure -> snapshot

Everything is written below <out>/<generator>: `work` for what is under way, `artifacts` for what the next run
may use again, `snapshots` for what is finished.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nearcast import machine
from nearcast.engines import choose_engine
from nearcast.engines.base import Effort, Engine, EngineSettings, Index, JoinShape, Resources
from nearcast.engines.exact import ExactEngine
from nearcast.errors import BudgetError, PromiseError
from nearcast.files import fingerprint, finish, fresh_folder, is_done, locked
from nearcast.index.artifact import ensure_index
from nearcast.join.assemble import assemble
from nearcast.join.calibrate import Calibration, Sample, find_effort
from nearcast.join.estimate import RunEstimate, estimate_run, stop_if_too_large
from nearcast.join.inputs import (
    Checked,
    Inputs,
    Sources,
    check_inputs,
    ingest_inputs,
    open_sources,
    trial_vectors,
)
from nearcast.join.listen import Listener
from nearcast.join.measuring import exclusions, measure_overlap, measure_recall, truth_of
from nearcast.join.plan import Plan, cut, enter_work, make_plan, planned_fingerprint
from nearcast.join.task import JoinSettings, JoinTask, as_pairs, do_task, open_index
from nearcast.measure.recall import sample_rows
from nearcast.measure.tally import Tally
from nearcast.runners.local import LocalRunner, Runner
from nearcast.sources.check import Report
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.table.schema import FORMAT_VERSION
from nearcast.table.snapshot import Snapshot, list_snapshots, next_version, snapshots_folder
from nearcast.types import IntArray, Neighbors, no_progress
from nearcast.version import __version__

__all__ = ["Outcome", "check_generator", "run_generator"]

SMALLEST_WORK = 64 << 20  # below that not even one block of each kind can be held
LARGEST_READ = 1 << 30  # more would not make reading faster
FEW_QUERIES = 200  # for fewer, a calibration would cost about as much as full effort for all of them


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has led to."""

    snapshot: Snapshot
    reused: bool  # nothing had changed since the last snapshot, so it is the answer


@dataclass(slots=True)
class _Run:
    """What the stages of one run share."""

    spec: GeneratorSpec
    base: Path
    out: Path
    engine: Engine
    settings: EngineSettings
    listener: Listener
    budget_bytes: int
    base_bytes: int
    resources: Resources
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.out / self.spec.name

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def work(self) -> Path:
        return self.home / "work"

    @property
    def read_bytes(self) -> int:
        return min(LARGEST_READ, self.resources.memory_bytes // 2)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def run_generator(
    spec: GeneratorSpec,
    base: Path,
    *,
    items: object | None = None,
    queries: object | None = None,
    listener: Listener | None = None,
    runner: Runner | None = None,
    again: bool = False,
) -> Outcome:
    """Make a snapshot of a generator, or continue the run that was interrupted.

    Paths of the spec are relative to `base`. `items` and `queries` take the place of the sources' files:
    Arrow, pandas or polars tables, or pairs (ids, vectors). With nothing changed since the last snapshot,
    that one is returned, unless `again`.

    Raises InputError for bad data, BudgetError before work that does not fit, BusyError while another run
    holds the generator, PromiseError when the snapshot is finished but below its promise.
    """
    run = _prepare(spec, base, listener or Listener())
    with locked(run.home / ".lock", f"generator {spec.name!r}"), machine.PeakMemory() as peak:
        started = time.perf_counter()
        with run.stage("hash"):
            sources = open_sources(spec, base, items, queries, run.listener.progress)
        plan = make_plan(spec, run.engine.name, run.settings.model_dump(), sources.item_digests, sources.query_digests)
        last = next(iter(reversed(list_snapshots(run.out, spec.name))), None)
        if last is not None and last.manifest["fingerprint"] == plan.fingerprint and not again:
            run.listener.note(f"nothing has changed since snapshot {last.name}: it is the answer")
            _tidy(run, last)  # the run that made it may have been killed before it could
            outcome = Outcome(last, reused=True)
        else:
            outcome = Outcome(_new_snapshot(run, sources, plan, last, runner or LocalRunner(), started, peak), False)
    _stop_below_promise(outcome.snapshot)
    return outcome


def check_generator(
    spec: GeneratorSpec,
    base: Path,
    *,
    items: object | None = None,
    queries: object | None = None,
    listener: Listener | None = None,
) -> tuple[Report, RunEstimate]:
    """Do all that comes before the work of a run: read and judge the inputs, estimate, compare with the budget."""
    run = _prepare(spec, base, listener or Listener())
    sources = open_sources(spec, base, items, queries, run.listener.progress)
    checked = _checked(run, sources)
    estimate = _estimated(run, checked)
    stop_if_too_large(estimate, run.engine.name, _existing(run.out))
    return checked.report, estimate


def _prepare(spec: GeneratorSpec, base: Path, listener: Listener) -> _Run:
    engine = choose_engine(spec.engine)
    settings = parse_model(engine.settings, spec.engine_settings, f"engine_settings of {engine.name}")
    base_bytes = machine.resident_memory()
    budget = spec.memory or (base_bytes + machine.available_memory()) // 2
    work_bytes = budget - base_bytes
    if work_bytes < SMALLEST_WORK:
        raise BudgetError(
            f"memory is {budget / 1e6:.0f} MB, and Python with its libraries takes {base_bytes / 1e6:.0f} MB of it; "
            f"give at least {(base_bytes + SMALLEST_WORK) / 1e6:.0f} MB"
        )
    resources = Resources(spec.threads or machine.default_threads(), work_bytes)
    return _Run(spec, base, base / spec.out, engine, settings, listener, budget, base_bytes, resources)


def _new_snapshot(
    run: _Run,
    sources: Sources,
    plan: Plan,
    last: Snapshot | None,
    runner: Runner,
    started: float,
    peak: machine.PeakMemory,
) -> Snapshot:
    changed = enter_work(run.work, plan)
    if changed:
        run.listener.note(f"earlier unfinished work is thrown away, since {changed}")
    checked = _checked(run, sources)
    with run.stage("estimate"):
        estimate = _estimated(run, checked)
    stop_if_too_large(estimate, run.engine.name, run.out)
    with run.stage("read"):
        inputs = ingest_inputs(run.spec, checked, memory_bytes=run.read_bytes, progress=run.listener.progress)
    index_folder = _index(run, checked, inputs)
    settings = _join_settings(run, inputs, index_folder)
    sampled = _samples(run, inputs)
    settings, calibration = _calibrated(run, settings, inputs, sampled)
    tasks, continued = _joined(run, settings, inputs, runner)
    folder = fresh_folder(run.work / "snapshot")
    measures, n_rows = _table(run, tasks, inputs, checked.report, folder)
    facts = {
        "format": FORMAT_VERSION,
        "generator": run.spec.name,
        "version": next_version(run.out, run.spec.name),
        "rows": n_rows,
        "fingerprint": plan.fingerprint,
        "nearcast": __version__,
        "spec": run.spec.model_dump(mode="json"),
        "inputs": _input_facts(sources, checked.report, run.spec),
        "engine": {
            "name": run.engine.name,
            "settings": run.settings.model_dump(),
            "effort": dict(settings.effort),
            "calibration": calibration,
        },
        "artifacts": sorted({p.name for p in (checked.item_folder, checked.query_folder, index_folder)}),
    }
    _measure(run, Snapshot(folder, facts), inputs, sampled.report, last, measures)
    facts["measures"] = measures
    facts["promise"] = _verdict(run, measures)
    facts["run"] = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": {stage: round(value, 3) for stage, value in run.seconds.items()},
        "seconds_total": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": peak.bytes,
        "disk_bytes": _size_of(run.work) + _size_of(run.artifacts),
        "estimate": estimate.as_dict(),
        "tasks": len(tasks),
        "tasks_continued": continued,
        "machine": machine.describe(),
    }
    return _finish(run, folder, facts)


def _checked(run: _Run, sources: Sources) -> Checked:
    with run.stage("check"):
        return check_inputs(
            run.spec,
            sources,
            run.artifacts,
            memory_bytes=run.read_bytes,
            progress=run.listener.progress,
            checked=run.listener.checked,
        )


def _estimated(run: _Run, checked: Checked) -> RunEstimate:
    """Time a few of the real items with the engine and with the referee, and scale up."""
    report = checked.report
    sample = trial_vectors(checked, run.read_bytes)
    shape = JoinShape(report.items.vectors, report.queries.vectors, report.items.dim, sample.dtype.itemsize, run.spec.k)
    engine = run.engine.estimate(shape, sample, run.spec.metric, run.settings, run.resources)
    exact = ExactEngine().estimate(shape, sample, run.spec.metric, ExactEngine.settings(), run.resources)
    per_pair = exact.seconds["join"] / max(1, shape.n_queries * shape.n_items)
    estimate = estimate_run(
        shape,
        engine,
        exact_seconds_per_pair=per_pair,
        sampled_queries=sum(_sample_sizes(run, shape.n_queries)),
        read_seconds=run.seconds.get("check", 0.0),
        input_bytes=checked.disk_bytes,
        read_memory_bytes=checked.memory_bytes,
        base_bytes=run.base_bytes,
        budget_bytes=run.budget_bytes,
    )
    run.listener.estimated(estimate)
    return estimate


def _index(run: _Run, checked: Checked, inputs: Inputs) -> Path:
    """Have the index as an artifact; `exact` has none, and its folder is never made."""
    made_of = [
        checked.item_folder.name,
        run.engine.name,
        run.settings.model_dump(),
        run.spec.metric,
        run.spec.seed,
    ]
    folder = run.artifacts / f"index-{fingerprint([*made_of, __version__])[:16]}"
    if run.engine.name == ExactEngine.name:
        return folder
    with run.stage("build"):
        there = ensure_index(
            run.engine,
            inputs.items.vectors,
            run.spec.metric,
            run.settings,
            folder,
            {"made_of": made_of},
            seed=run.spec.seed,
            resources=run.resources,
            progress=run.listener.progress,
        )
    if there:
        run.listener.note(f"the {run.engine.name} index of an earlier run is used again")
    return folder


def _join_settings(run: _Run, inputs: Inputs, index_folder: Path) -> JoinSettings:
    return JoinSettings(
        items=inputs.items.folder,
        queries=inputs.queries.folder,
        index=index_folder,
        engine=run.engine.name,
        engine_settings=as_pairs(run.settings.model_dump()),
        metric=run.spec.metric,
        k=run.spec.k,
        effort=(),
        exclude_self=run.spec.exclude_self,
        resources=run.resources,
    )


@dataclass(frozen=True, slots=True)
class _Samples:
    """Disjoint, sorted samples of query positions."""

    report: IntArray
    choosing: IntArray
    checking: IntArray


def _calibrates(run: _Run, n_queries: int) -> bool:
    return not run.engine.exact and run.spec.recall < 1 and n_queries >= FEW_QUERIES


def _sample_sizes(run: _Run, n_queries: int) -> tuple[int, int, int]:
    """Queries for the report, to find the effort, and to check it; few queries are shared out among them."""
    if not _calibrates(run, n_queries):
        return min(n_queries, run.spec.measure.sample), 0, 0
    calibration = min(run.spec.measure.calibration, n_queries // 4)
    return min(n_queries // 2, run.spec.measure.sample), calibration, calibration


def _samples(run: _Run, inputs: Inputs) -> _Samples:
    n = inputs.queries.vectors.n
    return _Samples(*sample_rows(n, _sample_sizes(run, n), run.spec.seed))


def _calibrated(
    run: _Run, settings: JoinSettings, inputs: Inputs, sampled: _Samples
) -> tuple[JoinSettings, dict[str, Any] | None]:
    """The settings with the least effort that keeps the promise, and what was found on the way."""
    if run.engine.name == ExactEngine.name:
        return settings, None
    index, _ = open_index(settings.items, settings.index, settings.engine, settings.engine_settings, settings.metric)
    efforts = index.efforts(run.spec.k)
    if len(efforts) == 1 or not _calibrates(run, inputs.queries.vectors.n):
        return replace(settings, effort=as_pairs(efforts[-1])), None
    with run.stage("calibrate"):
        found = find_effort(
            efforts,
            run.spec.recall,
            _sample(run, index, inputs, sampled.choosing),
            _sample(run, index, inputs, sampled.checking),
            n_queries=inputs.queries.vectors.n,
            n_report=len(sampled.report),
        )
    seconds = found.seconds_per_query * inputs.queries.vectors.n
    words = ", ".join(f"{name} {value:,}" for name, value in found.effort.items())
    run.listener.note(
        f"{words} reaches recall {found.held_out.value:.4f} on {found.held_out.sample:,} queries that it was not "
        f"chosen on; the join will take about {seconds:,.0f} s"
    )
    return replace(settings, effort=as_pairs(found.effort)), _calibration_facts(found)


def _calibration_facts(found: Calibration) -> dict[str, Any]:
    """What of a calibration is the same in every run: no times."""
    return {"found": asdict(found.found), "held_out": asdict(found.held_out), "efforts_tried": found.tried}


def _sample(run: _Run, index: Index, inputs: Inputs, rows: IntArray) -> Sample:
    barred = exclusions(inputs.items, inputs.queries, rows, exclude_self=run.spec.exclude_self)
    vectors = inputs.queries.vectors.take(rows)

    def join(effort: Effort) -> Neighbors:
        return index.join(
            vectors, run.spec.k, effort=effort, exclude=barred, resources=run.resources, progress=no_progress
        )

    return Sample(join, _truth(run, inputs, rows))


def _truth(run: _Run, inputs: Inputs, rows: IntArray) -> Neighbors:
    return truth_of(
        inputs.items,
        inputs.queries,
        rows,
        run.spec.k,
        run.spec.metric,
        exclude_self=run.spec.exclude_self,
        resources=run.resources,
        progress=lambda _, done, total: run.listener.progress("ground truth", done, total),
    )


def _joined(run: _Run, settings: JoinSettings, inputs: Inputs, runner: Runner) -> tuple[list[JoinTask], int]:
    """Do the tasks that are not done yet. Returns all of them, and how many were done before."""
    n = inputs.queries.vectors.n
    tasks = [
        JoinTask(number, start, stop, run.work / "tasks" / f"{number:06d}", settings)
        for number, (start, stop) in enumerate(cut(n, inputs.queries.vectors.dim, run.spec.k))
    ]
    left = [task for task in tasks if not is_done(task.folder)]
    if len(left) < len(tasks):
        run.listener.note(f"{len(tasks) - len(left)} of {len(tasks)} tasks were done before: continuing")
    with run.stage("join"):
        runner.run(
            lambda task: do_task(task, run.listener.progress),
            left,
            lambda task: run.listener.progress("join", task.stop, n),
        )
    open_index.cache_clear()  # the index is not needed any more, and may be large
    return tasks, len(tasks) - len(left)


def _table(
    run: _Run, tasks: list[JoinTask], inputs: Inputs, report: Report, folder: Path
) -> tuple[dict[str, float], int]:
    """Write the table and the attributes of both sides; the measures of the whole table come back."""
    tally = Tally(inputs.items.vectors.n, run.spec.k, report.queries.rows)
    with run.stage("table"):
        n_rows = assemble(
            tasks,
            inputs.items,
            inputs.queries,
            folder / "candidates",
            run.spec.k,
            _reachable(run, inputs),
            tally,
            run.listener.progress,
        )
        _link(inputs.items.attributes, folder / "items")
        if inputs.queries is not inputs.items:
            _link(inputs.queries.attributes, folder / "queries")
    return tally.measures(), n_rows


def _reachable(run: _Run, inputs: Inputs) -> IntArray:
    """(queries,) how many items each query could get at all."""
    every = np.arange(inputs.queries.vectors.n)
    barred = exclusions(inputs.items, inputs.queries, every, exclude_self=run.spec.exclude_self)
    n = inputs.items.vectors.n
    return np.full(len(every), n) if barred is None else n - (barred >= 0).astype(np.int64)


def _measure(
    run: _Run,
    snapshot: Snapshot,
    inputs: Inputs,
    rows: IntArray,
    last: Snapshot | None,
    measures: dict[str, float],
) -> None:
    with run.stage("measure"):
        recall = measure_recall(
            snapshot, inputs.items, inputs.queries, rows, _truth(run, inputs, rows), run.spec.metric
        )
        measures["recall"], measures["recall_sample"] = recall.value, recall.sample
        measures["recall_low"], measures["recall_high"] = recall.low, recall.high
    if last is not None:
        with run.stage("overlap"):
            measures.update(measure_overlap(last, snapshot, inputs.items, run.listener.progress))


def _verdict(run: _Run, measures: Mapping[str, float]) -> dict[str, Any]:
    """Whether the promise is kept: by the lower bound; an exact engine only has to show no miss."""
    promised, low = run.spec.recall, measures["recall_low"]
    kept = measures["recall"] == 1.0 if run.engine.exact else low >= promised
    if not run.engine.exact and promised == 1.0:
        kept = measures["recall"] == 1.0  # no sample proves a promise of 1; one miss disproves it
    reason = None
    if not kept:
        reason = (
            f"recall@{run.spec.k} is {measures['recall']:.4f} with a 95% interval from {low:.4f}, "
            f"and {promised:g} was promised"
        )
    return {"recall": promised, "kept": kept, "reason": reason}


def _stop_below_promise(snapshot: Snapshot) -> None:
    promise = snapshot.manifest["promise"]
    if not promise["kept"]:
        raise PromiseError(
            f"snapshot {snapshot.name} is below its promise: {promise['reason']}; it is kept at {snapshot.folder}; "
            "raise the engine's effort or lower `recall`",
            snapshot,
        )


def _input_facts(sources: Sources, report: Report, spec: GeneratorSpec) -> dict[str, Any]:
    def side(source: Any, digests: Any, facts: Any) -> dict[str, Any]:
        return {"embedding": source.embedding, "files": digests, **asdict(facts)}

    facts = {"items": side(spec.items, sources.item_digests, report.items)}
    if sources.queries is not sources.items:
        facts["queries"] = side(spec.query_source, sources.query_digests, report.queries)
    return facts


def _finish(run: _Run, folder: Path, facts: dict[str, Any]) -> Snapshot:
    """Make the snapshot appear, whole and at once, then tidy up what it does not need."""
    finish(folder, facts)
    home = snapshots_folder(run.out, run.spec.name)
    home.mkdir(exist_ok=True)
    place = home / f"{facts['version']:06d}"
    os.rename(folder, place)
    snapshot = Snapshot(place, facts)
    _tidy(run, snapshot)
    return snapshot


def _tidy(run: _Run, snapshot: Snapshot) -> None:
    """Remove the work that led to a snapshot, and the artifacts that it was not made of."""
    if planned_fingerprint(run.work) == snapshot.manifest["fingerprint"]:
        shutil.rmtree(run.work)
    if run.artifacts.is_dir() and not run.work.exists():
        for path in run.artifacts.iterdir():
            if path.name not in snapshot.manifest["artifacts"]:
                shutil.rmtree(path)


def _link(source: Path, target: Path) -> None:
    """The same files under a second name, so that they cost no disk; copies where the disk cannot do that."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)


def _size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else 0


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.is_dir():
        folder = folder.parent
    return folder
