"""Lists updated in one native pass are those that moving and merging gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.kernels import isa
from nearcast.kernels.renew_lists import allocate_lists, count_left, renew_lists
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
    lists = KnownLists(as_stored(known), bounds, np.zeros(n, np.int64))
    chosen = rng.permutation(n)[: rng.integers(0, n + 1)]  # of the known lists
    fresh = sorted_lists(rng, [rng.permutation(others)[: rng.integers(0, len(others) + 1)] for _ in chosen], width)
    rows = np.sort(rng.choice(n + 3, len(chosen), replace=False))

    found = allocate_lists(n + 3, width, 2 * items)
    found.best.positions[:] = 99
    renew_lists(lists, chosen, (now, edges[chosen]), fresh, found, rows)
    moved = np.append(now, -1)[known.positions[chosen]]
    truth = update_lists(move_lists(lists.rows(chosen), moved, edges[chosen]), fresh, width)
    np.testing.assert_array_equal(found.best.positions[rows], truth.best.positions)
    np.testing.assert_array_equal(found.best.scores[rows], truth.best.scores)
    np.testing.assert_array_equal(found.bound_scores[rows], truth.bound_scores)
    np.testing.assert_array_equal(found.bound_edges[rows], truth.bound_edges)
    assert (np.delete(found.best.positions, rows, axis=0) == 99).all()
    np.testing.assert_array_equal(count_left(lists.best.positions, chosen, now), (moved >= 0).sum(axis=1))


def as_stored(lists: Neighbors) -> Neighbors:
    """The lists with positions as files of reserves have them."""
    return Neighbors(lists.positions.astype(np.int32), lists.scores)


def test_without_native_kernels_the_lists_are_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    known = as_stored(sorted_lists(rng, [rng.permutation(40)[:20] for _ in range(30)], 12))
    lists = KnownLists(known, known.scores[:, -1].copy(), known.positions[:, -1] + np.int64(1))
    now = np.where(rng.random(40) < 0.8, np.arange(40), -1)
    fresh = sorted_lists(rng, [40 + rng.permutation(5) for _ in range(20)], 4)
    chosen, rows, edges = np.arange(5, 25), np.arange(20), lists.bound_edges[5:25]
    found = []
    for variant in ("", isa.NUMPY):
        monkeypatch.setenv(isa.ISA_VARIABLE, variant)
        lists_now = allocate_lists(20, 12, 45)
        renew_lists(lists, chosen, (now, edges), fresh, lists_now, rows)
        found.append((*vars_of(lists_now), count_left(known.positions, chosen, now)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def vars_of(lists: KnownLists) -> tuple[np.ndarray, ...]:
    return lists.best.positions, lists.best.scores, lists.bound_scores, lists.bound_edges


def test_arrays_that_do_not_fit_are_refused():
    positions, scores, now = np.zeros((2, 3), np.int32), np.zeros((2, 3), np.float32), np.zeros(4, np.int32)
    both, bounds, edges = np.array([0, 1]), np.zeros(2, np.float32), np.zeros(2, np.int64)
    fresh = np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32)

    def renew(chosen=both, rows=both, fresh=fresh, bounds=bounds, n=5, targets=None):
        lists = allocate_lists(n, 3, 9)
        isa.native().renew_lists(
            positions,
            scores,
            np.asarray(chosen),
            bounds,
            edges,
            now,
            *fresh,
            np.asarray(rows),
            *(targets or vars_of(lists)),
            1,
        )

    renew()
    for rows in ([0, 0], [1, 5], [-1, 0], [0]):
        with pytest.raises(ValueError, match="rows"):
            renew(rows=rows)
    for chosen in ([0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="no such rows"):
            renew(chosen=chosen)
    with pytest.raises(ValueError, match="new items"):
        renew(fresh=(fresh[0][:1], fresh[1]))
    with pytest.raises(ValueError, match="bounds"):
        renew(bounds=bounds[:1])
    with pytest.raises(ValueError, match="targets"):
        renew(targets=(*vars_of(allocate_lists(5, 2, 9))[:2], *vars_of(allocate_lists(5, 3, 9))[2:]))
    frozen = vars_of(allocate_lists(5, 3, 9))
    frozen[0].flags.writeable = False
    with pytest.raises(TypeError):
        renew(targets=frozen)


@pytest.mark.parametrize("shared", ["chosen", "rows"])
def test_a_target_may_share_its_memory_with_the_row_numbers(shared):
    rng = np.random.default_rng(4)
    known = as_stored(sorted_lists(rng, [rng.permutation(9) for _ in range(5)], 3))
    now, numbers, bounds = np.arange(9, dtype=np.int32) + 2**20, np.arange(5), np.full(5, -1, np.float32)
    fresh = np.empty((5, 0), np.int32), np.empty((5, 0), np.float32)
    found = []
    for alias in (numbers.copy(), None):
        targets = vars_of(allocate_lists(5, 3, 9))
        rows = {"chosen": numbers, "rows": numbers} | ({} if alias is None else {shared: alias})
        targets = targets if alias is None else (*targets[:3], alias)
        isa.native().renew_lists(
            *(known.positions, known.scores, rows["chosen"], bounds, np.zeros(5, np.int64), now, *fresh),
            *(rows["rows"], *targets, 1),
        )
        found.append(targets)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
