"""Recall by slice, by traffic and at several depths; regret; and what drift tells of vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.measure.drift import compare_sketches, find_repeats, sample_sketch_rows
from nearcast.measure.recall import estimate_recall, recall_at, recall_per_query, regret_per_query
from nearcast.measure.slices import (
    Slice,
    quarter_slices,
    rare_slices,
    slice_recalls,
    traffic_slices,
    value_slices,
)
from nearcast.types import ArrayVectors, Neighbors

EMPTY = -np.inf


def truth(*rows):
    values = np.array(rows, np.float32)
    return Neighbors(np.where(np.isfinite(values), 1, -1).astype(np.int64), values)


def found(*rows):
    return np.array(rows, np.float32)


def test_recall_at_a_depth_looks_at_the_first_of_both_lists():
    true, lists = truth([0.9, 0.8, 0.7]), found([0.9, 0.7, 0.6])
    assert recall_at(lists, true, 1).tolist() == [1.0]
    assert recall_at(lists, true, 2).tolist() == [0.5]
    assert recall_at(lists, true, 3).tolist() == recall_per_query(lists, true).tolist()


def test_regret_is_nothing_for_a_tie_all_for_an_empty_list_and_the_lost_share_between():
    assert regret_per_query(found([0.9, 0.7]), truth([0.9, 0.7])).tolist() == [0.0]
    assert regret_per_query(found([EMPTY, EMPTY]), truth([0.9, 0.7])).tolist() == [1.0]
    assert regret_per_query(found([1.0, 0.5]), truth([1.0, 1.0])).tolist() == [0.25]
    assert regret_per_query(found([-1.0, -3.0]), truth([-1.0, -2.0])).tolist() == [pytest.approx(1 / 3)]
    assert regret_per_query(found([1.0]), truth([1.0, 1.0])).tolist() == [0.5]


@settings(max_examples=60)
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=12), st.integers(0, 12))
def test_regret_is_a_share_and_nothing_where_nothing_was_missed(values, lost):
    best = sorted(values, reverse=True)
    true = truth(best)
    assert regret_per_query(found(best), true).tolist() == [0.0]
    left = [EMPTY if i < lost else value for i, value in enumerate(best)]
    assert 0.0 <= regret_per_query(found(left), true)[0] <= 1.0


def test_recall_by_traffic_counts_a_query_as_often_as_it_is_asked():
    weighted = estimate_recall(np.array([1.0, 0.0]), 1000, np.array([3.0, 1.0]))
    assert weighted.value == 0.75
    assert estimate_recall(np.ones(50), 1000, np.arange(50.0)).value == 1.0
    same = estimate_recall(np.array([1.0, 0.5, 0.8]), 1000)
    assert estimate_recall(np.array([1.0, 0.5, 0.8]), 1000, np.zeros(3)) == same


def test_the_interval_by_traffic_holds_the_true_value_in_93_of_100_samplings_of_heavy_tails():
    rng = np.random.default_rng(3)
    weights = rng.lognormal(0, 1, size=20_000)
    shares = rng.binomial(20, np.where(weights > 2, 0.97, 0.85)) / 20
    true = float(weights @ shares / weights.sum())
    held = 0
    for _ in range(1_000):
        rows = rng.choice(20_000, 800, replace=False)
        told = estimate_recall(shares[rows], 20_000, weights[rows])
        held += told.low <= true <= told.high
    assert held >= 930


def test_a_slice_below_the_promise_is_told_although_the_mean_is_fine():
    rng = np.random.default_rng(1)
    kinds = rng.integers(0, 10, size=2_000)
    shares = rng.binomial(10, np.where(kinds == 3, 0.7, 0.98)) / 10
    assert shares.mean() > 0.95
    slices = list(value_slices("kind", kinds, [f"kind {i}" for i in range(10)]))
    told = slice_recalls(slices, shares, np.ones(2_000), 100_000, promise=0.95)
    assert [part.value for part in told if part.below_promise] == ["kind 3"]


def test_of_many_slices_that_keep_their_promise_hardly_ever_one_is_called_below():
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(300):
        kinds = rng.integers(0, 20, size=2_000)
        shares = rng.binomial(10, 0.95, size=2_000) / 10
        slices = list(value_slices("kind", kinds, [str(i) for i in range(20)]))
        alarms += any(part.below_promise for part in slice_recalls(slices, shares, shares, 10**6, promise=0.95))
    assert alarms <= 0.05 * 300


def test_slices_of_few_queries_and_the_whole_sample_are_not_judged():
    slices = [Slice("a", "few", np.arange(100) < 19), Slice("a", "all", np.ones(100, bool))]
    assert slice_recalls(slices, np.ones(100), np.ones(100), 1000, promise=0.9) == []


def test_values_beyond_the_twenty_most_frequent_are_one_slice_and_missing_ones_another():
    codes = np.concatenate([np.repeat(np.arange(30), np.arange(31, 1, -1)), [-1, -1]])
    slices = list(value_slices("kind", codes, [f"{i}" for i in range(30)]))
    assert [s.value for s in slices[:2]] == ["0", "1"]
    assert [s.value for s in slices[-2:]] == ["(other)", "(none)"]
    assert sum(int(s.members.sum()) for s in slices) == len(codes)
    assert int(slices[-1].members.sum()) == 2


@settings(max_examples=60)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=80))
def test_quarters_hold_every_number_once(values):
    numbers = np.array([np.nan if v is None else v for v in values])
    members = np.array([s.members for s in quarter_slices("price", numbers)])
    assert (members.sum(axis=0) == 1).all()


def test_the_head_is_the_queries_that_take_half_of_the_traffic():
    head, tail = traffic_slices(np.array([1.0, 50.0, 1.0, 1.0, 47.0]))
    assert head.members.tolist() == [False, True, False, False, False]
    assert (head.members ^ tail.members).all()


def test_queries_that_few_are_like_are_a_slice_of_a_tenth_at_most():
    rng = np.random.default_rng(5)
    crowd = rng.normal(size=(20, 8))[rng.integers(0, 20, size=1_500)] + 0.05 * rng.normal(size=(1_500, 8))
    rare, common = rare_slices(crowd.astype(np.float32), seed=0)
    assert 0 < rare.members.sum() <= 150
    assert (rare.members ^ common.members).all()
    assert list(rare_slices(crowd[:100].astype(np.float32), seed=0)) == []


def test_drift_is_nothing_for_the_same_vectors_and_one_for_another_model():
    rng = np.random.default_rng(7)
    old = (rng.normal(size=(500, 16)) + 2).astype(np.float32)
    turn, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    places = np.arange(500)
    same = compare_sketches(old, old, places)
    turned = compare_sketches(old, (old @ turn).astype(np.float32), places)
    assert (same.drift, same.shift, len(same.changed)) == (pytest.approx(0, abs=1e-12), 0.0, 0)
    assert turned.drift > 0.3
    assert turned.shift > 0.5
    assert len(turned.changed) > 400


def test_longer_vectors_do_not_drift_and_zeroed_ones_have_changed():
    old = np.random.default_rng(7).normal(size=(100, 4)).astype(np.float32)
    new = old * 3
    new[:10] = 0
    told = compare_sketches(old, new, np.arange(100))
    assert told.drift == pytest.approx(0, abs=1e-6)
    assert told.changed.tolist() == list(range(10))


def test_sketches_that_share_no_ids_or_dimension_say_nothing_of_single_vectors():
    old = np.ones((50, 4), np.float32)
    assert np.isnan(compare_sketches(old, old, np.full(50, -1)).drift)
    assert compare_sketches(old, np.ones((50, 5), np.float32), np.arange(50)) is None
    assert compare_sketches(old[:0], old, np.empty(0, np.int64)) is None


def test_a_sketch_keeps_its_ids_and_fills_up_with_others():
    kept = np.arange(0, 4_000, 8)
    rows = sample_sketch_rows(5_000, kept, seed=0)
    assert len(rows) == 1024
    assert len(np.unique(rows)) == 1024
    assert set(kept) <= set(rows)
    assert sample_sketch_rows(10, np.empty(0, np.int64), seed=0).tolist() == list(range(10))


def test_copies_of_an_item_in_one_list_are_counted_and_ties_of_different_items_are_not():
    vectors = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.float32)
    positions = np.array([[0, 1, 3, 2], [0, 2, -1, -1]])
    scores = np.array([[1, 1, 1, 0], [0.5, 0.5, EMPTY, EMPTY]], np.float32)
    filled, repeated = find_repeats(positions, scores, ArrayVectors(vectors))
    assert filled.tolist() == [4, 2]
    assert repeated.tolist() == [2, 0]
