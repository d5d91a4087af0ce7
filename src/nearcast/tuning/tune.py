"""Tune a generator: try engines and settings on a sample, check the best on a larger one, and suggest it.

Only the settings of the index are suggested: which effort keeps the promise is found by every run for its own items,
on queries of its own. Nothing is tuned on the queries that a run reports on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from nearcast import kernels, machine
from nearcast.engines import ENGINES
from nearcast.engines.base import JoinRequest, JoinShape
from nearcast.engines.faiss_common import faiss
from nearcast.errors import BudgetError, MissingExtraError, SpecError
from nearcast.files import fingerprint, locked
from nearcast.join.compile_constraints import has_constraints
from nearcast.join.context import RunContext
from nearcast.join.inputs import Checked, check_inputs, ingest_inputs, open_sources
from nearcast.sources.ingest import Inputs
from nearcast.spec import parse_model
from nearcast.tuning.job_cost import build_and_join, cost_of, told_by_exact
from nearcast.tuning.optimize import EXACT, Study, TrialOutcome, first_points, open_study
from nearcast.tuning.scaling import EXACT_POINT, Configuration, Growth, query_work, settings_at
from nearcast.tuning.trial import Trial, TuningJob, estimate_memory, least_seconds, measure_held_out, try_point
from nearcast.tuning.tuning_result import LargerSampleCheck, PricedTrial, TuningResult
from nearcast.tuning.tuning_samples import TuningRows, TuningSample, draw_rows, make_tuning_sample
from nearcast.types import Metric
from nearcast.version import __version__

__all__ = ["TRIALS", "tune"]

TRIALS = 16
SMALLEST_SAMPLE, LARGEST_SAMPLE = 20_000, 65_536
SAMPLE_SHARE = 1 / 8
LARGER = 2  # times the sample: what the extrapolation is checked on
MOST_CHECKED = 3  # points
TOLERANCE = 1.1  # clocks do not tell points apart that are closer
TRIAL_FORMAT = 2  # of remembered trials: since 2 what a query meets is counted in items
LEAST_SECONDS = 10.0  # of a budget that is not given
BUDGET_SHARE = 0.5  # of an exact join of everything


def tune(run: RunContext, *, trials: int = TRIALS, seconds: float | None = None) -> TuningResult:
    """Find the cheapest settings that keep the spec's promise, within its memory and about so many seconds.

    Raises SpecError for a promise of 1, which only exact joins keep; InputError for bad data or too few queries;
    BusyError while a run holds the generator; BudgetError where nothing fits; MissingExtraError without Optuna.
    """
    if has_constraints(run.spec) or run.spec.score.columns:
        raise SpecError(
            "tune does not know rules, caps, min_score or score terms, and would tune another join; leave the engine "
            "at auto: a run chooses cells and effort for what they leave"
        )
    if run.spec.recall == 1:
        raise SpecError("recall is 1: only exact joins keep that, so there is nothing to tune; lower it to save time")
    with locked(run.workspace.home / ".lock", f"generator {run.spec.name!r}"):
        began = time.perf_counter()
        checked, inputs = _inputs(run)
        samples = draw_rows(run, inputs)
        small = make_tuning_sample(run, inputs, samples, _sample_size(inputs.items.vectors.n))
        job = _job(run, inputs, small)
        budget = seconds if seconds is not None else max(LEAST_SECONDS, BUDGET_SHARE * job.exact_seconds)
        _say_beforehand(job, budget, small)
        job = replace(job, growth=_growth(job, inputs, samples, small))
        job, tried, ruled_out = _searched(job, _study(checked, job, small), small, trials, began + budget)
        job, best, check, asked = _checked_on_more(job, inputs, samples, small, tried)
        tried = [best if trial.point == best.point else trial for trial in tried]
        found = {trial.point.name: _found(job, trial) for trial in tried}
        return TuningResult(
            generator=run.spec.name,
            promise=run.spec.recall,
            n_items=job.shape.n_items,
            n_queries=job.shape.n_queries,
            found=tuple(found.values()),
            ruled_out=tuple(ruled_out),
            suggestion=found[best.point.name],
            reason=_reason(job, best, tried),
            held_out=measure_held_out(job, best.point, asked),
            check=check,
            exact_seconds=job.exact_seconds,
            budget_seconds=budget,
            seconds=time.perf_counter() - began,
            isa=kernels.isa_info().taken,
        )


def _inputs(run: RunContext) -> tuple[Checked, Inputs]:
    """Both sides, read and judged as a run does it; the next run uses what is ingested here."""
    sources = open_sources(run.spec, run.workspace.base, run.listener)
    checked = check_inputs(
        run.spec,
        sources,
        run.workspace.artifacts,
        memory_bytes=run.read_bytes,
        progress=run.listener.progress,
        checked=run.listener.checked,
    )
    return checked, ingest_inputs(run.spec, checked, memory_bytes=run.read_bytes, progress=run.listener.progress)


def _sample_size(n_items: int) -> int:
    return min(n_items, max(SMALLEST_SAMPLE, min(LARGEST_SAMPLE, round(n_items * SAMPLE_SHARE))))


def _job(run: RunContext, inputs: Inputs, small: TuningSample) -> TuningJob:
    """The whole job, with the rate of an exact join and what of it does not grow: by the sample, and half of it."""
    items, queries, spec = inputs.items.vectors, inputs.queries.vectors, run.spec
    request = JoinRequest(Metric(spec.metric), spec.k, spec.recall)
    shape = JoinShape(request, items.n, queries.n, items.dim, items.dtype.itemsize)
    half = small.items.n // 2
    full_seconds, half_seconds = (_exact_seconds(run, small, n) / len(small.timed) for n in (small.items.n, half))
    per_pair = max((full_seconds - half_seconds) / (small.items.n - half), full_seconds / small.items.n / 2)
    resting = max(0.0, full_seconds - per_pair * small.items.n)
    return TuningJob(run, shape, per_pair, Growth(exact_overhead=resting))


def _exact_seconds(run: RunContext, small: TuningSample, n_items: int) -> float:
    items = small.items.array[:n_items]
    request = JoinRequest(Metric(run.spec.metric), min(run.spec.k, n_items))
    return least_seconds(partial(kernels.join_exact, small.timed, items, request, run.resources))


def _growth(job: TuningJob, inputs: Inputs, samples: TuningRows, small: TuningSample) -> Growth:
    """How a query's work grows: cells at their default number, on the sample and on half of it."""
    promise, half = job.request.recall, small.items.n // 2
    default = next((p for p in first_points(["dense"], job.shape.n_items)), None)
    if default is None or kernels.isa_info().taken == "numpy" or small.items.n == job.shape.n_items:
        return job.growth
    sizes = (make_tuning_sample(job.run, inputs, samples, half), small)
    trials = [try_point(job, default, sample) for sample in sizes]
    first, second = (trial.at(promise) for trial in trials)
    if first is None or second is None or not first.items_scanned or not second.items_scanned:
        return job.growth
    power = growth_between(trials[0], trials[1], promise, otherwise=job.growth.power)
    works = [_counted(trial, promise) for trial in trials]
    per_vector = (trials[1].query_seconds - trials[0].query_seconds) / (works[1] - works[0])
    resting = max(0.0, trials[1].query_seconds - max(0.0, per_vector) * works[1])
    return replace(job.growth, power=power, overhead=resting)


