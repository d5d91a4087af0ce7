"""Tune a generator: try engines and settings on a sample, check the best on a larger one, and suggest it.

Only settings of the index are suggested. Every run calibrates the search parameters for its own items, on its own
queries. Nothing is tuned on the queries that a run reports on.
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
from nearcast.files import fingerprint, hold_lock
from nearcast.join.compile_constraints import has_constraints
from nearcast.join.context import RunContext
from nearcast.join.inputs import Checked, check_inputs, ingest_inputs, open_sources
from nearcast.sources.ingest import Inputs
from nearcast.spec import parse_model
from nearcast.tuning.job_cost import build_and_join, estimate_cost, with_exact_time
from nearcast.tuning.optimize import EXACT, Study, TrialOutcome, first_configurations, open_study
from nearcast.tuning.scaling import EXACT_POINT, TUNED_ENGINES, Configuration, Growth, query_work, scale_settings
from nearcast.tuning.trial import Trial, TuningJob, estimate_memory, least_seconds, measure_held_out, try_point
from nearcast.tuning.tuning_result import LargerSampleCheck, PricedTrial, TuningResult
from nearcast.tuning.tuning_samples import TuningRows, TuningSample, draw_rows, make_tuning_sample
from nearcast.types import Metric
from nearcast.version import __version__

__all__ = ["TRIALS", "tune"]

TRIALS = 16
SMALLEST_SAMPLE, LARGEST_SAMPLE = 20_000, 65_536
SAMPLE_SHARE = 1 / 8
LARGER = 2  # the extrapolation is checked on a sample this many times larger
MAX_CHECKED = 3  # configurations
TOLERANCE = 1.1  # clocks cannot distinguish configurations that are closer
TRIAL_FORMAT = 2  # of stored trials; since 2 a scan is counted in items
MIN_SECONDS = 10.0  # of a default budget
BUDGET_SHARE = 0.5  # of an exact join of the whole tables


def tune(run: RunContext, *, trials: int = TRIALS, seconds: float | None = None) -> TuningResult:
    """Find the cheapest settings that reach the spec's recall, within its memory and about `seconds`.

    Raises SpecError for a recall of 1, which only exact joins reach; InputError for bad data or too few queries;
    BusyError while a run holds the generator; BudgetError if nothing fits; MissingExtraError without Optuna.
    """
    if has_constraints(run.spec) or run.spec.score.columns:
        raise SpecError(
            "tune does not know rules, caps, min_score or score terms, and would tune another join; leave the engine "
            "at auto: a run chooses cells and search parameters for the items that they allow"
        )
    if run.spec.recall == 1:
        raise SpecError("recall is 1: only exact joins reach that, so there is nothing to tune; lower it to save time")
    with hold_lock(run.workspace.home / ".lock", f"generator {run.spec.name!r}"):
        began = time.perf_counter()
        checked, inputs = _read_inputs(run)
        samples = draw_rows(run, inputs)
        small = make_tuning_sample(run, inputs, samples, _sample_size(inputs.items.vectors.n))
        job = _measure_job(run, inputs, small)
        budget = seconds if seconds is not None else max(MIN_SECONDS, BUDGET_SHARE * job.exact_seconds)
        _announce(job, budget, small)
        job = replace(job, growth=_measure_growth(job, inputs, samples, small))
        job, tried, ruled_out = _run_trials(job, _open_job_study(checked, job, small), small, trials, began + budget)
        job, best, check, sample = _check_on_larger(job, inputs, samples, small, tried)
        tried = [best if trial.point == best.point else trial for trial in tried]
        priced = {trial.point.name: _price_trial(job, trial) for trial in tried}
        return TuningResult(
            generator=run.spec.name,
            target=run.spec.recall,
            n_items=job.shape.n_items,
            n_queries=job.shape.n_queries,
            trials=tuple(priced.values()),
            ruled_out=tuple(ruled_out),
            suggestion=priced[best.point.name],
            reason=_state_reason(job, best, tried),
            held_out=measure_held_out(job, best.point, sample),
            check=check,
            exact_seconds=job.exact_seconds,
            budget_seconds=budget,
            seconds=time.perf_counter() - began,
            isa=kernels.isa_info().taken,
        )


def _read_inputs(run: RunContext) -> tuple[Checked, Inputs]:
    """Check and ingest both tables as a run does. The next run reuses the ingested tables."""
    sources = open_sources(run.spec, run.workspace.base, run.listener)
    checked = check_inputs(
        run.spec,
        sources,
        run.artifacts,
        settings=run.stage_settings,
        progress=run.listener.progress,
        checked=run.listener.checked,
    )
    return checked, ingest_inputs(
        run.spec, checked, run.artifacts, memory_bytes=run.read_bytes, progress=run.listener.progress
    )


def _sample_size(n_items: int) -> int:
    return min(n_items, max(SMALLEST_SAMPLE, min(LARGEST_SAMPLE, round(n_items * SAMPLE_SHARE))))


def _measure_job(run: RunContext, inputs: Inputs, small: TuningSample) -> TuningJob:
    """Return the whole job, with rate and overhead of an exact join, measured on the sample and on half of it."""
    items, queries, spec = inputs.items.vectors, inputs.queries.vectors, run.spec
    request = JoinRequest(Metric(spec.metric), spec.k, spec.recall)
    shape = JoinShape(request, items.n, queries.n, items.dim, items.dtype.itemsize)
    half = small.items.n // 2
    full_seconds, half_seconds = (_time_exact_join(run, small, n) / len(small.timed) for n in (small.items.n, half))
    per_pair = max((full_seconds - half_seconds) / (small.items.n - half), full_seconds / small.items.n / 2)
    resting = max(0.0, full_seconds - per_pair * small.items.n)
    return TuningJob(run, shape, per_pair, Growth(exact_overhead=resting))


def _time_exact_join(run: RunContext, small: TuningSample, n_items: int) -> float:
    items = small.items.array[:n_items]
    request = JoinRequest(Metric(run.spec.metric), min(run.spec.k, n_items))
    return least_seconds(partial(kernels.join_exact, small.timed, items, request, run.resources))


def _measure_growth(job: TuningJob, inputs: Inputs, samples: TuningRows, small: TuningSample) -> Growth:
    """Measure how a query's work grows: with the default number of cells, on the sample and on half of it."""
    target, half = job.request.recall, small.items.n // 2
    default = next((p for p in first_configurations(["dense"], job.shape.n_items)), None)
    if default is None or kernels.isa_info().taken == "numpy" or small.items.n == job.shape.n_items:
        return job.growth
    sizes = (make_tuning_sample(job.run, inputs, samples, half), small)
    trials = [try_point(job, default, sample) for sample in sizes]
    first, second = (trial.at(target) for trial in trials)
    if first is None or second is None or not first.items_scanned or not second.items_scanned:
        return job.growth
    power = estimate_growth(trials[0], trials[1], target, default=job.growth.power)
    works = [_count_work(trial, target) for trial in trials]
    per_vector = (trials[1].query_seconds - trials[0].query_seconds) / (works[1] - works[0])
    resting = max(0.0, trials[1].query_seconds - max(0.0, per_vector) * works[1])
    return replace(job.growth, power=power, overhead=resting)


