from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

import reference
from builders import METRICS, JoinCase, join_cases
from nearcast.knn import scores as scores_module
from nearcast.knn.scores import norms, pair_scores, rescore, top_scores
from nearcast.types import ArrayVectors, Metric


def bits(scores):
    return np.ascontiguousarray(scores, np.float32).view(np.int32).tolist()


def every_pair(case):
    q, x = np.divmod(np.arange(case.n * case.m), case.m)
    return pair_scores(case.queries[q], case.items[x], Metric(case.metric)).reshape(case.n, case.m)


@pytest.mark.parametrize(
    ("metric", "score"), [("inner_product", 3 * 1 + 4 * 2), ("l2", -(2**2 + 2**2)), ("cosine", 11 / (5 * 5**0.5))]
)
def test_a_score_is_what_one_computes_by_hand(metric, score):
    found = pair_scores(np.array([[3.0, 4.0]]), np.array([[1.0, 2.0]]), Metric(metric))
    assert found.dtype == np.float32
    assert found.tolist() == [np.float32(score)]


def test_the_order_of_additions_is_that_of_sixteen_lanes_and_a_tree():
    # 1 + 2**-53 is 1 in float64, but two such halves in one lane add up before they meet the 1 in another.
    query = np.zeros((1, 33))
    query[0, [0, 1, 17]] = 1.0, 2.0**-53, 2.0**-53
    in_lanes = pair_scores(query, np.ones((1, 33)), Metric.INNER_PRODUCT)
    assert in_lanes[0] == np.float32(reference.lane_sum(query[0], np.ones(33)))
    assert reference.lane_sum(query[0], np.ones(33)) == 1.0 + 2.0**-52
    assert float(np.cumsum(query[0])[-1]) == 1.0


@settings(max_examples=40)
@given(join_cases(most_items=60, most_work=40_000))
def test_scores_follow_the_definition_to_the_last_bit(case: JoinCase):
    assert bits(every_pair(case)) == bits(reference.all_scores(case.queries, case.items, case.metric))


@settings(max_examples=15)
@given(join_cases(most_items=12, most_work=3_000))
def test_the_reference_that_works_on_all_pairs_agrees_with_the_one_in_plain_python(case: JoinCase):
    plain = [[reference.pair_score(q, x, case.metric) for x in case.items] for q in case.queries]
    assert bits(reference.all_scores(case.queries, case.items, case.metric)) == bits(plain)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 15, 16, 17, 128, 300])
def test_a_score_does_not_depend_on_how_many_pairs_are_scored_with_it(metric, dim, monkeypatch):
    rng = np.random.default_rng(dim)
    queries, items = rng.normal(size=(2, 57, dim)).astype(np.float32)
    together = pair_scores(queries, items, Metric(metric))
    alone = [pair_scores(queries[i : i + 1], items[i : i + 1], Metric(metric))[0] for i in range(57)]
    monkeypatch.setattr(scores_module, "PAIR_BYTES", 1)
    in_small_steps = pair_scores(queries, items, Metric(metric))
    assert bits(together) == bits(alone) == bits(in_small_steps)


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8"])
@pytest.mark.parametrize("metric", METRICS)
def test_narrow_vectors_score_as_the_same_numbers_in_float32_do(dtype, metric):
    rng = np.random.default_rng(3)
    queries, items = rng.integers(0, 128, (2, 20, 33)).astype(dtype)
    narrow = pair_scores(queries, items, Metric(metric))
    wide = pair_scores(queries.astype(np.float32), items.astype(np.float32), Metric(metric))
    assert bits(narrow) == bits(wide)


def test_products_of_bytes_do_not_overflow():
    full = np.full((1, 300), 255, np.uint8)
    low = np.full((1, 300), -128, np.int8)
    assert pair_scores(full, full, Metric.INNER_PRODUCT).tolist() == [300 * 255 * 255]
    assert pair_scores(low, low, Metric.INNER_PRODUCT).tolist() == [300 * 128 * 128]
    assert pair_scores(np.zeros_like(full), full, Metric.L2).tolist() == [-300 * 255 * 255]


def test_squares_of_float16_do_not_overflow():
    large = np.full((1, 4), 60_000, np.float16)
    assert pair_scores(large, -large, Metric.L2).tolist() == [np.float32(-4 * 120_000.0**2)]


def test_the_cosine_of_a_zero_vector_with_anything_is_zero():
    rows = np.array([[0.0, 0.0], [1.0, 2.0]], np.float32)
    assert pair_scores(rows[[0, 0, 1]], rows[[0, 1, 0]], Metric.COSINE).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("metric", METRICS)
def test_copies_of_an_item_tie_exactly(metric):
    rng = np.random.default_rng(5)
    query, item = rng.normal(size=(2, 1, 77)).astype(np.float32)
    scores = pair_scores(np.repeat(query, 100, 0), np.repeat(item, 100, 0), Metric(metric))
    assert len(set(bits(scores))) == 1


def test_a_vector_is_at_distance_zero_from_itself_and_at_cosine_one():
    rows = np.random.default_rng(6).normal(size=(50, 99)).astype(np.float32)
    assert pair_scores(rows, rows, Metric.L2).tolist() == [0.0] * 50
    assert pair_scores(rows, rows, Metric.COSINE).tolist() == [1.0] * 50


def test_norms_are_euclidean_lengths():
    assert norms(np.array([[3, 4], [0, 0], [5, 12]], np.int8)).tolist() == [5.0, 0.0, 13.0]


def test_scoring_no_pairs_gives_no_scores():
    assert pair_scores(np.empty((0, 3)), np.empty((0, 3)), Metric.L2).tolist() == []


def test_rescore_puts_a_list_in_order_and_leaves_empty_slots_empty():
    items = ArrayVectors(np.array([[0.0], [1.0], [2.0], [1.0]], np.float32))
    found = rescore(np.array([[1.0]], np.float32), items, np.array([[-1, 2, 3, 0, 1]]), Metric.INNER_PRODUCT)
    assert found.positions.tolist() == [[2, 1, 3, 0, -1]]
    assert found.scores.tolist() == [[2.0, 1.0, 1.0, 0.0, -np.inf]]


def test_top_scores_gives_a_tie_to_the_smaller_position_and_puts_empty_slots_last():
    positions = np.array([[9, -1, 4, 7]])
    found = top_scores(positions, np.array([[0.5, -np.inf, 0.5, 0.9]], np.float32), 3)
    assert found.positions.tolist() == [[7, 4, 9]]
    found = top_scores(positions, np.array([[0.5, -np.inf, 0.5, 0.9]], np.float32), 4)
    assert found.positions.tolist() == [[7, 4, 9, -1]]
