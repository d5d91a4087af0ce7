"""An item in at most so many lists: against matching one proposal at a time, and by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.errors import SpecError
from nearcast.join import spill_exposure as spilled
from nearcast.knn.exposure import cap_exposure, find_admitted
from nearcast.types import Neighbors


def wanted(*rows, m):
    """Candidates from rows of {position: score}, best first, as wide as the longest."""
    found = Neighbors.empty(len(rows), max((len(row) for row in rows), default=0))
    for number, row in enumerate(rows):
        for slot, (position, score) in enumerate(sorted(row.items(), key=lambda pair: (-pair[1], pair[0]))):
            found.positions[number, slot], found.scores[number, slot] = position, score
    assert (found.positions < m).all()
    return found


def one_proposal_at_a_time(rows, k, most, seed):
    """Deferred acceptance as the textbook has it, in a random order of queries."""
    rng = np.random.default_rng(seed)
    wishes = [sorted(row, key=lambda item, row=row: (-row[item], item)) for row in rows]
    nexts, held = [0] * len(rows), {}
    lists = [set() for _ in rows]
    while free := [q for q in range(len(rows)) if len(lists[q]) < k and nexts[q] < len(wishes[q])]:
        query = int(rng.choice(free))
        item = wishes[query][nexts[query]]
        nexts[query] += 1
        suitors = [*held.get(item, []), query]
        suitors.sort(key=lambda q, item=item: (-rows[q][item], q))
        lists[query].add(item)
        for refused in suitors[most:]:
            lists[refused].discard(item)
        held[item] = suitors[:most]
    return [
        sorted(chosen, key=lambda item, row=row: (-row[item], item)) for chosen, row in zip(lists, rows, strict=True)
    ]


@st.composite
def wishes(draw):
    """Queries that want some of few items, with scores that often tie."""
    m = draw(st.integers(1, 6))
    scores = st.integers(-2, 2).map(float)
    return m, draw(st.lists(st.dictionaries(st.integers(0, m - 1), scores), min_size=1, max_size=7))


@settings(max_examples=300, deadline=None)
@given(made=wishes(), k=st.integers(1, 4), most=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_lists_are_those_of_a_matching_in_any_order_of_proposals(made, k, most, seed):
    m, rows = made
    capped = cap_exposure(wanted(*rows, m=m), k, most, n_items=m)
    got = [[p for p in row if p >= 0] for row in capped.lists.positions.tolist()]
    assert got == one_proposal_at_a_time(rows, k, most, seed)
    for number, row in enumerate(got):
        assert capped.lists.scores[number, : len(row)].tolist() == [rows[number][item] for item in row]
        assert (capped.lists.scores[number, len(row) :] == -np.inf).all()
    counts = np.bincount([p for row in got for p in row], minlength=m)
    assert counts.max() <= most
    assert capped.full_items == np.count_nonzero(counts == most)


@settings(max_examples=200, deadline=None)
@given(made=wishes(), k=st.integers(1, 4), most=st.integers(1, 4))
def test_the_bars_alone_give_every_query_its_list_again(made, k, most):
    m, rows = made
    found = wanted(*rows, m=m)
    capped = cap_exposure(found, k, most, n_items=m)
    numbers = np.arange(len(rows))
    through = find_admitted(found.positions, found.scores, numbers, capped.thresholds)
    for row, own, kept in zip(found.positions, through, capped.lists.positions.tolist(), strict=True):
        assert row[own][:k].tolist() == [p for p in kept if p >= 0]


@settings(max_examples=60, deadline=None)
@given(made=wishes(), k=st.integers(1, 4), most=st.integers(1, 4), rows=st.integers(1, 4), held=st.integers(1, 9))
def test_with_its_state_in_files_a_matching_is_the_same_in_every_figure(tmp_path_factory, made, k, most, rows, held):
    m, found = made[0], wanted(*made[1], m=made[0])
    n, width = found.positions.shape
    capped, lists, folder = (
        cap_exposure(found, k, most, n_items=m),
        Neighbors.empty(n, k),
        tmp_path_factory.mktemp("cap"),
    )

    def read(start, stop):
        return Neighbors(found.positions[start:stop], found.scores[start:stop])

    def write(start, stop, part):
        lists.positions[start:stop], lists.scores[start:stop] = part.positions, part.scores

    with pytest.MonkeyPatch.context() as patched:  # a few queries a block, a few items a range, two proposals at a time
        patched.setattr(spilled, "PAIR_BYTES", 64)
        patched.setattr(spilled, "SORT_BYTES", 64 * rows * max(1, width) // held or 1)
        patched.setattr(spilled, "LARGEST_BLOCK", max(2, rows * width))
        again = spilled.spill_exposure(read, write, (n, width, m), (k, most), folder, 2 * 64 * rows * max(1, width))
    assert lists.positions.tolist() == capped.lists.positions.tolist()
    assert lists.scores.tolist() == capped.lists.scores.tolist()
    assert np.load(folder / "thresholds" / "scores.npy").tolist() == capped.thresholds.scores.tolist()
    assert np.load(folder / "thresholds" / "queries.npy").tolist() == capped.thresholds.queries.tolist()
    for figure in ("score_lost", "fill_lost", "full_items", "rounds"):
        assert getattr(again, figure) == getattr(capped, figure), figure
    assert [path.name for path in folder.iterdir()] == ["thresholds"]


def test_an_item_stays_with_the_queries_that_score_it_highest():
    rows = [{0: 0.9, 1: 0.5}, {0: 0.8, 1: 0.7}, {0: 0.7, 2: 0.1}]
    capped = cap_exposure(wanted(*rows, m=3), 1, 2, n_items=3)
    assert capped.lists.positions.tolist() == [[0], [0], [2]]
    assert capped.score_lost == pytest.approx((0.7 - 0.1) / 3)
    assert (capped.fill_lost, capped.full_items) == (0.0, 1)


def test_equal_scores_leave_the_item_to_the_smaller_query_position():
    capped = cap_exposure(wanted({0: 1.0}, {0: 1.0}, m=1), 1, 1, n_items=1)
    assert capped.lists.positions.tolist() == [[0], [-1]]
    assert (capped.score_lost, capped.fill_lost) == (0.0, 0.5)


def test_a_refusal_may_set_off_others():
    rows = [{0: 0.9}, {0: 0.8, 1: 0.7}, {1: 0.6, 2: 0.5}, {2: 0.4}]
    capped = cap_exposure(wanted(*rows, m=3), 1, 1, n_items=3)
    assert capped.lists.positions.tolist() == [[0], [1], [2], [-1]]
    assert capped.rounds == 4


def test_a_cap_that_nothing_reaches_changes_nothing():
    rng = np.random.default_rng(0)
    positions = np.argsort(rng.random((30, 50)), axis=1)[:, :8]
    scores = -np.sort(-rng.random((30, 8)), axis=1).astype(np.float32)
    capped = cap_exposure(Neighbors(positions, scores), 5, 30, n_items=50)
    assert capped.lists.positions.tolist() == positions[:, :5].tolist()
    assert (capped.score_lost, capped.fill_lost, capped.rounds) == (0.0, 0.0, 1)


def test_no_queries_and_empty_lists_are_capped_too():
    assert cap_exposure(Neighbors.empty(0, 3), 2, 1, n_items=4).lists.positions.shape == (0, 2)
    assert cap_exposure(Neighbors.empty(2, 3), 2, 1, n_items=4).lists.lengths.tolist() == [0, 0]


def test_a_cap_of_nothing_is_refused():
    with pytest.raises(SpecError, match=re.escape("exposure.max_lists_per_item is 0")):
        cap_exposure(Neighbors.empty(1, 1), 1, 0, n_items=1)