def estimate_growth(first: Trial, second: Trial, target: float, *, default: float) -> float:
    """Return the power by which the scanned items grew between two trials of a configuration, the second on more items.

    default: returned if one of the trials did not count scanned items.
    """
    few, many = first.at(target), second.at(target)
    if few is None or many is None or not few.items_scanned or not many.items_scanned:
        return default
    power = math.log(many.items_scanned / few.items_scanned) / math.log(second.sample_items / first.sample_items)
    return min(1.0, max(0.0, power))


def _count_work(trial: Trial, target: float) -> float:
    """Return the vectors that a query of the trial's sample was compared with."""
    reached, here = trial.at(target), Configuration(trial.point.engine, scale_settings(trial.point, trial.share))
    assert reached is not None
    return query_work(here, trial.sample_items, reached.params, reached.items_scanned, trial.sample_items, Growth())


def _announce(job: TuningJob, budget: float, small: TuningSample) -> None:
    job.run.listener.note(
        f"tuning takes about {budget:,.0f} s at most, on {small.items.n:,} of {job.shape.n_items:,} items; "
        f"an exact join of the whole tables takes about {job.exact_seconds:,.0f} s"
    )


def _open_job_study(checked: Checked, job: TuningJob, small: TuningSample) -> Study:
    """Open the study of the same job on a machine like this one, and queue the first configurations."""
    run, spec = job.run, job.run.spec
    names = list(_available_engines(Metric(spec.metric)))
    decides = [
        [checked.item_name, checked.query_name, small.items.n, names],
        [spec.metric, spec.k, spec.recall, spec.exclude_self, spec.seed, spec.measure.sample, spec.measure.calibration],
        [run.resources.threads, kernels.isa_info().taken, machine.describe()["processor"], __version__, TRIAL_FORMAT],
    ]
    path = run.workspace.home / "tuning" / "study.log"
    study = open_study(path, fingerprint(decides)[:16], names, job.shape.n_items, spec.seed)
    study.enqueue(first_configurations(names, job.shape.n_items))
    return study


