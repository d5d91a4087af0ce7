"""What is usual, and which alert is the cause of the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.monitoring.alert import CHECKS, Alert
from nearcast.monitoring.expected_range import estimate_range
from nearcast.monitoring.root_causes import CONSEQUENCES, fold_consequences
from nearcast.monitoring.staleness import estimate_refresh_interval


def alert(check: str) -> Alert:
    return Alert(check, f"{check} is wrong", 1.0, 0.5, 0.4)


def test_nothing_is_usual_before_three_values() -> None:
    assert estimate_range([1.0, 1.0], floor=0.1) is None
    assert estimate_range([1.0, 1.0, 1.0], floor=0.1) is not None


def test_a_value_is_judged_by_the_median_and_one_odd_day_does_not_move_it() -> None:
    common = estimate_range([0.9, 0.91, 0.1, 0.9, 0.89], floor=0.05)
    assert common is not None
    assert common.value == 0.9
    assert common.find_bound(0.7, "lower") is not None
    assert common.find_bound(0.86, "lower") is None
    assert common.find_bound(1.2, "lower") is None
    assert common.find_bound(1.2, "either") is not None


def test_what_varies_much_is_allowed_to() -> None:
    steady, wild = [100.0, 101, 99, 100, 100], [100.0, 60, 150, 90, 120]
    assert estimate_range(steady, floor=1).find_bound(130, "higher") is not None
    assert estimate_range(wild, floor=1).find_bound(130, "higher") is None


@settings(max_examples=100)
@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=20), st.floats(0.01, 10))
def test_the_usual_value_itself_is_never_unusual(before, floor) -> None:
    common = estimate_range(before, floor=floor)
    assert common.find_bound(common.value, "either") is None
    assert common.find_bound(common.value + 2 * common.allowed + 1, "lower") is None


def test_a_year_of_nights_of_noise_says_nothing() -> None:
    rng = np.random.default_rng(1)
    spoken = 0
    for _ in range(20):
        values = rng.normal(0.9, 0.01, size=365).tolist()
        for night in range(20, 365):
            common = estimate_range(values[night - 20 : night], floor=0.0)
            spoken += common.find_bound(values[night], "either") is not None
    assert spoken / (20 * 345) < 0.001  # with no floor at all


def test_a_cause_names_what_follows_from_it_and_the_rest_stays() -> None:
    found = fold_consequences([alert("overlap"), alert("queries_model"), alert("scores"), alert("age")])
    assert [a.check for a in found] == ["queries_model", "age"]
    assert found[0].follows == ("overlap", "scores")


def test_a_cause_that_follows_from_another_takes_nothing_with_it() -> None:
    found = fold_consequences([alert("queries_zeros"), alert("queries_norms"), alert("slice")])
    assert [a.check for a in found] == ["queries_zeros", "slice"]  # the slice tells which ones are zeros


def test_without_a_cause_every_alert_speaks() -> None:
    assert [a.check for a in fold_consequences([alert("overlap"), alert("dead")])] == ["overlap", "dead"]


def test_every_name_of_causes_is_a_check() -> None:
    for cause, names in CONSEQUENCES.items():
        assert cause in CHECKS
        assert set(names) <= set(CHECKS), cause


def test_causes_never_fold_each_other() -> None:
    assert not [(a, b) for a in CONSEQUENCES for b in CONSEQUENCES if a in CONSEQUENCES[b] and b in CONSEQUENCES[a]]


def test_the_refresh_interval_is_how_long_recall_takes_to_decay() -> None:
    day = 86_400.0
    assert estimate_refresh_interval(2 * day, 1.0, 0.81, 0.9) == pytest.approx(day)  # a tenth a day
    assert estimate_refresh_interval(day, 0.95, 0.95, 0.85) is None  # it has not decayed
    assert estimate_refresh_interval(0, 1.0, 0.9, 0.8) is None
    assert estimate_refresh_interval(600, 1.0, 0.99, 0.9) is None  # ten minutes tell nothing of days
    assert estimate_refresh_interval(day, 0.9, 0.8, 0.95) is None  # it never was that good
    assert estimate_refresh_interval(day, 1.0, 1 - 1e-12, 0.5) == 365 * day
