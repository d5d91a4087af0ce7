from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.join import measure_snapshot
from nearcast.measure.appearances import AppearanceCounter, add_up_appearances
from nearcast.measure.measures import MEASURES, format_value
from nearcast.measure.recall import Recall, estimate_recall, recall_per_query, sample_rows
from nearcast.measure.table_parts import PartTally, measure_table
from nearcast.measure.tally import (
    MOST_SCORES,
    SCORE_SAMPLE,
    CountHistogram,
    PartSums,
    TableShape,
    gini,
    overlap_per_query,
)
from nearcast.table.candidate_schema import rows_per_group
from nearcast.types import ArrayVectors, Neighbors

EMPTY = -np.inf


def scores(*rows):
    return np.array(rows, np.float32)


def truth(*rows):
    """Lists of true scores; -inf is an empty slot."""
    values = scores(*rows)
    return Neighbors(np.where(np.isfinite(values), 1, -1).astype(np.int64), values)


def test_recall_is_the_share_of_true_slots_that_were_filled_as_well():
    found = scores([0.9, 0.8, 0.5, 0.4], [0.3, 0.2, 0.1, 0.0])
    true = truth([0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6])
    assert recall_per_query(found, true).tolist() == [0.5, 0.0]


def test_a_candidate_that_ties_with_the_worst_true_neighbor_counts():
    assert recall_per_query(scores([0.9, 0.7]), truth([0.9, 0.7])).tolist() == [1.0]
    assert recall_per_query(scores([0.7, 0.7, 0.7]), truth([0.7, 0.7])).tolist() == [1.0]


def test_a_tie_is_told_within_the_last_digit_of_float32_for_scores_of_any_size_and_sign():
    for size in (1e-6, 1.0, 1e6):
        for worst in (size, -size):
            near = worst - 0.5e-6 * size
            far = worst - 3e-6 * size
            assert recall_per_query(scores([near]), truth([worst])).tolist() == [1.0]
            assert recall_per_query(scores([far]), truth([worst])).tolist() == [0.0]


def test_more_good_candidates_than_true_slots_count_as_all_of_them():
    assert recall_per_query(scores([3, 2, 1]), truth([3, EMPTY, EMPTY])).tolist() == [1.0]


def test_short_truth_is_measured_by_its_own_length():
    assert recall_per_query(scores([3, EMPTY, EMPTY]), truth([3, 2, EMPTY])).tolist() == [0.5]


def test_a_query_without_true_neighbors_missed_nothing():
    assert recall_per_query(scores([EMPTY, EMPTY]), truth([EMPTY, EMPTY])).tolist() == [1.0]


def test_an_empty_list_has_recall_zero():
    assert recall_per_query(scores([EMPTY, EMPTY]), truth([2, 1])).tolist() == [0.0]


def test_lists_of_another_width_than_the_truth_can_be_measured():
    assert recall_per_query(scores([3]), truth([3, 2])).tolist() == [0.5]


@settings(max_examples=80)
@given(st.lists(st.sampled_from([0.0, 0.5, 0.9, 1.0]), min_size=1, max_size=50), st.integers(0, 10_000))
def test_the_interval_holds_the_mean_and_stays_within_zero_and_one(shares, more):
    found = estimate_recall(np.array(shares), len(shares) + more)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.value == pytest.approx(np.mean(shares))
    assert found.sample == len(shares)


def test_a_sample_of_all_queries_leaves_no_doubt():
    found = estimate_recall(np.array([1.0, 0.5, 1.0, 0.9]), 4)
    assert (found.low, found.value, found.high) == (0.85, 0.85, 0.85)


def test_a_sample_without_a_miss_does_not_prove_that_there_is_none():
    found = estimate_recall(np.ones(100), 1_000_000)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 / (1 + 1.96**2 / 100), abs=1e-4)  # Wilson's bound for 100 of 100


def test_a_sample_without_a_find_does_not_prove_that_nothing_is_found():
    found = estimate_recall(np.zeros(100), 1_000_000)
    assert (found.low, found.value) == (0.0, 0.0)
    assert 0.03 < found.high < 0.04


