"""Rules, caps and least scores in the join: what sorting all pairs would leave, on every instruction set."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.rules import constrained_joins, interval, overlap, rule, shared, sorted_join
from tests.kernels.vectors import METRICS, draw_vectors, join_cells, join_exact

from nearcast import kernels
from nearcast.eligibility import compile_rules, parse_rule
from nearcast.errors import InputError, SpecError
from nearcast.kernels import build_index, eligible_counts, numpy_fallback
from nearcast.kernels import isa as isa_module
from nearcast.knn.constraints import Cap, Constraints, find_crossing
from nearcast.knn.eligible import AllOf, AnyOf, Eligibility, eligible_pairs
from nearcast.knn.join_request import JoinRequest, Resources
from rule_cases import conditions, tables

FIXTURE_ONCE = [HealthCheck.function_scoped_fixture]


def assert_same(found, truth):
    positions, scores = (found.positions, found.scores) if hasattr(found, "positions") else found
    np.testing.assert_array_equal(positions, truth[0])
    np.testing.assert_array_equal(scores.view(np.uint32), truth[1].view(np.uint32))


@settings(max_examples=150, deadline=None)
@given(case=constrained_joins(most_items=200))
def test_the_referee_gives_what_sorting_all_pairs_leaves(case):
    queries, items, k, metric, exclude, constraints, _ = case
    found = numpy_fallback.join_exact(queries, items, k, metric, exclude, constraints)
    assert_same(found, sorted_join(queries, items, k, metric, exclude, constraints))


@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURE_ONCE)
@given(case=constrained_joins())
def test_any_constrained_join_equals_the_referee(native_isa, case):
    queries, items, k, metric, exclude, constraints, threads = case
    found = join_exact(queries, items, k, metric, exclude=exclude, constraints=constraints, threads=threads)
    assert_same(found, numpy_fallback.join_exact(queries, items, k, metric, exclude, constraints))


@settings(max_examples=30, deadline=None, suppress_health_check=FIXTURE_ONCE)
@given(case=constrained_joins(most_items=3000))
def test_all_cells_hold_what_one_block_holds(native_isa, case):
    queries, items, k, metric, exclude, constraints, threads = case
    index = build_index(items, metric, cells=min(len(items), 12), threads=threads)
    found = join_cells(index, queries, k, exclude=exclude, constraints=constraints, threads=threads)
    assert_same(found, numpy_fallback.join_exact(queries, items, k, metric, exclude, constraints))


@settings(max_examples=30, deadline=None, suppress_health_check=FIXTURE_ONCE)
@given(case=constrained_joins(most_items=3000))
def test_near_cells_give_eligible_items_only(native_isa, case):
    queries, items, k, metric, exclude, constraints, threads = case
    index = build_index(items, metric, cells=min(len(items), 12), threads=threads)
    found = join_cells(index, queries, k, radius=0.0, exclude=exclude, constraints=constraints, threads=threads)
    every = numpy_fallback.join_exact(queries, items, len(items), metric, exclude, constraints)[0]
    if constraints.caps:  # fewer cells let other items of a group through
        legal = Constraints(constraints.eligibility, (), constraints.min_score)
        every = numpy_fallback.join_exact(queries, items, len(items), metric, exclude, legal)[0]
    for row, listed in enumerate(found.positions):
        assert set(listed[listed >= 0]) <= set(every[row])


@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURE_ONCE)
@given(case=constrained_joins(), seed=st.integers(0, 99))
def test_thresholds_of_queries_leave_out_what_scores_less(isa, case, seed):
    queries, items, k, metric, exclude, constraints, threads = case
    every = sorted_join(queries, items, k, metric, exclude, constraints)
    rng = np.random.default_rng(seed)
    thresholds = every[1][np.arange(len(queries)), rng.integers(0, k, len(queries))]  # met by an item, or -inf
    request = JoinRequest(metric, k, exclude=exclude, constraints=constraints, thresholds=thresholds)
    truth = sorted_join(queries, items, k, metric, exclude, constraints, thresholds)
    assert_same(kernels.join_exact(queries, items, request, Resources(threads)), truth)
    index = build_index(items, metric, cells=min(len(items), 12), threads=threads)
    assert_same(index.join(queries, request), truth)
    near = index.join(queries, request, radius=0.0)
    assert (near.scores >= thresholds[:, None])[near.positions >= 0].all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
def test_every_selectivity(isa, metric, share):
    rng = np.random.default_rng(3)
    queries, items = draw_vectors(rng, 70, 24, np.float32, "plain"), draw_vectors(rng, 4000, 24, np.float32, "plain")
    codes = rng.permutation(4000).astype(np.int32)
    low = rng.integers(0, 4000, size=70).astype(np.int32)
    leaf = interval(rng, 70, 4000)
    leaf = type(leaf)(codes, low, (low + round(4000 * share) - 1).astype(np.int32))
    constraints = Constraints(Eligibility(70, 4000, (leaf,), 0))
    found = join_exact(queries, items, 10, metric, constraints=constraints, threads=2)
    assert_same(found, sorted_join(queries, items, 10, metric, None, constraints))


def test_lists_of_one_group_stop_at_its_cap(isa):
    rng = np.random.default_rng(4)
    queries, items = draw_vectors(rng, 9, 8, np.float32, "plain"), draw_vectors(rng, 5000, 8, np.float32, "plain")
    constraints = Constraints(caps=(Cap(np.zeros(5000, np.int32), 3),))
    found = join_exact(queries, items, 10, "l2", constraints=constraints)
    assert ((found.positions >= 0).sum(axis=1) == 3).all()
    assert_same(found, sorted_join(queries, items, 10, "l2", None, constraints))


def test_a_group_of_thousands_of_equals_hides_nobody(isa):
    rng = np.random.default_rng(5)
    items = np.repeat(rng.standard_normal((1, 8)), 6000, axis=0).astype(np.float32)
    items[5990:] *= 0.5
    groups = np.zeros(6000, np.int32)
    groups[5990:] = 1
    constraints = Constraints(caps=(Cap(groups, 2),))
    found = join_exact(items[:3], items, 5, "inner_product", constraints=constraints)
    assert found.positions[0].tolist() == [0, 1, 5990, 5991, -1]


@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURE_ONCE)
@given(case=constrained_joins(most_items=2000))
def test_eligible_items_are_counted(isa, case):
    constraints, threads = case[-2:]
    if constraints.eligibility is not None:
        counts = eligible_counts(constraints.eligibility, threads=threads)
        np.testing.assert_array_equal(counts, eligible_pairs(constraints.eligibility).sum(axis=1))


@pytest.mark.parametrize("items", [16, 32, 48, 64])
def test_masks_of_codes_equal_their_twin(native_isa, items):
    rng = np.random.default_rng(6)
    leaf = interval(rng, 50, items)
    masks = isa_module.native().interval_masks(native_isa, leaf.codes, leaf.low, leaf.high)
    np.testing.assert_array_equal(masks, numpy_fallback.interval_masks(leaf.codes, leaf.low, leaf.high))


@pytest.mark.parametrize("words", [1, 2, 5])
@pytest.mark.parametrize("items", [16, 32, 48, 64])
def test_masks_of_sets_equal_their_twin(native_isa, items, words):
    rng = np.random.default_rng(7)
    leaf = overlap(rng, 50, items, words=words)
    held = np.ascontiguousarray(leaf.items.T)
    masks = isa_module.native().overlap_masks(native_isa, held, leaf.queries)
    np.testing.assert_array_equal(masks, numpy_fallback.overlap_masks(held, leaf.queries))


def test_a_rule_cut_to_some_queries_and_items_says_the_same_of_them():
    rng = np.random.default_rng(8)
    whole = rule(rng, 40, 60)
    rows, columns = np.array([3, 1, 20]), np.array([59, 0, 7, 7])
    cut = whole.of_queries(rows).of_items(columns)
    np.testing.assert_array_equal(eligible_pairs(cut), eligible_pairs(whole)[np.ix_(rows, columns)])


def test_a_tree_without_parts_is_true_and_one_without_choices_false():
    assert eligible_pairs(Eligibility(2, 3, (), AllOf(()))).all()
    assert not eligible_pairs(Eligibility(2, 3, (), AnyOf(()))).any()


def chain(depth):
    """Leaves 0 and 1 in turn under `depth` nested combinations."""
    tree = 0
    for level in range(depth):
        tree = (AllOf if level % 2 else AnyOf)((level % 2, tree, 1))
    return tree


TREES = {
    "nothing": AnyOf(()),
    "everything": AllOf(()),
    "nothing in all": AllOf((AnyOf(()),)),
    "nothing and a leaf": AllOf((0, AnyOf(()))),
    "nothing, first, and leaves": AllOf((AnyOf(()), 1, 0)),
    "nothing twice": AllOf((AnyOf(()), AnyOf(()))),
    "nothing in any": AnyOf((AnyOf(()),)),
    "nothing or a leaf": AnyOf((AnyOf(()), 0)),
    "everything or a leaf": AnyOf((AllOf(()), 0)),
    "everything and a leaf": AllOf((AllOf(()), 1)),
    "nothing below everything": AllOf((AnyOf((AllOf((AnyOf(()),)),)), 0)),
    "nothing beside a shared list": AllOf((AnyOf(()), 2)),
    "a shared list or nothing": AnyOf((AnyOf(()), 2)),
    "everything or a shared list": AnyOf((AllOf(()), 2)),
    "one part after another": AllOf((AllOf((0,)), AnyOf((1,)))),
    "a leaf twice": AllOf((0, 0)),
    "two hundred parts": AnyOf(tuple([0, 1, 2] * 67)),
    "two hundred combinations": AllOf(tuple([AnyOf((0, 1)), AnyOf((1, 2))] * 100)),
    "eighty levels": chain(80),
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_a_rule_of_any_shape_gives_what_sorting_all_pairs_leaves(isa, tree):
    rng = np.random.default_rng(10)
    n, m = 9, 300
    queries, items = draw_vectors(rng, n, 8, np.float32, "plain"), draw_vectors(rng, m, 8, np.float32, "plain")
    leaves = (interval(rng, n, m), overlap(rng, n, m, share=0.2), shared(rng, n, m))
    used = Eligibility(n, m, leaves, tree)
    if tree in (AnyOf(()), AllOf(())):
        used = Eligibility(n, m, (), tree)  # as rules are compiled that decide nothing: without leaves
    constraints = Constraints(used)
    truth = sorted_join(queries, items, 12, "l2", None, constraints)
    assert_same(join_exact(queries, items, 12, "l2", constraints=constraints), truth)
    for reach in (np.inf, 8.0):  # eight spreads find all that is left
        index = build_index(items, "l2", cells=7)
        assert_same(join_cells(index, queries, 12, radius=reach, constraints=constraints), truth)
    np.testing.assert_array_equal(eligible_counts(used), eligible_pairs(used).sum(axis=1))


@settings(max_examples=25, deadline=None, suppress_health_check=FIXTURE_ONCE)
@given(
    queries=tables(), items=tables(), texts=st.lists(conditions(), min_size=1, max_size=4), k=st.sampled_from([1, 20])
)
def test_any_set_of_rules_gives_what_sorting_all_pairs_leaves(isa, queries, items, texts, k):
    try:
        compiled = compile_rules([parse_rule(f"r{n}", text) for n, text in enumerate(texts)], queries, items)
    except (SpecError, InputError):
        return
    constraints = Constraints(compiled)
    vectors = [np.random.default_rng(len(table)).standard_normal((len(table), 5)) for table in (queries, items)]
    found = join_exact(*(v.astype(np.float32) for v in vectors), k, "inner_product", constraints=constraints)
    truth = sorted_join(*(v.astype(np.float32) for v in vectors), k, "inner_product", None, constraints)
    assert_same(found, truth)


def test_lists_shared_by_nobody_bar_everybody(isa):
    rng = np.random.default_rng(9)
    leaf = shared(rng, 5, 50)
    empty = type(leaf)(leaf.item_starts, leaf.item_values, np.zeros(6, np.int64), np.empty(0, np.int32))
    queries, items = draw_vectors(rng, 5, 8, np.float32, "plain"), draw_vectors(rng, 50, 8, np.float32, "plain")
    found = join_exact(queries, items, 4, "l2", constraints=Constraints(Eligibility(5, 50, (empty,), 0)))
    assert (found.positions == -1).all()


def test_groups_that_cross_are_found():
    inner, outer = Cap(np.array([0, 0, 1, -1], np.int32), 1), Cap(np.array([0, 1, 1, 0], np.int32), 1)
    assert find_crossing(inner, outer) == (0, 1)
    assert find_crossing(inner, Cap(np.array([0, 0, 1, 1], np.int32), 1)) is None
