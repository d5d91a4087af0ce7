"""Rules and caps compiled shard by shard are those of all items at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import clustered, exact_join, generator
from nearcast.eligibility import compile_rules, parse_rule
from nearcast.errors import BudgetError, InputError, SpecError
from nearcast.join import shard_constraints
from nearcast.join.shard_constraints import CapColumn, GroupNumbers, defer_constraints, order_caps
from nearcast.join.short_lists import count_reachable
from nearcast.knn.constraints import FREE, Constraints
from nearcast.knn.eligible import eligible_pairs
from nearcast.knn.exact_join import join_ranges
from nearcast.knn.item_shards import cut_items
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.measure.sampled_recall import find_truth
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.types import ArrayVectors, Metric
from rule_cases import conditions, tables

ONE = Resources(1, 1 << 28)


def stored(folder, rows, vectors=None):
    """An ingested table with these attributes, row i at position i."""
    (folder / "attributes").mkdir(parents=True)
    pq.write_table(rows, folder / "attributes" / "part-00000.parquet", row_group_size=4)
    ids = rows.column("id").combine_chunks()
    vectors = np.zeros((len(rows), 2), np.float32) if vectors is None else vectors
    return IngestedTable(folder, ArrayVectors(vectors), ids, ids, folder / "attributes")


def deferred(inputs, count, caps=(), **spec):
    shards = cut_items(inputs.items.vectors.n, count)
    made = generator(items={"path": "x", "attributes": ["group", "maker"]}, **spec)
    return defer_constraints(made, inputs, shards, caps), shards


@settings(max_examples=80)
@given(items=tables(most_rows=9), queries=tables(), text=conditions(), count=st.integers(1, 4), data=st.data())
def test_rules_of_a_shard_and_some_queries_are_cut_from_those_of_all_pairs(
    items, queries, text, count, data, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("tables")
    rule = parse_rule("r", text)
    items, queries = (rows.set_column(9, "word", rows["word"].cast(pa.string())) for rows in (items, queries))
    inputs = Inputs(stored(folder / "items", items), stored(folder / "queries", queries), Metric.L2)
    try:
        whole = compile_rules([rule], *(pq.read_table(table.attributes) for table in (inputs.queries, inputs.items)))
    except (SpecError, InputError):
        return
    constraints, shards = deferred(inputs, count, rules=[{"name": "r", "keep": text}])
    rows = np.array(data.draw(st.lists(st.integers(0, len(queries) - 1), max_size=4)) if len(queries) else [], np.int64)
    flags = np.ones((len(queries), len(items)), bool) if whole is None else eligible_pairs(whole)
    for start, stop in shards:
        if start == stop:
            continue
        for chosen in (rows, slice(1, 4)):
            own = constraints.of_queries(chosen).of_items(start, stop).eligibility
            wanted = flags[chosen, start:stop]
            found = np.ones(wanted.shape, bool) if own is None else eligible_pairs(own)
            assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("count", [1, 3, 8])
def test_exact_lists_counts_and_reasons_of_shards_are_those_of_all_items(tmp_path, count):
    rng = np.random.default_rng(1)
    items, queries = clustered(500, 6, seed=1), clustered(60, 6, seed=2)
    maker = rng.integers(0, 40, 500)
    attributes = {
        "maker": pa.array([f"m{one}" if one % 7 else None for one in maker]),
        "group": pa.array([int(one) // 5 if one % 7 else None for one in maker]),
        "price": rng.integers(0, 50, 500),
    }
    item_table = stored(tmp_path / "i", pa.table({"id": np.arange(500), **attributes}), items)
    query_table = stored(
        tmp_path / "q", pa.table({"id": np.arange(60) * 7, "budget": rng.integers(0, 60, 60)}), queries
    )
    inputs = Inputs(item_table, query_table, Metric.L2)
    spec = {
        "rules": [{"name": "price", "keep": "item.price <= query.budget"}],
        "caps": [{"by": "group", "max_per_list": 3}, {"by": "maker", "max_per_list": 1}],
        "min_score": -6.0,
    }
    made = generator(items={"path": "x", "attributes": ["group", "maker"]}, **spec)
    shards = cut_items(500, count)
    caps = order_caps(made, item_table, 500 // count)
    assert [cap.column for cap in caps] == ["maker", "group"]
    constraints = defer_constraints(made, inputs, shards, caps)
    whole = defer_constraints(made, inputs, [(0, 500)], caps).of_items(0, 500)
    assert isinstance(whole, Constraints)
    request = JoinRequest(Metric.L2, 20, exclude_self=True, constraints=constraints)
    rows = np.array([5, 3, 59, 20])
    truth = find_truth(inputs, rows, request, ONE)
    own = np.array([35, 21, 413, 140])
    wanted = exact_join(
        queries[rows], ArrayVectors(items), 20, Metric.L2, exclude=own, constraints=whole.of_queries(rows)
    )
    assert truth.positions.tolist() == wanted.positions.tolist()
    assert truth.scores.tolist() == wanted.scores.tolist()
    reachable = count_reachable(request, ONE, inputs, rows)
    flags = eligible_pairs(whole.eligibility)[rows]
    flags[np.arange(4), own] = False
    assert reachable.tolist() == flags.sum(axis=1).tolist()
    bare = request.constraints.without_min_score().of_queries(rows)
    longer = join_ranges(queries[rows], ArrayVectors(items), JoinRequest(Metric.L2, 20, constraints=bare), ONE)
    assert (longer.lengths >= truth.lengths).all()


def two_columns(folder, maker, group):
    rows = pa.table({"id": np.arange(len(maker)), "maker": maker, "group": group})
    return stored(folder, rows)


def caps_of(items, count, memory_bytes=1 << 20):
    spec = generator(
        items={"path": "x", "attributes": ["group", "maker"]},
        caps=[{"by": "group"}, {"by": "maker", "max_per_list": 2}],
    )
    return order_caps(spec, items, -(-items.vectors.n // count), memory_bytes)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_caps_that_cross_are_refused_even_if_they_do_not_cross_within_a_block(tmp_path, count):
    items = two_columns(tmp_path, ["a", "a", "b", "a", "c", "d"], [1, 1, 2, 3, 2, 1])
    with pytest.raises(SpecError, match="caps by maker and by group cross: items 0 and 3 share their maker but not"):
        caps_of(items, count)


def test_the_smallest_groups_come_first_whatever_the_order_of_the_spec(tmp_path):
    items = two_columns(tmp_path, ["a", "b", "c", None], [1, 1, 2, None])
    assert [(cap.column, cap.most) for cap in caps_of(items, 2)] == [("maker", 2), ("group", 1)]


def test_too_many_combinations_of_values_are_refused_before_they_fill_the_memory(tmp_path):
    items = two_columns(tmp_path, [f"m{i}" for i in range(100)], list(range(100)))
    with pytest.raises(BudgetError, match="combinations of values"):
        caps_of(items, 4, memory_bytes=1000)


def test_a_cap_by_a_list_is_refused(tmp_path):
    items = two_columns(tmp_path, [["a"], ["b"]], [1, 2])
    with pytest.raises(SpecError, match="caps are by single values"):
        caps_of(items, 2)


@pytest.mark.parametrize(
    "values",
    [["a", None, "b", "a"], [1.0, float("nan"), 1.0, float("nan")], [None, None]],
    ids=["texts", "numbers with NaN", "nulls alone"],
)
def test_equal_values_of_two_batches_have_one_number(values):
    numbers, array = GroupNumbers(), pa.array(values)
    first, second = (numbers.number(each.dictionary_encode()) for each in (array, array[1:]))
    assert second.tolist() == first[1:].tolist()
    assert (first == -1).tolist() == array.is_null().to_pylist()


@pytest.mark.parametrize(
    "values",
    [["a", None, "b", "a"], [1.0, float("nan"), 1.0, None], [True, False, None, True], [None, None, None, None]],
    ids=["texts", "numbers with NaN", "flags", "nulls alone"],
)
def test_values_of_many_slots_are_found_some_at_a_time(tmp_path, monkeypatch, values):
    items = two_columns(tmp_path, values, [1, 2, 3, 4])
    inputs = Inputs(items, items, Metric.L2)
    positions = np.array([[3, 0, -1], [1, 2, 3], [0, 0, 1]])
    found = []
    for at_once in (100, 2):
        monkeypatch.setattr(shard_constraints, "VALUES_AT_ONCE", at_once)
        constraints, _ = deferred(inputs, 1, caps=[CapColumn("maker", 2)], min_score=-1.0)
        found.append(constraints.find_groups(positions)[0])
    np.testing.assert_array_equal(*found)
    assert (found[0] == -1).tolist() == [[p < 0 or values[p] is None for p in row] for row in positions.tolist()]


def test_code_that_needs_the_constraints_of_all_items_fails_at_once(tmp_path):
    items = two_columns(tmp_path, ["a", "b"], [1, 2])
    constraints, _ = deferred(Inputs(items, items, Metric.L2), 2, min_score=-1.0)
    for name in ("eligibility", "caps"):
        with pytest.raises(AttributeError):
            getattr(constraints, name)
    assert not constraints.free
    assert deferred(Inputs(items, items, Metric.L2), 2)[0] is FREE
