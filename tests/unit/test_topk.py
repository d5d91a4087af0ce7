from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.knn.topk import drop_excluded, gather_pairs, merge
from nearcast.types import Neighbors

EMPTY = -np.inf


def lists(positions, scores):
    return Neighbors(np.array(positions, np.int64), np.array(scores, np.float32))


def test_merge_gives_a_tie_to_the_smaller_position():
    merged = merge([lists([[7, 3]], [[0.9, 0.5]]), lists([[2, -1]], [[0.9, EMPTY]])], k=3)
    assert merged.positions.tolist() == [[2, 7, 3]]


def test_merge_does_not_depend_on_the_order_of_the_parts():
    left, right = lists([[7, 3]], [[0.9, 0.5]]), lists([[2, 4]], [[0.9, 0.5]])
    one, other = merge([left, right], k=4), merge([right, left], k=4)
    assert one.positions.tolist() == other.positions.tolist() == [[2, 7, 3, 4]]


def test_merge_fills_up_with_empty_slots_when_the_parts_hold_fewer_than_k():
    merged = merge([lists([[1]], [[0.5]]), lists([[-1]], [[EMPTY]])], k=4)
    assert merged.positions.tolist() == [[1, -1, -1, -1]]
    assert merged.scores.tolist() == [[0.5, EMPTY, EMPTY, EMPTY]]
    assert merged.lengths.tolist() == [1]


def test_gather_pairs_gathers_triples_in_any_order_into_the_best_of_each_query():
    found = gather_pairs(
        np.array([2, 0, 2, 0, 2]),
        np.array([5, 8, 1, 3, 9]),
        np.array([0.1, 0.7, 0.1, 0.7, 0.3], np.float32),
        n=3,
        k=2,
    )
    assert found.positions.tolist() == [[3, 8], [-1, -1], [9, 1]]
    assert found.scores[2].tolist() == [np.float32(0.3), np.float32(0.1)]


def test_gather_pairs_without_pairs_gives_empty_lists():
    nothing = np.empty(0, np.int64)
    found = gather_pairs(nothing, nothing, np.empty(0, np.float32), n=2, k=2)
    assert found.positions.tolist() == [[-1, -1], [-1, -1]]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(-2, 2)), unique_by=lambda t: t[:2]),
    st.integers(1, 6),
)
def test_gather_pairs_agrees_with_sorting_in_plain_python(triples, k):
    rows, positions, scores = ([t[i] for t in triples] for i in range(3))
    found = gather_pairs(
        np.array(rows, np.int64), np.array(positions, np.int64), np.array(scores, np.float32), n=4, k=k
    )
    for row in range(4):
        expected = sorted((-s, p) for r, p, s in triples if r == row)[:k]
        assert found.positions[row, : len(expected)].tolist() == [p for _, p in expected]
        assert found.scores[row, : len(expected)].tolist() == [-s for s, _ in expected]
        assert (found.positions[row, len(expected) :] == -1).all()


def test_drop_excluded_turns_lists_of_k_plus_one_into_full_lists_of_k():
    found = drop_excluded(lists([[4, 2, 9], [4, 2, 9]], [[3, 2, 1], [3, 2, 1]]), np.array([2, 8]), k=2)
    assert found.positions.tolist() == [[4, 9], [4, 2]]


def test_drop_excluded_with_minus_one_excludes_nothing_and_keeps_empty_slots():
    found = drop_excluded(lists([[4, -1]], [[3, EMPTY]]), np.array([-1]), k=2)
    assert found.positions.tolist() == [[4, -1]]


def test_drop_excluded_without_exclusions_cuts_or_widens_to_k():
    found = lists([[4, 2, 9]], [[3, 2, 1]])
    assert drop_excluded(found, None, k=2).positions.tolist() == [[4, 2]]
    assert drop_excluded(found, None, k=5).positions.tolist() == [[4, 2, 9, -1, -1]]