def growth_between(first: Trial, second: Trial, promise: float, *, otherwise: float) -> float:
    """The power by which the items met grew between two trials of a point, the second on more items.

    otherwise: what it is taken for where one of them met nothing that was counted.
    """
    few, many = first.at(promise), second.at(promise)
    if few is None or many is None or not few.items_scanned or not many.items_scanned:
        return otherwise
    power = math.log(many.items_scanned / few.items_scanned) / math.log(second.sample_items / first.sample_items)
    return min(1.0, max(0.0, power))


def _counted(trial: Trial, promise: float) -> float:
    """Vectors that a query of the trial's sample was held against."""
    reached, here = trial.at(promise), Configuration(trial.point.engine, settings_at(trial.point, trial.share))
    assert reached is not None
    return query_work(here, trial.sample_items, reached.params, reached.items_scanned, trial.sample_items, Growth())


def _say_beforehand(job: TuningJob, budget: float, small: TuningSample) -> None:
    job.run.listener.note(
        f"tuning takes about {budget:,.0f} s at most, on {small.items.n:,} of {job.shape.n_items:,} items; "
        f"an exact join of everything takes about {job.exact_seconds:,.0f} s"
    )


def _study(checked: Checked, job: TuningJob, small: TuningSample) -> Study:
    """What was learned of the same thing on a machine like this one, to be gone on with."""
    run, spec = job.run, job.run.spec
    names = list(_engines(Metric(spec.metric)))
    decides = [
        [checked.item_folder.name, checked.query_folder.name, small.items.n, names],
        [spec.metric, spec.k, spec.recall, spec.exclude_self, spec.seed, spec.measure.sample, spec.measure.calibration],
        [run.resources.threads, kernels.isa_info().taken, machine.describe()["processor"], __version__, TRIAL_FORMAT],
    ]
    path = run.workspace.home / "tuning" / "study.log"
    study = open_study(path, fingerprint(decides)[:16], names, job.shape.n_items, spec.seed)
    study.begin(first_points(names, job.shape.n_items))
    return study


