"""How many candidates a query needs: against counting every outcome, against drawing outcomes, and by hand."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.errors import InputError, SpecError
from nearcast.overfetch.candidates_needed import Shortage, plan_lengths, plan_within
from nearcast.overfetch.survivor_probability import compute_curve, compute_probability, gather_survival

RATES = st.sampled_from((0.0, 0.05, 0.3, 0.5, 0.9, 1.0)) | st.floats(0, 1, width=32)


def lists(*rows):
    """Lists of positions of one width, -1 at the end."""
    return np.array(rows)


@st.composite
def offers(draw, most_items=8):
    """A few lists over a few items, with their survival and, perhaps, their groups."""
    m = draw(st.integers(1, most_items))
    survival = np.array(draw(st.lists(RATES, min_size=m, max_size=m)))
    groups = np.array(draw(st.lists(st.integers(-1, 2), min_size=m, max_size=m)))
    k, n = draw(st.integers(1, m)), draw(st.integers(1, 3))
    positions = np.full((n, k), -1)
    for row in range(n):
        chosen = draw(st.permutations(range(m)))[: draw(st.integers(0, k))]
        positions[row, : len(chosen)] = chosen
    return positions, survival, groups if draw(st.booleans()) else None


def chance_by_counting(row, survival, groups, at_least):
    """P(at least so many of these items survive), by adding up every outcome of every group and every item."""
    items = [int(p) for p in row if p >= 0]
    own = {i: -1 if groups is None else int(groups[i]) for i in items}
    alive = {g: max(survival[i] for i in range(len(survival)) if groups[i] == g) for g in set(own.values()) - {-1}}
    total = 0.0
    for fates in itertools.product((False, True), repeat=len(alive)):
        lives = dict(zip(alive, fates, strict=True))
        weight = np.prod([alive[g] if lives[g] else 1 - alive[g] for g in alive])
        rates = []
        for i in items:
            if own[i] == -1:
                rates.append(survival[i])
            elif lives[own[i]] and alive[own[i]] > 0:
                rates.append(survival[i] / alive[own[i]])
            else:
                rates.append(0.0)
        for outcome in itertools.product((0, 1), repeat=len(items)):
            if sum(outcome) >= at_least:
                total += weight * np.prod([r if o else 1 - r for r, o in zip(rates, outcome, strict=True)])
    return total


@settings(max_examples=150, deadline=None)
@given(made=offers(), at_least=st.integers(1, 5))
def test_the_curve_is_the_sum_over_every_outcome(made, at_least):
    positions, survival, groups = made
    curve = compute_curve(gather_survival(positions, survival, groups), at_least)
    for row, chances in zip(positions, curve, strict=True):
        for length, chance in enumerate(chances):
            assert chance == pytest.approx(chance_by_counting(row[:length], survival, groups, at_least), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(made=offers(), at_least=st.integers(1, 5), probability=st.sampled_from((0.5, 0.9, 0.95, 1.0)))
def test_a_plan_is_the_first_length_that_is_enough_and_all_there_is_where_none_is(made, at_least, probability):
    positions, survival, groups = made
    offered = gather_survival(positions, survival, groups)
    plan = plan_lengths(offered, at_least, probability)
    curve = compute_curve(offered, at_least)
    for row in range(len(positions)):
        enough = np.flatnonzero(curve[row] >= probability - 1e-12)
        if len(enough):
            assert (plan.lengths[row], plan.shortage[row]) == (enough[0], None)
        else:
            few = offered.lengths[row] < at_least
            assert plan.lengths[row] == offered.lengths[row]
            assert plan.shortage[row] == (Shortage.TOO_FEW_CANDIDATES if few else Shortage.TOO_FEW_SURVIVE)
        assert plan.probabilities[row] == pytest.approx(curve[row, plan.lengths[row]], abs=1e-9)
        stored = positions[row][: plan.lengths[row]]
        assert plan.expected[row] == pytest.approx(survival[stored[stored >= 0]].sum())


def test_drawing_outcomes_agrees_with_the_chance_computed():
    rng = np.random.default_rng(5)
    survival, groups = rng.random(60) * 0.6, rng.integers(-1, 6, 60)
    alive = np.array([survival[groups == g].max() for g in range(6)] + [1.0])
    positions = rng.permutation(60)[None, :]
    draws = 200_000
    lives = np.append(rng.random((draws, 6)) < alive[:6], np.ones((draws, 1), bool), axis=1)
    survived = lives[:, groups] & (rng.random((draws, 60)) < survival / alive[groups])
    for length in (10, 30, 60):
        drawn = (survived[:, positions[0, :length]].sum(axis=1) >= 10).mean()
        chance = compute_probability(gather_survival(positions, survival, groups), 10, np.array([length]))[0]
        assert chance == pytest.approx(drawn, abs=4 * np.sqrt(0.25 / draws))
    assert survived.mean(axis=0) == pytest.approx(survival, abs=0.01)  # a group leaves each item its own survival


def test_certain_survivors_need_no_surplus_and_halves_need_as_many_as_the_binomial_says():
    sure = plan_lengths(gather_survival(lists([0, 1, 2, 3]), np.ones(4)), 3, 0.95)
    assert sure.lengths.tolist() == [3]
    halves = plan_lengths(gather_survival(np.arange(20)[None, :], np.full(20, 0.5)), 2, 0.95)
    assert halves.lengths.tolist() == [8]  # 1 - (1 + 8) / 256 = 0.965, and 1 - (1 + 7) / 128 = 0.9375
    assert halves.expected.tolist() == [4.0]


def test_items_of_one_advertiser_all_survive_or_all_fail_when_they_are_alike():
    positions, survival = np.arange(12)[None, :], np.full(12, 0.9)
    alone = plan_lengths(gather_survival(positions, survival), 3, 0.98)
    one_advertiser = plan_lengths(gather_survival(positions, survival, np.zeros(12, np.int64)), 3, 0.98)
    assert alone.lengths.tolist() == [5]
    assert one_advertiser.lengths.tolist() == [12]
    assert one_advertiser.probabilities == pytest.approx([0.9])
    assert one_advertiser.shortage.tolist() == [Shortage.TOO_FEW_SURVIVE]


def test_two_advertisers_in_turn_need_less_than_one_after_the_other():
    survival = np.full(8, 0.8)
    groups = np.repeat([0, 1], 4)
    in_turn, in_rows = lists([0, 4, 1, 5, 2, 6, 3, 7]), lists([0, 1, 2, 3, 4, 5, 6, 7])
    lengths = [plan_lengths(gather_survival(p, survival, groups), 2, 0.95).lengths.tolist() for p in (in_turn, in_rows)]
    assert lengths == [[4], [6]]


def test_a_table_of_a_given_size_favours_queries_that_are_asked_for():
    offered = gather_survival(np.tile(np.arange(20), (2, 1)), np.full(20, 0.5))
    alike = plan_within(offered, 2, 16)
    busy = plan_within(offered, 2, 16, weights=np.array([100.0, 1.0]))
    assert alike.lengths.tolist() == [8, 8]
    assert busy.lengths[0] > busy.lengths[1]
    assert busy.lengths.sum() <= 16
    assert busy.expected_below(np.array([100.0, 1.0])) < alike.expected_below(np.array([100.0, 1.0]))


def test_a_query_that_needs_more_slots_than_the_table_has_left_says_so():
    plan = plan_within(gather_survival(np.tile(np.arange(20), (2, 1)), np.full(20, 0.5)), 2, 8, probability=0.95)
    assert plan.lengths.tolist() == [4, 4]
    assert plan.shortage.tolist() == [Shortage.TOO_FEW_SLOTS] * 2
    assert plan.n_short == 2


def test_what_every_query_keeps_is_kept_even_where_it_cannot_help():
    survival = np.append(np.full(10, 0.5), np.zeros(10))
    plan = plan_within(gather_survival(lists(range(10), range(10, 20)), survival), 3, 13, least=4)
    assert plan.lengths.tolist() == [9, 4]


def test_grouped_lists_are_planned_within_a_table_too():
    survival, groups = np.full(40, 0.9), np.repeat(np.arange(8), 5)
    offered = gather_survival(np.stack([np.arange(40), np.roll(np.arange(40), 20)]), survival, groups)
    plan = plan_within(offered, 5, 60)
    assert plan.lengths.sum() <= 60
    assert plan.probabilities == pytest.approx(compute_probability(offered, 5, plan.lengths))
    assert (plan.probabilities > 0.9).all()


def test_no_queries_make_an_empty_plan():
    nobody = gather_survival(np.empty((0, 5), np.int64), np.ones(3))
    for plan in (plan_lengths(nobody, 2, 0.9), plan_within(nobody, 2, 10)):
        assert (plan.lengths.tolist(), plan.n_short, plan.expected_below()) == ([], 0, 0.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gather_survival(lists([0]), np.array([1.2])), "a survival is 1.2; it is a probability"),
        (lambda: gather_survival(lists([0]), np.array([np.nan])), "a survival is nan"),
        (lambda: gather_survival(lists([0]), np.array([[0.5]]), np.array([0])), "needs group_survival"),
        (lambda: plan_lengths(gather_survival(lists([0]), np.ones(1)), 0, 0.9), "at_least is 0"),
        (
            lambda: plan_lengths(gather_survival(lists([0]), np.ones(1)), 1, 1.5),
            "probability must be in (0, 1], got 1.5",
        ),
        (lambda: plan_within(gather_survival(lists([0, 1]), np.ones(2)), 1, 1, least=2), "the table has 1 slots"),
    ],
)
def test_senseless_questions_name_the_value(call, words):
    with pytest.raises((SpecError, InputError), match=re.escape(words)):
        call()