def _available_engines(metric: Metric) -> Iterator[str]:
    """Yield the engines to propose: they support the metric, and their libraries are installed."""
    if kernels.isa_info().taken != "numpy":
        yield from (EXACT, "dense")
    try:
        faiss()
    except MissingExtraError:
        return
    yield from (name for name in TUNED_ENGINES if name != "dense" and metric in ENGINES[name].metrics)


def _run_trials(
    job: TuningJob, study: Study, small: TuningSample, trials: int, deadline: float
) -> tuple[TuningJob, list[Trial], list[str]]:
    """Run trials until there are enough or the time is over. Return them with those of an earlier tuning.

    Also returns the job with the time of the exact trial, and the configurations that were not tried.
    """
    tried = {trial.point.name: trial for trial in study.load_trials()}
    job = with_exact_time(job, tried.values())
    ruled_out: list[str] = []
    if tried:
        job.run.listener.note(f"{len(tried)} trials of an earlier tuning are used again")
    done = study.count_judged()
    while done < trials and (not tried or time.perf_counter() < deadline):
        outcome = study.judge_next(partial(_judge, job, small, tried, deadline))
        done += 1
        if outcome.trial is not None:
            tried[outcome.trial.point.name] = outcome.trial
            job = with_exact_time(job, [outcome.trial])
        elif outcome.reason is not None:
            ruled_out.append(outcome.reason)
        job.run.listener.progress("tune", done, trials)
    if done < trials:
        job.run.listener.note(f"the time is up after {done} of {trials} trials; the next tuning continues from them")
    return job, list(tried.values()), ruled_out


def _judge(
    job: TuningJob, small: TuningSample, tried: dict[str, Trial], deadline: float, point: Configuration
) -> TrialOutcome:
    """Try a configuration. Return an estimate instead if it cannot win, does not fit, or was tried before."""
    never = 100.0 * job.exact_seconds  # for a configuration that misses the recall target
    if point.name in tried:
        return TrialOutcome(_job_seconds(job, tried[point.name], never), None)
    memory, budget = estimate_memory(job, point), job.resources.memory_bytes
    if memory > budget:
        return TrialOutcome(
            never,
            None,
            f"{point.name}: it needs {memory / 1e9:.2f} GB of memory, and the budget is {budget / 1e9:.2f} GB",
        )
    best = min((_job_seconds(job, trial, never) for trial in tried.values()), default=never)
    building = _estimate_build(job, point, small)
    if building > best:
        why = f"{point.name}: building takes about {building:,.0f} s, and the whole best job {best:,.0f} s"
        return TrialOutcome(building + best, None, why)
    if tried and building * small.share > deadline - time.perf_counter():
        return TrialOutcome(never, None, f"{point.name}: a trial would take longer than the time left")
    trial = try_point(job, point, small)
    return TrialOutcome(_job_seconds(job, trial, never), trial)