def test_the_interval_is_wilsons_where_each_query_has_one_slot():
    shares = np.array([1.0] * 90 + [0.0] * 10)
    found = estimate_recall(shares, 10**9)
    assert (found.low, found.high) == (pytest.approx(0.826, abs=2e-3), pytest.approx(0.945, abs=2e-3))


def test_the_interval_shrinks_with_the_sample_and_with_the_share_of_queries_that_it_is():
    shares = np.array([1.0, 0.9, 0.8, 1.0] * 25)

    def width(found):
        return found.high - found.low

    assert width(estimate_recall(np.tile(shares, 4), 10**6)) < width(estimate_recall(shares, 10**6))
    assert width(estimate_recall(shares, 150)) < width(estimate_recall(shares, 10**6))


def test_one_query_gives_a_wide_interval_and_none_gives_the_widest():
    one = estimate_recall(np.array([0.9]), 1000)
    assert one.high - one.low > 0.5
    assert estimate_recall(np.empty(0), 0) == Recall(1.0, 0.0, 1.0, 0)


@pytest.mark.parametrize(
    ("easy", "hard", "share_hard", "sample"),
    [(0.95, 0.6, 0.2, 200), (0.99, 0.5, 0.05, 500), (0.9, 0.9, 0.0, 100), (0.8, 0.1, 0.5, 50)],
)
def test_the_interval_holds_the_true_recall_in_95_of_100_samplings_of_clustered_misses(easy, hard, share_hard, sample):
    """Queries differ: a hard one misses many of its k slots at once, so slots are no independent trials."""
    rng = np.random.default_rng(17)
    n, k, samplings = 5_000, 20, 1_000
    chance = np.where(rng.random(n) < share_hard, hard, easy)
    every = rng.binomial(k, chance) / k
    true = every.mean()
    held = 0
    for _ in range(samplings):
        found = estimate_recall(every[rng.choice(n, sample, replace=False)], n)
        held += found.low <= true <= found.high
    assert held >= 0.93 * samplings


def test_samples_are_disjoint_sorted_and_reproducible():
    first, second = sample_rows(100, (30, 50), seed=3)
    assert (len(first), len(second)) == (30, 50)
    assert not set(first) & set(second)
    assert first.tolist() == sorted(first)
    assert second.tolist() == sample_rows(100, (30, 50), seed=3)[1].tolist()
    assert first.tolist() != sample_rows(100, (30, 50), seed=4)[0].tolist()


def test_where_there_are_too_few_rows_the_first_samples_are_served_first():
    assert [len(rows) for rows in sample_rows(10, (6, 6, 6), seed=0)] == [6, 4, 0]
    assert sample_rows(10, (10,), seed=0)[0].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("counts", "by_hand"),
    [
        ([5, 5, 5, 5], 0.0),
        ([0, 0, 0, 4], 0.75),  # one of four takes all: (n - 1) / n
        ([4, 0, 0, 0], 0.75),
        ([1, 3], 0.25),  # mean difference |1 - 3| over all four pairs is 1; half of it over the mean 2
        ([0, 0], 0.0),
        ([7], 0.0),
        ([], 0.0),
    ],
)
def test_gini_is_what_one_computes_by_hand(counts, by_hand):
    assert gini(np.array(counts, np.int64)) == pytest.approx(by_hand)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any))
def test_gini_is_half_the_mean_difference_of_all_pairs_over_the_mean(counts):
    values = np.array(counts, np.int64)
    pairs = np.abs(values[:, None] - values[None, :]).mean()
    assert gini(values) == pytest.approx(pairs / (2 * values.mean()))


def test_overlap_is_the_share_of_the_old_list_that_the_new_one_holds_in_any_order():
    old = np.array([[1, 2, 3, 4], [1, 2, -1, -1], [5, -1, -1, -1]])
    new = np.array([[4, 9, 1], [2, 1, 7], [1, 2, 3]])
    assert overlap_per_query(old, new).tolist() == [0.5, 1.0, 0.0]


