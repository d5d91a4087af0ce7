"""Many lists as one: what each list is promised, what comes first, and that nothing is repeated."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.serve.merge_lists import RANK_OFFSET, allocate_quotas, merge_lists


def merged(lists, weights, k, by="rank"):
    """Lists of (item, score), best first; returns the merged items, and what was promised."""
    names = list(dict.fromkeys(item for row in lists for item, _ in row))
    numbers = np.array([names.index(item) for row in lists for item, _ in row], np.int64)
    scores = np.array([score for row in lists for _, score in row], np.float32)
    offsets = np.append(0, np.cumsum([len(row) for row in lists])).astype(np.int64)
    found = merge_lists(offsets, numbers, scores, np.array(weights, np.float64), k, by)
    return [names[number] for number in found.items], found


def ranked(text):
    """The letters of a text as a list with falling scores."""
    return [(letter, float(len(text) - place)) for place, letter in enumerate(text)]


def test_one_list_stays_as_it_is():
    assert merged([ranked("abcd")], [3], k=3)[0] == ["a", "b", "c"]


def test_what_several_lists_hold_comes_before_what_one_holds():
    assert merged([ranked("ax"), ranked("bx")], [1, 1], k=3)[0] == ["x", "a", "b"]


def test_by_rank_an_item_is_worth_the_sum_of_weight_over_sixty_and_its_rank():
    _, found = merged([ranked("ab"), ranked("b")], [3, 1], k=2)
    of_a, of_b = 0.75 / (RANK_OFFSET + 1), 0.75 / (RANK_OFFSET + 2) + 0.25 / (RANK_OFFSET + 1)
    assert np.allclose(found.values, [of_b, of_a])


def test_by_score_lists_are_compared_on_one_scale_whatever_it_is():
    left, right = [("a", 1.0), ("b", 0.0)], [("c", 0.5)]
    for scale, shift in ((1, 0), (100, 0), (1, -9)):
        moved = [[(item, scale * score + shift) for item, score in row] for row in (left, right)]
        names, found = merged(moved, [1, 1], k=3, by="score")
        assert names == ["a", "c", "b"]
        assert np.allclose(found.values, [0.5, 0.25, 0.0])


def test_scores_that_are_all_equal_are_merged_by_weight():
    assert merged([[("a", 2.0)], [("b", 2.0)]], [1, 3], k=2, by="score")[0] == ["b", "a"]


def test_equal_values_keep_the_order_of_first_appearance():
    assert merged([ranked("a"), ranked("b"), ranked("c")], [1, 1, 1], k=3)[0] == ["a", "b", "c"]


def test_a_light_key_keeps_its_share_where_the_heavy_one_would_take_everything():
    names, found = merged([ranked("abcdefghij"), ranked("z")], [9, 1], k=10)
    assert found.quotas.tolist() == [9, 1]
    assert "z" in names
    assert len(names) == 10


def test_places_that_rounding_leaves_go_to_who_lost_most_by_it():
    assert allocate_quotas(np.array([5.4, 2.5, 2.1]), 10).tolist() == [5, 3, 2]
    assert allocate_quotas(np.array([8.0, 0.7, 0.6, 0.7]), 10).tolist() == [8, 1, 0, 1]


def test_of_equal_losses_the_first_is_rounded_up():
    assert allocate_quotas(np.array([19.0, 1.0]), 10).tolist() == [10, 0]
    assert allocate_quotas(np.full(5, 1.0), 3).tolist() == [1, 1, 1, 0, 0]


def test_a_heavy_key_does_not_take_the_places_of_many_light_ones():
    lists = [ranked("abcdefgh"), *(ranked(letter) for letter in "pqrstuv")]
    names, found = merged(lists, [3, 1, 1, 1, 1, 1, 1, 1], k=5)
    assert found.quotas.tolist() == [2, 1, 1, 1, 0, 0, 0, 0]
    assert names == ["a", "b", "p", "q", "r"]


def test_a_share_that_is_whole_is_not_lost_to_the_last_bit_of_a_division():
    for parts in range(1, 200):
        assert allocate_quotas(np.full(parts, 0.1), parts).tolist() == [1] * parts


def test_a_list_without_candidates_leaves_its_share_to_the_others():
    assert merged([ranked("abcd"), []], [1, 9], k=4)[1].quotas.tolist() == [4, 0]


def test_no_lists_and_empty_lists_are_an_empty_answer():
    assert merged([], [], k=5)[0] == []
    assert merged([[], []], [1, 2], k=5)[0] == []


ITEMS = st.lists(st.integers(0, 30), unique=True, max_size=12)
SCORED = ITEMS.flatmap(
    lambda items: st.lists(
        st.floats(-1e3, 1e3, width=32), min_size=len(items), max_size=len(items)
    ).map(lambda scores: list(zip(items, sorted(scores, reverse=True), strict=True)))
)  # fmt: skip
CASES = st.lists(st.tuples(SCORED, st.integers(1, 50)), max_size=8)


@settings(max_examples=400)
@given(CASES, st.integers(1, 25), st.sampled_from(["rank", "score"]))
def test_every_list_has_the_best_of_its_share_in_an_answer_without_repetition(case, k, by):
    lists, weights = [row for row, _ in case], [weight for _, weight in case]
    names, found = merged(lists, weights, k, by)
    everything = {item for row in lists for item, _ in row}
    assert len(set(names)) == len(names) == min(k, len(everything))
    assert set(names) <= everything
    assert (np.diff(found.values) <= 0).all()
    total = sum(weight for row, weight in case if row)
    assert found.quotas.sum() == (k if everything else 0)
    for row, weight, promised in zip(lists, weights, found.quotas.tolist(), strict=True):
        share = Fraction(k * weight, total) if row else Fraction(0)
        assert math.floor(share) <= promised <= math.ceil(share)
        assert {item for item, _ in row[:promised]} <= set(names)


@given(CASES, st.integers(1, 25), st.sampled_from(["rank", "score"]), st.floats(0.01, 100))
def test_only_the_ratio_of_weights_matters(case, k, by, factor):
    lists, weights = [row for row, _ in case], [weight for _, weight in case]
    here, there = merged(lists, weights, k, by), merged(lists, [factor * weight for weight in weights], k, by)
    assert here[1].quotas.tolist() == there[1].quotas.tolist()
    assert np.allclose(here[1].values, there[1].values)