def _engines(metric: Metric) -> Iterator[str]:
    """What may be proposed: engines that know the metric, and whose libraries are there."""
    if kernels.isa_info().taken != "numpy":
        yield from (EXACT, "dense")
    try:
        faiss()
    except MissingExtraError:
        return
    yield from (name for name in ("faiss-ivf", "faiss-hnsw") if metric in ENGINES[name].metrics)


def _searched(
    job: TuningJob, study: Study, small: TuningSample, trials: int, deadline: float
) -> tuple[TuningJob, list[Trial], list[str]]:
    """Trials until there are enough of them, or no time is left; with those of an earlier tuning.

    The job comes back with what the exact point's trial has told.
    """
    tried = {trial.point.name: trial for trial in study.known()}
    job = told_by_exact(job, tried.values())
    ruled_out: list[str] = []
    if tried:
        job.run.listener.note(f"{len(tried)} trials of an earlier tuning are used again")
    done = study.finished()
    while done < trials and (not tried or time.perf_counter() < deadline):
        outcome = study.step(partial(_judged, job, small, tried, deadline))
        done += 1
        if outcome.trial is not None:
            tried[outcome.trial.point.name] = outcome.trial
            job = told_by_exact(job, [outcome.trial])
        elif outcome.reason is not None:
            ruled_out.append(outcome.reason)
        job.run.listener.progress("tune", done, trials)
    if done < trials:
        job.run.listener.note(f"the time is up after {done} of {trials} trials; tuning again goes on from here")
    return job, list(tried.values()), ruled_out


def _judged(
    job: TuningJob, small: TuningSample, tried: dict[str, Trial], deadline: float, point: Configuration
) -> TrialOutcome:
    """The trial of a point; an estimate in its place where it cannot win, does not fit, or was made before."""
    never = 100.0 * job.exact_seconds  # stands for what does not keep the promise
    if point.name in tried:
        return TrialOutcome(_seconds(job, tried[point.name], never), None)
    memory, given = estimate_memory(job, point), job.resources.memory_bytes
    if memory > given:
        return TrialOutcome(
            never, None, f"{point.name}: it takes {memory / 1e9:.2f} GB, and {given / 1e9:.2f} are given"
        )
    best = min((_seconds(job, trial, never) for trial in tried.values()), default=never)
    building = _estimated_build(job, point, small)
    if building > best:
        why = f"{point.name}: to build it takes about {building:,.0f} s, and all of the best job {best:,.0f} s"
        return TrialOutcome(building + best, None, why)
    if tried and building * small.share > deadline - time.perf_counter():
        return TrialOutcome(never, None, f"{point.name}: a trial would take longer than is left")
    trial = try_point(job, point, small)
    return TrialOutcome(_seconds(job, trial, never), trial)