def _job_seconds(job: TuningJob, trial: Trial, default: float) -> float:
    """Return the seconds of the whole job at the spec's recall target; `default` if the trial misses it."""
    cost = estimate_cost(job, trial, job.request.recall)
    return default if cost is None else cost.seconds


def _estimate_build(job: TuningJob, point: Configuration, small: TuningSample) -> float:
    engine = ENGINES[point.engine]
    settings = parse_model(engine.settings, point.settings, point.name)
    return engine.estimate(job.shape, small.items, settings, job.resources).seconds.get("build", 0.0)


def _check_on_larger(
    job: TuningJob, inputs: Inputs, samples: TuningRows, small: TuningSample, tried: Sequence[Trial]
) -> tuple[TuningJob, Trial, LargerSampleCheck | None, TuningSample]:
    """Measure the best configuration on a larger sample, if there is one, and compare with its prediction.

    If it costs more than the next configuration was predicted to, that one is measured too. Also returns the job with
    the growth that the larger sample shows, and that sample.
    """
    target, never = job.request.recall, float("inf")
    ranked = sorted(
        (t for t in tried if _job_seconds(job, t, never) < never), key=lambda t: _job_seconds(job, t, never)
    )
    if not ranked:
        raise BudgetError(
            f"no tried configuration reaches a recall of {target:g} within the memory; give more memory or more trials"
        )
    size = min(job.shape.n_items, LARGER * small.items.n)
    if size == small.items.n:
        return job, ranked[0], None, small
    larger = make_tuning_sample(job.run, inputs, samples, size)
    measured: list[tuple[Trial, LargerSampleCheck | None]] = []
    for trial, following in zip(ranked[:MAX_CHECKED], [*ranked[1:], None], strict=False):
        measured.append(_measure_larger(job, trial, larger))
        job = with_exact_time(job, [measured[-1][0]])
        if len(measured) == 1 and measured[0][1] is not None:
            power = estimate_growth(trial, measured[0][0], target, default=job.growth.power)
            job = replace(job, growth=replace(job.growth, power=power))
        best = min(measured, key=lambda pair: _job_seconds(job, pair[0], never))
        if following is None or _job_seconds(job, best[0], never) <= TOLERANCE * _job_seconds(job, following, never):
            break
    return job, best[0], best[1], larger


def _measure_larger(job: TuningJob, trial: Trial, larger: TuningSample) -> tuple[Trial, LargerSampleCheck | None]:
    """Try a configuration on the larger sample. Return the first trial if it misses the recall target there."""
    target, n = job.request.recall, len(larger.timed)
    again = try_point(job, trial.point, larger)
    predicted = build_and_join(trial, target, larger.items.n, n, larger.share, job.growth)
    took = build_and_join(again, target, larger.items.n, n, larger.share, job.growth)
    if predicted is None or took is None:
        return trial, None
    return again, LargerSampleCheck(larger.items.n, sum(predicted), sum(took))


def _price_trial(job: TuningJob, trial: Trial) -> PricedTrial:
    costs = {target: estimate_cost(job, trial, target) for target in job.targets}
    return PricedTrial(trial, {target: cost for target, cost in costs.items() if cost is not None})


def _state_reason(job: TuningJob, best: Trial, tried: Sequence[Trial]) -> str:
    others: dict[str, float] = {}
    for trial in tried:
        name = EXACT if trial.point == EXACT_POINT else trial.point.engine
        seconds = _job_seconds(job, trial, float("inf"))
        if trial is not best and seconds < others.get(name, float("inf")):
            others[name] = seconds
    slower = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in sorted(others.items(), key=lambda pair: pair[1]))
    own = _job_seconds(job, best, float("inf"))
    return f"build, calibration and join take about {own:,.1f} s; the best of the others: {slower or 'none'}"