def test_overlap_does_not_mix_up_the_lists_of_different_queries():
    assert overlap_per_query(np.array([[0, 1], [2, 3]]), np.array([[2, 3], [0, 1]])).tolist() == [0.0, 0.0]
    assert overlap_per_query(np.array([[0], [-1]]), np.array([[-1], [0]]))[0] == 0.0


def test_an_empty_old_list_has_no_overlap_to_speak_of():
    assert math.isnan(overlap_per_query(np.array([[-1, -1]]), np.array([[1, 2]]))[0])
    assert overlap_per_query(np.empty((0, 2), np.int64), np.empty((0, 3), np.int64)).tolist() == []


def tallied(folder, positions, values, *, n_items, k, n_input, n_rows=None, parts=(1,)):
    """Measures of a table of row groups, cut into parts of so many groups each."""
    positions, values = [np.array(group) for group in positions], [np.array(group, np.float32) for group in values]
    shape = TableShape(n_rows or sum(map(len, positions)), n_items, k, rows_per_group(k))
    sums, folders, group = PartSums(), [], 0
    for number, groups in enumerate(parts):
        tally = PartTally(folder / str(number), shape, group)
        for _ in range(groups):
            tally.add(positions[group], values[group], n_rows or len(positions[group]))
            group += 1
        sums += tally.save()
        folders.append(folder / str(number))
    return measure_table(shape, n_input, sums, folders)


def test_a_table_is_counted_by_hand(tmp_path):
    positions, values = [[0, 1], [0, -1], [-1, -1]], [[3, 2], [1, EMPTY], [EMPTY, EMPTY]]
    found = tallied(tmp_path, [positions], [values], n_items=4, k=2, n_input=5, n_rows=4)
    assert found["fill_rate"] == 3 / 8  # four rows of two slots; one row has no vector and so no list
    assert found["query_coverage"] == 2 / 5  # of the five rows of the input
    assert found["short_lists"] == 3
    assert found["item_coverage"] == 2 / 4
    assert found["exposure_gini"] == pytest.approx(gini(np.array([2, 1, 0, 0])))
    assert found["exposure_top1"] == 2 / 3
    assert (found["score_p50"], found["best_score_p50"]) == (2.0, 2.0)


@settings(max_examples=40)
@given(data=st.data(), n_items=st.integers(0, 60), groups=st.integers(0, 6), seed=st.integers(0, 99))
def test_a_table_has_the_same_measures_however_it_is_cut_into_parts(tmp_path_factory, data, n_items, groups, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 30, groups)
    positions = [rng.integers(-1, n_items, (size, 5)) for size in sizes]
    values = [np.where(p < 0, EMPTY, rng.normal(size=p.shape)).astype(np.float32) for p in positions]
    cuts = sorted({0, groups, *data.draw(st.lists(st.integers(0, groups), max_size=4))})
    several = [stop - start for start, stop in pairwise(cuts)]
    shape = {"n_items": n_items, "k": 5, "n_input": 300}
    whole = tallied(tmp_path_factory.mktemp("whole"), positions, values, **shape, parts=[groups])
    assert tallied(tmp_path_factory.mktemp("parts"), positions, values, **shape, parts=several) == whole


