"""Lists updated in one native pass are those that moving and merging gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.kernels import isa
from nearcast.kernels.renew_lists import renew_lists
from nearcast.knn.update_lists import KnownLists, move_lists, update_lists
from nearcast.types import Neighbors

pytestmark = pytest.mark.skipif(isa.isa_info().taken == isa.NUMPY, reason="without native kernels there is one way")


def sorted_lists(rng: np.random.Generator, choices: list[np.ndarray], width: int) -> Neighbors:
    """Lists of the best `width` of some items each. Few scores: ties everywhere."""
    best = Neighbors.empty(len(choices), width)
    for row, items in enumerate(choices):
        scores = rng.integers(0, 4, len(items)).astype(np.float32)
        order = np.lexsort((items, -scores))[:width]
        best.positions[row, : len(order)], best.scores[row, : len(order)] = items[order], scores[order]
    return best


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_one_pass_gives_what_moving_and_merging_gives(seed):
    rng = np.random.default_rng(seed)
    n, items, width = int(rng.integers(0, 6)), int(rng.integers(1, 20)), int(rng.integers(1, 8))
    places = np.sort(rng.choice(2 * items, items, replace=False))  # new items are at the other positions
    now = np.where(rng.random(items) < 0.8, places, -1)
    others = np.setdiff1d(np.arange(2 * items), places)
    known = sorted_lists(rng, [rng.permutation(items)[: rng.integers(0, items + 1)] for _ in range(n)], width)
    full = known.lengths == width
    bounds = np.where(full, known.scores[:, -1], rng.choice([-np.inf, -1.0], n)).astype(np.float32)
    edges = np.where(full, np.append(places, 2 * items)[known.positions[:, -1]], 0) + rng.integers(0, 2, n)
    lists = KnownLists(known, bounds, np.zeros(n, np.int64))
    fresh = sorted_lists(rng, [rng.permutation(others)[: rng.integers(0, len(others) + 1)] for _ in range(n)], width)
    rows = np.sort(rng.choice(n + 3, n, replace=False))

    found = renew_lists(lists, (now, edges), fresh, rows, n + 3)
    moved = np.append(now, -1)[known.positions]
    truth = update_lists(move_lists(lists, moved, edges), fresh, width)
    np.testing.assert_array_equal(found.best.positions[rows], truth.best.positions)
    np.testing.assert_array_equal(found.best.scores[rows], truth.best.scores)
    np.testing.assert_array_equal(found.bound_scores[rows], truth.bound_scores)
    np.testing.assert_array_equal(found.bound_edges[rows], truth.bound_edges)
    empty = np.setdiff1d(np.arange(n + 3), rows)
    assert (found.best.positions[empty] == -1).all()
    assert np.isneginf(found.bound_scores[empty]).all()


def test_arrays_that_do_not_fit_are_refused():
    lists = (np.zeros((2, 3), np.int32), np.zeros((2, 3), np.float32), np.zeros(2, np.float32), np.zeros(2, np.int64))
    now, fresh = np.zeros(4, np.int32), (np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32))
    renew = isa.native().renew_lists
    for rows in ([0, 0], [1, 5], [-1, 0], [0]):
        with pytest.raises(ValueError, match="rows"):
            renew(*lists, now, *fresh, np.array(rows), 5, 1)
    with pytest.raises(ValueError, match="new items"):
        renew(*lists, now, fresh[0][:1], fresh[1], np.array([0, 1]), 2, 1)
    with pytest.raises(ValueError, match="bounds"):
        renew(*lists[:2], lists[2][:1], lists[3], now, *fresh, np.array([0, 1]), 2, 1)
