from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from builders import METRICS, JoinCase, exact_join, join_cases
from nearcast.knn.exact_join import choose_blocks
from nearcast.knn.join_request import Resources
from nearcast.types import ArrayVectors, FileVectors, Metric


def assert_bitwise_equal(found, positions, scores):
    assert found.positions.dtype == np.int64
    assert found.scores.dtype == np.float32
    assert found.positions.tolist() == positions.tolist()
    assert found.scores.view(np.int32).tolist() == scores.view(np.int32).tolist()


def assert_agrees(case, **how):
    found = exact_join(case.queries, ArrayVectors(case.items), case.k, Metric(case.metric), exclude=case.exclude, **how)
    assert_bitwise_equal(found, *reference.join(case.queries, case.items, case.k, case.metric, case.exclude))


@settings(max_examples=400)
@given(
    join_cases(),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 1 << 20, 1 << 30]),  # one byte: the smallest blocks that there are
)
def test_lists_are_bitwise_those_of_the_reference_whatever_threads_and_memory(case: JoinCase, threads, memory_bytes):
    assert_agrees(case, threads=threads, memory_bytes=memory_bytes)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 7, 500])
def test_thousands_of_copies_of_one_item_are_listed_by_position(metric, k):
    rng = np.random.default_rng(1)
    items = np.repeat(rng.normal(size=(2, 24)), (2500, 1500), axis=0)[rng.permutation(4000)].astype(np.float32)
    case = JoinCase(1, 5, 4000, 24, k, metric, "float32", "float32", "copies", excludes=True)
    object.__setattr__(case, "items", items)
    assert_agrees(case, threads=2, memory_bytes=1 << 20)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_that_differ_in_their_last_bits_only_are_told_apart(metric):
    case = JoinCase(2, 8, 1500, 64, 20, metric, "float32", "float32", "nearly equal", excludes=False)
    assert_agrees(case, memory_bytes=1)


@pytest.mark.parametrize("seed", range(4))
def test_heavy_tailed_norms_do_not_drown_the_small_items(seed):
    assert_agrees(JoinCase(seed, 10, 1500, 32, 15, "inner_product", "float32", "float32", "heavy tails", False))
    assert_agrees(JoinCase(seed, 10, 1500, 32, 15, "l2", "float32", "float32", "heavy tails", False))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e17])
@pytest.mark.parametrize("metric", METRICS)
def test_very_short_and_very_long_vectors_are_ordered_right(scale, metric):
    rng = np.random.default_rng(4)
    items, queries = ((rng.normal(size=(n, 8)) * scale).astype(np.float32) for n in (300, 5))
    found = exact_join(queries, ArrayVectors(items), 9, Metric(metric))
    assert_bitwise_equal(found, *reference.join(queries, items, 9, metric))


@pytest.mark.parametrize("dim", [3, 129])
def test_float16_vectors_of_all_lengths_are_ordered_right(dim):
    rng = np.random.default_rng(6)
    items, queries = (
        (rng.normal(size=(n, dim)) * 2.0 ** rng.integers(-24, 13, (n, 1))).astype(np.float16) for n in (900, 40)
    )
    items[::90], items[1::3] = 0, items[::3]  # without direction; and the same ones twice
    found = exact_join(queries, ArrayVectors(items), 25, Metric.COSINE, memory_bytes=1)
    assert_bitwise_equal(found, *reference.join(queries, items, 25, "cosine"))


def test_all_inner_products_may_be_negative():
    found = exact_join(np.array([[1.0]], np.float32), ArrayVectors(-np.array([[3.0], [1.0], [2.0]], np.float32)), 2,
                       Metric.INNER_PRODUCT)  # fmt: skip
    assert found.positions.tolist() == [[1, 2]]
    assert found.scores.tolist() == [[-1.0, -2.0]]


def test_with_k_above_the_items_the_lists_end_in_empty_slots():
    found = exact_join(np.zeros((2, 1), np.float32), ArrayVectors(np.array([[1.0], [0.0]], np.float32)), 4, Metric.L2)
    assert found.positions.tolist() == [[1, 0, -1, -1]] * 2
    assert found.scores.tolist() == [[0.0, -1.0, -np.inf, -np.inf]] * 2
    assert found.lengths.tolist() == [2, 2]


def test_an_excluded_item_is_replaced_by_the_next_best():
    items = ArrayVectors(np.array([[0.0], [1.0], [2.0]], np.float32))
    found = exact_join(np.zeros((2, 1), np.float32), items, 2, Metric.L2, exclude=np.array([0, -1]))
    assert found.positions.tolist() == [[1, 2], [0, 1]]


def test_without_queries_or_items_the_lists_are_empty():
    none = np.empty((0, 3), np.float32)
    assert exact_join(none, ArrayVectors(np.ones((2, 3), np.float32)), 2, Metric.L2).positions.shape == (0, 2)
    found = exact_join(np.ones((2, 3), np.float32), ArrayVectors(none), 2, Metric.L2)
    assert found.positions.tolist() == [[-1, -1]] * 2


def test_items_in_a_file_give_the_same_lists_as_items_in_memory(tmp_path):
    case = JoinCase(5, 20, 900, 40, 6, "cosine", "float16", "float16", "gaussian", excludes=True)
    np.save(tmp_path / "items.npy", case.items)
    items = FileVectors.open(tmp_path / "items.npy")
    found = exact_join(case.queries, items, 6, Metric.COSINE, exclude=case.exclude, memory_bytes=1)
    assert_bitwise_equal(found, *reference.join(case.queries, case.items, 6, "cosine", case.exclude))


def test_progress_counts_up_to_all_queries():
    seen = []
    exact_join(np.ones((50, 2), np.float32), ArrayVectors(np.ones((3, 2), np.float32)), 1, Metric.L2, memory_bytes=1,
               progress=lambda *told: seen.append(told))  # fmt: skip
    assert seen[-1] == ("join", 50, 50)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_an_error_while_reading_items_is_passed_on():
    class Broken(ArrayVectors):
        def read(self, start, stop):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        exact_join(np.ones((50, 2), np.float32), Broken(np.ones((3, 2), np.float32)), 1, Metric.L2, threads=2)


def test_blocks_shrink_with_the_budget_and_stay_within_it():
    large, small = choose_blocks(64, 10, Resources(2, 1 << 30)), choose_blocks(64, 10, Resources(2, 16 << 20))
    assert small.query_rows < large.query_rows
    assert small.bytes_per_thread * 2 <= 4 << 20
    assert choose_blocks(64, 10, Resources(2, 1)).query_rows >= 1


def test_blocks_are_smaller_under_caps_since_all_pairs_of_the_first_one_may_stay():
    free, capped = (choose_blocks(64, 50, Resources(2, 300 << 20), capped=capped) for capped in (False, True))
    assert capped.query_rows * capped.item_rows < free.query_rows * free.item_rows
    assert capped.bytes_per_thread * 2 <= 75 << 20