@given(st.lists(st.integers(0, 1_000), max_size=40))
def test_the_exposure_of_a_histogram_is_that_of_its_counts(counts):
    values, found = np.array(counts, np.int64), CountHistogram.of_counts(np.array(counts, np.int64))
    total, n = sum(counts), len(counts)
    by_definition = sum((2 * (i + 1) - n - 1) * x for i, x in enumerate(sorted(counts)))
    assert found.gini() == (float(Fraction(by_definition, n * total)) if total else 0.0)
    assert (found.n_items, found.appearances, found.n_appearing) == (n, total, np.count_nonzero(values))
    for most in (0, 1, n // 2, n + 1):
        assert found.heaviest(most) == sum(sorted(counts, reverse=True)[:most])


@settings(max_examples=40)
@given(
    range_items=st.integers(1, 9), n_items=st.integers(0, 30), calls=st.lists(st.integers(0, 40), max_size=5), dense=...
)
def test_appearances_are_counted_alike_in_any_ranges_and_any_calls(
    tmp_path_factory, range_items, n_items, calls, dense: bool
):
    rng = np.random.default_rng(len(calls))
    added = [rng.integers(0, n_items, size) if n_items else np.empty(0, np.int64) for size in calls]
    folder = tmp_path_factory.mktemp("appearances")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nearcast.measure.appearances.DENSE_ITEMS", 1_000 if dense else 0)
        counter = AppearanceCounter(folder, n_items, range_items)
        for positions in added:
            counter.add(positions)
        counter.save()
    found = add_up_appearances([folder, folder], n_items, range_items)
    expected = CountHistogram.of_counts(2 * np.bincount(np.concatenate([[], *added]).astype(int), minlength=n_items))
    assert (found.counts.tolist(), found.items.tolist()) == (expected.counts.tolist(), expected.items.tolist())
    assert sorted(path.name for path in (folder / "appearances").iterdir()) == ["counts.npy", "items.npy", "starts.npy"]


def test_the_sample_of_scores_of_a_large_table_is_bounded_and_spread_over_its_row_groups():
    for n_rows, k in ((10**4, 50), (10**9, 50), (10**9, 1_000), (10**10, 10_000)):
        group_rows = rows_per_group(k)
        shape = TableShape(n_rows, 10**8, k, group_rows)
        sampled = -(-n_rows // group_rows // shape.group_step) * -(-group_rows // shape.row_step) * k
        assert min(n_rows * k, SCORE_SAMPLE) // 2 <= sampled <= 3 * MOST_SCORES
        assert shape.group_step == 1 or n_rows * k > 10**10  # tables of one machine are sampled as they ever were


def test_an_empty_table_has_measures_and_no_score_quantiles(tmp_path):
    found = tallied(tmp_path, [], [], n_items=3, k=2, n_input=0, parts=[0])
    assert (found["fill_rate"], found["query_coverage"], found["item_coverage"]) == (0, 0, 0)
    assert "score_p50" not in found


def test_every_measure_that_is_computed_has_a_row_in_the_table(tmp_path):
    found = tallied(tmp_path, [[[0]]], [[[1.0]]], n_items=1, k=1, n_input=1)
    assert set(found) <= set(MEASURES)
    for name, row in MEASURES.items():
        assert row.name == name
        assert row.meaning


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("recall", 0.98765, "98.77%"),
        ("short_lists", 1234567, "1,234,567"),
        ("exposure_gini", 0.123456, "0.1235"),
        ("score_p50", -12.5, "-12.5"),
        ("overlap", None, "-"),
    ],
)
def test_a_measure_is_written_as_people_read_it(name, value, text):
    assert format_value(name, value) == text


@pytest.mark.parametrize("dim", [3, 32, 33, 100])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_close_items_are_found_by_their_first_components_and_lost_by_none(monkeypatch, dim, dtype):
    rng = np.random.default_rng(dim)
    items = rng.normal(size=(2_000, dim)) * (20 if dtype == "int8" else 1)
    items[100:900] = (
        items[3] * rng.uniform(0.5, 2, (800, 1)) + rng.normal(size=(800, dim)) * 0.2 * np.abs(items[3]).mean()
    )
    items[::7] = 0
    items = items.astype(dtype)
    probes = np.asarray(items[[3, 10, 150]], np.float32)
    monkeypatch.setattr(measure_snapshot, "BLOCK_BYTES", 4 * dim * 300)
    wide, directions = items.astype(np.float64), probes.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)[:, None] * np.linalg.norm(directions, axis=1)
    cosines = np.divide(wide @ directions.T, lengths, out=np.zeros_like(lengths), where=lengths > 0).max(axis=1)
    found = set(measure_snapshot._find_close(probes, ArrayVectors(items)).tolist())
    least = measure_snapshot.SAME_COSINE - measure_snapshot.COSINE_ERROR
    assert found >= set(np.flatnonzero(cosines >= least + 1e-5).tolist())
    assert found <= set(np.flatnonzero(cosines >= least - 1e-5).tolist())
    assert 20 < len(found) < 900