def _seconds(job: TuningJob, trial: Trial, otherwise: float) -> float:
    """Of the whole job, at the promise that was asked for."""
    cost = cost_of(job, trial, job.request.recall)
    return otherwise if cost is None else cost.seconds


def _estimated_build(job: TuningJob, point: Configuration, small: TuningSample) -> float:
    engine = ENGINES[point.engine]
    settings = parse_model(engine.settings, point.settings, point.name)
    return engine.estimate(job.shape, small.items, settings, job.resources).seconds.get("build", 0.0)


def _checked_on_more(
    job: TuningJob, inputs: Inputs, samples: TuningRows, small: TuningSample, tried: Sequence[Trial]
) -> tuple[TuningJob, Trial, LargerSampleCheck | None, TuningSample]:
    """The best point, by a larger sample too, if there is one: what it takes there was predicted, and is measured.

    Where it turns out to cost more than the next one was predicted to, that one is looked at as well. The job comes
    back with the growth that the larger sample shows: it is nearer to the whole.
    """
    promise, never = job.request.recall, float("inf")
    ranked = sorted((t for t in tried if _seconds(job, t, never) < never), key=lambda t: _seconds(job, t, never))
    if not ranked:
        raise BudgetError(
            f"no point that was tried keeps a recall of {promise:g} within the memory; give more of it, or more trials"
        )
    size = min(job.shape.n_items, LARGER * small.items.n)
    if size == small.items.n:
        return job, ranked[0], None, small
    larger = make_tuning_sample(job.run, inputs, samples, size)
    measured: list[tuple[Trial, LargerSampleCheck | None]] = []
    for trial, following in zip(ranked[:MOST_CHECKED], [*ranked[1:], None], strict=False):
        measured.append(_measured(job, trial, larger))
        job = told_by_exact(job, [measured[-1][0]])
        if len(measured) == 1 and measured[0][1] is not None:
            power = growth_between(trial, measured[0][0], promise, otherwise=job.growth.power)
            job = replace(job, growth=replace(job.growth, power=power))
        best = min(measured, key=lambda pair: _seconds(job, pair[0], never))
        if following is None or _seconds(job, best[0], never) <= TOLERANCE * _seconds(job, following, never):
            break
    return job, best[0], best[1], larger


def _measured(job: TuningJob, trial: Trial, larger: TuningSample) -> tuple[Trial, LargerSampleCheck | None]:
    """A point on the larger sample; the trial as it was where it does not keep the promise there."""
    promise, n = job.request.recall, len(larger.timed)
    again = try_point(job, trial.point, larger)
    predicted = build_and_join(trial, promise, larger.items.n, n, larger.share, job.growth)
    took = build_and_join(again, promise, larger.items.n, n, larger.share, job.growth)
    if predicted is None or took is None:
        return trial, None
    return again, LargerSampleCheck(larger.items.n, sum(predicted), sum(took))


def _found(job: TuningJob, trial: Trial) -> PricedTrial:
    costs = {promise: cost_of(job, trial, promise) for promise in job.targets}
    return PricedTrial(trial, {promise: cost for promise, cost in costs.items() if cost is not None})


def _reason(job: TuningJob, best: Trial, tried: Sequence[Trial]) -> str:
    others: dict[str, float] = {}
    for trial in tried:
        name = EXACT if trial.point == EXACT_POINT else trial.point.engine
        seconds = _seconds(job, trial, float("inf"))
        if trial is not best and seconds < others.get(name, float("inf")):
            others[name] = seconds
    beaten = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in sorted(others.items(), key=lambda pair: pair[1]))
    own = _seconds(job, best, float("inf"))
    return f"build, calibration and join take about {own:,.1f} s; the best of the others: {beaten or 'none'}"
