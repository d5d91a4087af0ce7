"""How work grows, how costs are scaled up, and what is suggested."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.engines.base import JoinRequest, JoinShape
from nearcast.measure.recall import Recall
from nearcast.tuning.job_cost import JobCost, build_and_join, estimate_cost, with_exact_time
from nearcast.tuning.optimize import first_configurations
from nearcast.tuning.scaling import EXACT_POINT, Configuration, Growth, build_work, query_work, scale_settings
from nearcast.tuning.trial import ReachedTarget, Trial, TuningJob
from nearcast.tuning.tune import estimate_growth
from nearcast.tuning.tuning_result import PricedTrial, TuningResult
from nearcast.types import Metric

DENSE = Configuration("dense", {"cells": 1_000})
IVF = Configuration("faiss-ivf", {"nlist": 1_000})
HNSW = Configuration("faiss-hnsw", {"m": 16, "ef_construction": 100})
LINEAR = Growth(power=0.5)


def trial(
    point: Configuration = DENSE, *, seconds: float = 1e-5, reached: tuple[ReachedTarget, ...] | None = None
) -> Trial:
    """A trial on 10,000 of 100,000 items."""
    kept = reached if reached is not None else (ReachedTarget(0.9, 0.91, {"reach": 100}, 900.0),)
    return Trial(point, 0.1, 10_000, 0.5, seconds, 0.9, kept, 1 << 20, 2.0)


def job(recall: float = 0.9) -> TuningJob:
    measure = SimpleNamespace(calibration=1_000)
    run = SimpleNamespace(spec=SimpleNamespace(measure=measure))
    return TuningJob(
        run, JoinShape(JoinRequest(Metric.INNER_PRODUCT, 10, recall), 100_000, 50_000, 32, 4), 1e-10, LINEAR
    )


def test_a_sample_has_as_many_items_in_a_cell_as_the_whole() -> None:
    assert scale_settings(DENSE, 0.1) == {"cells": 100}
    assert scale_settings(IVF, 0.5) == {"nlist": 500}
    assert scale_settings(EXACT_POINT, 0.1) == {"cells": 1}
    assert scale_settings(HNSW, 0.1) == dict(HNSW.settings)
    assert scale_settings(DENSE, 0.0001) == {"cells": 2}


@given(st.floats(0, 1), st.integers(10_001, 10**7))
def test_more_items_never_cost_a_query_less(power: float, n_items: int) -> None:
    growth = Growth(power)
    for point, effort, met in (
        (DENSE, {"reach": 1}, 500.0),
        (EXACT_POINT, {"exact": 1}, None),
        (IVF, {"nprobe": 9}, None),
        (HNSW, {"ef_search": 50}, None),
    ):
        few = query_work(point, 10_000, effort, met, 10_000, growth)
        assert query_work(point, n_items, effort, met, 10_000, growth) >= few
        assert build_work(point, n_items) > build_work(point, 10_000)


def test_a_query_never_meets_more_items_than_there_are() -> None:
    assert query_work(DENSE, 20_000, {"reach": 800}, 9_999.0, 10_000, Growth(power=5)) == 1_000 + 20_000
    assert query_work(IVF, 10_000, {"nprobe": 5_000}, None, 10_000, LINEAR) == 1_000 + 10_000


def test_a_trial_on_the_whole_is_its_own_prediction() -> None:
    whole = replace(trial(), share=1.0, sample_items=100_000)
    build, join = build_and_join(whole, 0.9, 100_000, 50_000, 1.0, LINEAR)
    assert build == pytest.approx(0.5)
    assert join == pytest.approx(50_000 * 1e-5)


def test_what_does_not_grow_is_not_scaled_up() -> None:
    _, grown = build_and_join(trial(), 0.9, 100_000, 1, 1.0, LINEAR)
    _, resting = build_and_join(trial(), 0.9, 100_000, 1, 1.0, replace(LINEAR, overhead=0.8e-5))
    assert 1e-5 < resting < grown


def test_a_promise_that_is_not_kept_has_no_cost() -> None:
    assert estimate_cost(job(), trial(), 0.99) is None
    assert estimate_cost(job(), trial(reached=()), 0.9) is None
    cost = estimate_cost(job(), trial(), 0.9)
    assert cost is not None
    assert cost.seconds == cost.build + cost.calibrate + cost.join
    assert cost.calibrate > 0


def test_a_point_whose_run_would_end_in_an_exact_join_costs_that() -> None:
    often, rarely = (trial(reached=(ReachedTarget(0.9, 0.91, {"reach": 100}, met),)) for met in (6_500.0, 4_000.0))
    linear = replace(job(), growth=Growth(power=1.0))  # as large a share of the whole as of the sample
    costs = [estimate_cost(linear, one, 0.9) for one in (often, rarely)]
    assert costs[0] is not None and costs[1] is not None  # noqa: PT018 (tells the type checker)
    assert costs[0].join == pytest.approx(linear.exact_seconds)
    assert costs[1].join != pytest.approx(linear.exact_seconds)


def test_cells_that_end_up_unused_never_look_cheaper_than_none() -> None:
    exact = trial(EXACT_POINT, reached=(ReachedTarget(0.9, 1.0, {"exact": 1}, None),))
    often = trial(reached=(ReachedTarget(0.9, 0.91, {"reach": 100}, 9_000.0),))
    for rate in (1e-12, 1e-8):  # of exact joins, by another clock
        told = with_exact_time(replace(job(), seconds_per_pair=rate, growth=Growth(power=1.0)), [often, exact])
        one, other = estimate_cost(told, exact, 0.9), estimate_cost(told, often, 0.9)
        assert one is not None
        assert other is not None
        assert other.join == one.join == told.exact_seconds
        assert one.seconds < other.seconds


def test_growth_is_told_by_what_two_samples_met() -> None:
    few = trial()
    many = replace(few, sample_items=20_000, reached=(ReachedTarget(0.9, 0.91, {"reach": 100}, 1_350.0),))
    assert estimate_growth(few, many, 0.9, default=0.6) == pytest.approx(0.585, abs=0.001)  # 1.5 times by doubling
    assert estimate_growth(few, replace(many, reached=()), 0.9, default=0.6) == 0.6
    fewer = replace(many, reached=(ReachedTarget(0.9, 0.91, {"reach": 100}, 100.0),))
    assert estimate_growth(few, fewer, 0.9, default=0.6) == 0.0


def test_an_exact_join_needs_no_calibration() -> None:
    exact = trial(EXACT_POINT, reached=(ReachedTarget(0.9, 1.0, {"exact": 1}, None),))
    cost = estimate_cost(job(), exact, 0.9)
    assert cost is not None
    assert cost.calibrate == 0
    assert cost.join == pytest.approx(50_000 * 1e-5 * 10)  # ten times the items


def test_trials_come_back_from_plain_data_as_they_were() -> None:
    assert Trial.from_dict(json.loads(json.dumps(trial().as_dict()))) == trial()


def test_every_engine_starts_at_its_defaults() -> None:
    names = [point.engine for point in first_configurations(["dense, exact", "dense", "faiss-hnsw"], 10_000)]
    assert names == ["dense", "dense", "faiss-hnsw"]


def test_the_frontier_leaves_out_what_a_higher_recall_costs_less_than() -> None:
    def found(costs: dict[float, float]) -> PricedTrial:
        return PricedTrial(trial(), {promise: JobCost(0, 0, seconds) for promise, seconds in costs.items()})

    steep, flat = found({0.8: 1.0, 0.9: 5.0, 0.99: 50.0}), found({0.8: 4.0, 0.9: 4.0, 0.99: 4.0})
    tuned = TuningResult(
        "g", 0.9, 1, 1, (steep, flat), (), flat, "", Recall(0.9, 0.9, 0.9, 1), None, 1.0, 1.0, 1.0, "avx2"
    )  # fmt: skip
    for old, new in (("promise", "target"), ("found", "trials")):
        with pytest.warns(DeprecationWarning, match=rf"TuningResult\.{old} is now TuningResult\.{new}"):
            assert getattr(tuned, old) == getattr(tuned, new)
    assert [(promise, best is flat) for promise, best in tuned.frontier] == [(0.8, False), (0.99, True)]
    assert tuned.lines == 'engine = "dense"\nengine_settings = { cells = 1000 }'
    assert json.loads(json.dumps(tuned.as_dict()))["frontier"][0]["seconds"] == 1.0
