"""Lists that are renewed: as far down as they are called exact, they are; and their bounds hold."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.knn.update_lists import bound_lists, concat_lists, move_lists, update_lists
from nearcast.types import Neighbors


def best_of(day, ids, width):
    """One list: the best of these ids by their scores on a day; positions are those among all ids of the day."""
    order = sorted(day)
    ranked = sorted(ids, key=lambda one: (-day[one], one))[:width]
    best = Neighbors.empty(1, width)
    best.positions[0, : len(ranked)] = [order.index(one) for one in ranked]
    best.scores[0, : len(ranked)] = [day[one] for one in ranked]
    return best


def renewed(known, before, day, width):
    old, new = sorted(before), sorted(day)
    stays = {i for i in old if day.get(i) == before[i]}
    positions = [[new.index(old[p]) if p >= 0 and old[p] in stays else -1 for p in known.best.positions[0]]]
    edge = int(known.bound_edges[0])
    edges = [sum(i < old[edge] for i in new) if edge < len(old) else len(new)]
    moved = move_lists(known, np.array(positions, np.int64), np.array(edges))
    return update_lists(moved, best_of(day, [i for i in new if i not in stays], width), width)


# One query; an id's score stands for its vector. Few scores: ties everywhere.
days = st.dictionaries(st.integers(0, 11), st.integers(0, 2), max_size=12)


@settings(max_examples=1_500, deadline=None)
@given(st.lists(days, min_size=2, max_size=4), st.integers(1, 2), st.integers(1, 4))
def test_what_is_called_exact_is_and_what_is_left_out_is_beyond_the_bound(days, k, surplus):
    width = k + surplus
    known = bound_lists(best_of(days[0], days[0], width))
    for before, day in pairwise(days):
        known = renewed(known, before, day, width)
        true = best_of(day, day, k)
        if known.complete(k)[0]:
            assert known.best.positions[0, :k].tolist() == true.positions[0].tolist()
            assert known.best.scores[0, :k].tolist() == true.scores[0].tolist()
        listed = {sorted(day)[p] for p in known.best.positions[0] if p >= 0}
        for place, one in enumerate(sorted(day)):
            score, edge = known.bound_scores[0], known.bound_edges[0]
            assert one in listed or day[one] < score or (day[one] == score and place >= edge)


def test_a_tie_with_the_bound_is_taken_only_before_what_was_left_out():
    before = {1: 5.0, 2: 4.0, 6: 4.0}  # 6 is left out of a list of two
    known = bound_lists(best_of(before, before, 2))
    gone = {6: 4.0}
    assert not renewed(known, before, gone | {7: 4.0}, 2).complete(1)[0]  # 6 comes before 7, and is not known
    sooner = renewed(known, before, gone | {3: 4.0}, 2)
    assert sooner.complete(1)[0]
    assert sooner.best.positions[0].tolist() == [0, -1]


def test_a_list_of_all_there_is_stays_whole_whatever_goes():
    before = {1: 5.0, 2: 4.0}
    known = bound_lists(best_of(before, before, 3))
    assert renewed(known, before, {2: 4.0}, 3).complete(2)[0]
    assert renewed(known, before, {}, 3).complete(2)[0]


def test_lists_of_several_sets_are_put_in_order():
    first, second = (bound_lists(best_of({i: 1.0, 9: 0.0}, [i, 9], 2)) for i in (1, 2))
    both = concat_lists([first, second], np.array([1, 0]))
    assert both.best.positions.shape == (2, 2)
    assert both.rows(np.array([0])).best.scores.tolist() == second.best.scores.tolist()
