"""Every bad input, under every policy that it may have: what the message says, and which rows go on.

Joins run through `nearcast.check` and `nearcast.run`, as a user's would.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nearcast
from builders import table, write_parquet
from nearcast.errors import InputError, NearcastError, SpecError

NAN, INFINITY = math.nan, math.inf
GOOD = {"a": [1, 0], "b": [0, 1], "c": [1, 1]}
FILE = {"path": "items.parquet"}


def spec(**settings):
    return {"name": "test", "metric": "l2", "k": 1, "exclude_self": True} | settings


def split(settings):
    """Sides that are tables go beside the spec; sides that are paths go into it."""
    data = {side: settings.pop(side) for side in ("items", "queries") if not isinstance(settings.get(side, {}), dict)}
    return spec(**settings), data


def refusal(base, error=InputError, **settings):
    """What `nearcast.check` says no with."""
    generator, data = split(settings)
    with pytest.raises(error) as caught:
        nearcast.check(generator, base=base, **data)
    return str(caught.value)


def says(message, *words):
    for word in words:
        assert word in message, message
    return True


def report(base, **settings):
    generator, data = split(settings)
    return nearcast.check(generator, base=base, **data)[0]


def lists(base, **settings):
    """{query id: candidate ids, or the reason why there are none} of a run."""
    generator, data = split(settings)
    snapshot = nearcast.run(generator, base=base, **data).snapshot
    rows = pq.read_table(snapshot.folder / "candidates").to_pylist()
    return {row["query_id"]: row["candidate_ids"] or row["reason"] for row in rows}


MORE_GOOD = {"d": [1, 2], "e": [2, 1], "f": [3, 1]}


def with_bad(vector, *, times=1, good=GOOD):
    """The good rows and some bad ones, called bad-0, bad-1, ..."""
    bad = {f"bad-{i}": vector for i in range(times)}
    rows = good | bad
    return table(list(rows), list(rows.values()))


BAD_VECTORS = {
    "NaN": ([NAN, 1], "not_finite", "NaN, infinity or null"),
    "infinity": ([1, INFINITY], "not_finite", "NaN, infinity or null"),
    "minus infinity": ([1, -INFINITY], "not_finite", "NaN, infinity or null"),
    "a null in it": ([None, 1], "not_finite", "NaN, infinity or null"),
    "too long for float32": ([3e38, 3e38], "not_finite", "longer than 1e18"),
    "no vector": (None, "null_vector", "no vector"),
    "too many components": ([1, 2, 3], "wrong_dimension", "length is not 2, the length of most"),
    "too few components": ([1], "wrong_dimension", "length is not 2, the length of most"),
    "no components": ([], "wrong_dimension", "length is not 2, the length of most"),
    "all zeros": ([0, 0], "zero_vector", "no direction"),
    "all minus zeros": ([-0.0, 0], "zero_vector", "no direction"),
}
every_bad_vector = pytest.mark.parametrize(("vector", "kind", "words"), BAD_VECTORS.values(), ids=BAD_VECTORS)


@every_bad_vector
def test_a_bad_vector_is_an_error_that_names_the_count_the_row_and_the_way_out(vector, kind, words, tmp_path):
    message = refusal(tmp_path, metric="cosine", items=with_bad(vector))
    assert says(message, "items: 1 row has", words, "'bad-0'", "row 3", kind, "[checks]", "drop")


@every_bad_vector
def test_five_bad_vectors_are_counted_and_three_are_shown(vector, kind, words, tmp_path):
    message = refusal(tmp_path, metric="cosine", items=with_bad(vector, times=5, good=GOOD | MORE_GOOD))
    assert says(message, "5 rows have", words, "'bad-0'", "'bad-1'", "'bad-2'", kind)
    assert "'bad-3'" not in message


@every_bad_vector
def test_dropped_vectors_leave_the_join_and_the_table(vector, kind, words, tmp_path):
    found = lists(tmp_path, metric="cosine", checks={kind: "drop"}, items=with_bad(vector, times=2))
    assert found == {"a": ["c"], "b": ["c"], "c": ["a"]}


@every_bad_vector
def test_dropped_vectors_are_in_the_report_with_their_count(vector, kind, words, tmp_path):
    found = report(tmp_path, metric="cosine", checks={kind: "drop"}, items=with_bad(vector, times=2))
    assert [(p.side, p.kind, p.count, p.policy) for p in found.problems] == [("items", kind, 2, "drop")]
    assert (found.items.rows, found.items.vectors, found.items.listed) == (5, 3, 3)
    assert found.errors == ()


@every_bad_vector
def test_kept_vectors_are_listed_and_only_those_with_a_meaning_are_joined(vector, kind, words, tmp_path):
    found = lists(tmp_path, metric="cosine", checks={kind: "keep"}, items=with_bad(vector))
    if kind == "zero_vector":  # its cosine with everything is 0, and ties go to the smaller id
        assert found == {"a": ["c"], "b": ["c"], "c": ["a"], "bad-0": ["a"]}
    else:
        assert found == {"a": ["c"], "b": ["c"], "c": ["a"], "bad-0": "no_vector"}


@every_bad_vector
def test_a_bad_query_is_told_as_a_query(vector, kind, words, tmp_path):
    items = table(list(GOOD), list(GOOD.values()))
    message = refusal(tmp_path, metric="cosine", exclude_self=False, items=items, queries=with_bad(vector))
    assert says(message, "queries: 1 row has", words, "'bad-0'", "(queries row 3)")
    assert "items:" not in message


@every_bad_vector
@pytest.mark.parametrize("policy", ["drop", "keep"])
def test_a_bad_query_that_is_dropped_or_kept_never_gets_in_the_way_of_the_others(vector, kind, words, policy, tmp_path):
    items = table(list(GOOD), list(GOOD.values()))
    found = lists(
        tmp_path, metric="cosine", exclude_self=False, checks={kind: policy}, items=items, queries=with_bad(vector)
    )
    kept = {} if policy == "drop" else {"bad-0": ["a"] if kind == "zero_vector" else "no_vector"}
    assert found == {"a": ["a"], "b": ["b"], "c": ["c"]} | kept


@pytest.mark.parametrize("kind", ["fixed_size_list", "list", "large_list"])
@pytest.mark.parametrize("element", [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint8()])
def test_a_null_component_or_vector_is_found_in_lists_of_every_type(kind, element, tmp_path):
    one, two = (np.float16(1), np.float16(2)) if element == pa.float16() else (1, 2)
    items = table(["a", "b", "c", "d"], [[one, two], [one, None], None, [two, two]], kind=kind, element=element)
    message = refusal(tmp_path, items=items)
    assert says(message, "'b' (items row 1) [not_finite]", "'c' (items row 2) [null_vector]")
    kept = {"not_finite": "drop", "null_vector": "drop"}
    assert lists(tmp_path, checks=kept, items=items) == {"a": ["d"], "d": ["a"]}


def test_the_file_and_the_row_in_it_are_named(tmp_path):
    write_parquet(tmp_path / "items" / "1.parquet", ["a", "b"], [[1, 0], [0, 1]])
    write_parquet(tmp_path / "items" / "2.parquet", ["c", "d"], [[1, 1], [NAN, 1]])
    message = refusal(tmp_path, items={"path": "items"})
    assert says(message, "'d' (items/2.parquet row 1) [not_finite]")


def test_ids_that_are_integers_are_shown_as_they_are(tmp_path):
    assert says(refusal(tmp_path, items=table([7, 8], [[1, 0], [NAN, 1]])), ": 8 (items row 1)")


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_zero_vectors_are_kept_without_cosine_unless_a_policy_says_otherwise(metric, tmp_path):
    items = with_bad([0, 0])
    found = report(tmp_path, metric=metric, items=items)
    assert [(p.kind, p.policy) for p in found.problems] == [("zero_vector", "keep")]
    assert found.items.vectors == 4
    assert says(refusal(tmp_path, metric=metric, checks={"zero_vector": "error"}, items=items), "zero_vector")
    assert report(tmp_path, metric=metric, checks={"zero_vector": "drop"}, items=items).items.vectors == 3


def test_a_kept_zero_vector_is_the_nearest_of_the_short_ones_under_l2(tmp_path):
    items = table(["a", "b", "zero"], [[1, 0], [9, 0], [0, 0]])
    assert lists(tmp_path, items=items) == {"a": ["zero"], "b": ["a"], "zero": ["a"]}


def test_a_vector_that_only_underflows_is_short_and_not_zero(tmp_path):
    items = table(["a", "b", "tiny"], [[1, 0], [0, 1], [1e-30, 0]])
    assert lists(tmp_path, metric="cosine", items=items)["tiny"] == ["a"]


def test_all_kinds_of_trouble_are_told_at_once_and_counted_apart(tmp_path):
    rows = {"a": [1, 0], "b": [0, 1], "n": [NAN, 1], "v": None, "w": [1], "z": [0, 0]}
    items = table([*rows, None, "a"], [*rows.values(), [1, 1], [2, 2]])
    message = refusal(tmp_path, metric="cosine", items=items)
    for kind in ("not_finite", "null_vector", "wrong_dimension", "zero_vector", "null_id", "duplicate_id"):
        assert f"[{kind}]" in message
    assert message.count("1 row has") == 6


def test_a_row_with_two_faults_is_counted_under_both(tmp_path):
    message = refusal(tmp_path, items=table(["a", "a"], [[1, 0], [NAN, 0]]))
    assert says(message, "[not_finite]", "[duplicate_id]")


@pytest.mark.parametrize("kind", ["fixed_size_list", "list"])
def test_dimensions_that_differ_between_files_are_told_with_the_file(kind, tmp_path):
    write_parquet(tmp_path / "items" / "1.parquet", ["a", "b", "c"], [[1, 0], [0, 1], [1, 1]], kind=kind)
    write_parquet(tmp_path / "items" / "2.parquet", ["d", "e"], [[1, 1, 1], [1, 1, 2]], kind=kind)
    message = refusal(tmp_path, items={"path": "items"})
    assert says(message, "2 rows have", "length is not 2", "'d' (items/2.parquet row 0)", "wrong_dimension")
    found = lists(tmp_path, checks={"wrong_dimension": "drop"}, items={"path": "items"})
    assert found == {"a": ["c"], "b": ["c"], "c": ["a"]}


def test_an_odd_first_vector_does_not_condemn_the_others(tmp_path):
    items = table(["odd", *GOOD], [[1, 2, 3], *GOOD.values()])
    message = refusal(tmp_path, items=items)
    assert says(message, "1 row has a vector whose length is not 2, the length of most: 'odd' (items row 0)")
    assert "odd" not in lists(tmp_path, checks={"wrong_dimension": "drop"}, items=items)


def test_an_empty_vector_at_the_start_is_the_one_that_is_wrong(tmp_path):
    message = refusal(tmp_path, items=table(["odd", *GOOD], [[], *GOOD.values()]))
    assert says(message, "1 row has", "'odd'", "length is not 2")


def test_a_null_vector_at_the_start_does_not_hide_the_dimension(tmp_path):
    message = refusal(tmp_path, items=table(["none", *GOOD], [None, *GOOD.values()]))
    assert says(message, "'none' (items row 0) [null_vector]")
    assert "wrong_dimension" not in message


def test_a_whole_batch_of_null_vectors_before_the_first_vector_is_told_as_null(tmp_path):
    write_parquet(tmp_path / "items" / "1.parquet", ["x", "y"], [None, None])
    write_parquet(tmp_path / "items" / "2.parquet", ["a", "b"], [[1, 0], [0, 1]])
    message = refusal(tmp_path, items={"path": "items"})
    assert says(message, "2 rows have no vector")
    assert "wrong_dimension" not in message


def test_a_duplicate_id_is_an_error_and_the_first_row_is_the_one_that_is_kept(tmp_path):
    items = table(["a", "b", "a", "a"], [[1, 0], [0, 1], [9, 9], [8, 8]])
    message = refusal(tmp_path, items=items)
    assert says(message, "2 rows have an id that has occurred before", "'a' (items row 2); 'a' (items row 3)")
    run = nearcast.run(spec(checks={"duplicate_id": "drop"}), items=items, base=tmp_path).snapshot
    assert run.lookup("b").ids == ("a",)
    assert run.lookup("b").scores == (-2.0,)


def test_a_duplicate_across_files_is_found(tmp_path):
    write_parquet(tmp_path / "items" / "1.parquet", [1, 2], [[1, 0], [0, 1]])
    write_parquet(tmp_path / "items" / "2.parquet", [3, 1], [[1, 1], [5, 5]])
    message = refusal(tmp_path, items={"path": "items"})
    assert says(message, "1 row has an id that has occurred before", "1 (items/2.parquet row 1)", "duplicate_id")


def test_a_row_without_an_id_is_an_error_or_dropped(tmp_path):
    items = table(["a", None, "b", None], [[1, 0], [5, 5], [0, 1], [6, 6]])
    message = refusal(tmp_path, items=items)
    assert says(message, "2 rows have no id", "items row 1; items row 3", "null_id")
    assert "duplicate_id" not in message
    assert lists(tmp_path, checks={"null_id": "drop"}, items=items) == {"a": ["b"], "b": ["a"]}


@pytest.mark.parametrize("kind", ["duplicate_id", "null_id"])
def test_ids_that_are_no_ids_cannot_be_kept(kind, tmp_path):
    message = refusal(tmp_path, SpecError, checks={kind: "keep"}, items=with_bad([1, 2]))
    assert says(message, f"checks.{kind} is 'keep'", "'error' or 'drop'")


def test_an_id_type_that_differs_between_files_names_both_files_and_types(tmp_path):
    write_parquet(tmp_path / "items" / "1.parquet", [1, 2], [[1, 0], [0, 1]])
    write_parquet(tmp_path / "items" / "2.parquet", ["3"], [[1, 1]])
    message = refusal(tmp_path, items={"path": "items"})
    assert says(message, "'id'", "an integer in items/1.parquet", "a string in items/2.parquet", "one type")


def test_integers_of_two_widths_are_one_id_type(tmp_path):
    write_parquet(tmp_path / "items" / "1.parquet", pa.array([1, 2], pa.int32()), [[1, 0], [0, 1]])
    write_parquet(tmp_path / "items" / "2.parquet", pa.array([3], pa.uint8()), [[1, 1]])
    assert report(tmp_path, items={"path": "items"}).items.vectors == 3


def test_self_exclusion_between_ids_of_two_types_is_refused(tmp_path):
    message = refusal(tmp_path, items=table(["1", "2"], [[1, 0], [0, 1]]), queries=table([1], [[1, 0]]))
    assert says(message, "exclude_self", "strings", "integers", "exclude_self = false")


def test_ids_of_two_types_join_where_nothing_is_excluded(tmp_path):
    sides = {"items": table(["x", "y"], [[1, 0], [0, 1]]), "queries": table([1], [[0, 1]])}
    assert lists(tmp_path, exclude_self=False, **sides) == {1: ["y"]}


@pytest.mark.parametrize("rows", [table([], []), table(pa.array([], pa.string()), [], kind="large_list")])
def test_an_empty_side_is_an_error_that_names_the_side(rows, tmp_path):
    if pa.types.is_null(rows["id"].type):
        rows = rows.set_column(0, "id", pa.array([], pa.int64()))
    good = table([1, 2] if rows["id"].type == pa.int64() else ["a", "b"], [[1, 0], [0, 1]])
    assert says(refusal(tmp_path, items=rows), "items: ", "empty_input")
    message = refusal(tmp_path, items=good, queries=rows)
    assert says(message, "queries: ", "empty_input")
    assert "items: " not in message


def test_an_empty_file_among_full_ones_is_fine_and_an_empty_folder_is_not(tmp_path):
    pq.write_table(table(pa.array([], pa.string()), []), tmp_path / "0.parquet")
    write_parquet(tmp_path / "1.parquet", ["a", "b"], [[1, 0], [0, 1]])
    assert report(tmp_path, items={"path": "*.parquet"}).items.vectors == 2
    (tmp_path / "nothing").mkdir()
    assert says(refusal(tmp_path, items={"path": "nothing"}), "no Parquet file", str(tmp_path / "nothing"), "path")


def test_an_empty_side_with_k_below_one_item_does_not_also_complain_about_k(tmp_path):
    assert "k_above_items" not in refusal(tmp_path, k=5, items=table(pa.array([], pa.string()), []))


def test_a_side_of_which_every_row_is_dropped_is_empty(tmp_path):
    message = refusal(tmp_path, checks={"not_finite": "drop"}, items=table(["a", "b"], [[NAN, 0], [NAN, 1]]))
    assert says(message, "items: ", "none of the 2 rows read can be joined", "empty_input")


@pytest.mark.parametrize("kind", ["empty_input", "id_type"])
@pytest.mark.parametrize("policy", ["drop", "keep"])
def test_there_is_no_going_on_without_data(kind, policy, tmp_path):
    assert says(
        refusal(tmp_path, SpecError, checks={kind: policy}, items=with_bad([1, 2])), f"checks.{kind}", "'error'"
    )


def test_k_above_the_items_is_an_error_with_both_numbers(tmp_path):
    message = refusal(tmp_path, k=4, exclude_self=False, items=table(list(GOOD), list(GOOD.values())))
    assert says(message, "k is 4", "3 items", "lower k or add items", "k_above_items")


def test_self_exclusion_takes_one_item_out_of_reach(tmp_path):
    message = refusal(tmp_path, k=3, items=table(list(GOOD), list(GOOD.values())))
    assert says(message, "k is 3", "2 items")
    assert report(tmp_path, k=2, items=table(list(GOOD), list(GOOD.values()))).errors == ()


def test_k_above_the_items_may_be_kept_and_lists_are_then_short(tmp_path):
    items = table(list(GOOD), list(GOOD.values()))
    snapshot = nearcast.run(spec(k=5, checks={"k_above_items": "keep"}), items=items, base=tmp_path).snapshot
    found = snapshot.lookup("a")
    assert (found.ids, found.reason) == (("c", "b"), "too_few_eligible")


def test_dropped_items_do_not_count_towards_k(tmp_path):
    message = refusal(tmp_path, k=4, exclude_self=False, checks={"not_finite": "drop"}, items=with_bad([NAN, 1]))
    assert says(message, "k is 4", "3 items")


def embedding_spec(of_items, of_queries, **more):
    sides = {
        side: {"path": f"{side}.parquet"} | ({} if version is None else {"embedding": version})
        for side, version in (("items", of_items), ("queries", of_queries))
    }
    return sides | more


@pytest.mark.parametrize("versions", [("v1", "v2"), ("v1", None), (None, "v2")])
def test_embedding_versions_that_differ_are_an_error_that_names_both_or_kept(versions, tmp_path):
    for side in ("items", "queries"):
        write_parquet(tmp_path / f"{side}.parquet", list(GOOD), list(GOOD.values()))
    message = refusal(tmp_path, **embedding_spec(*versions))
    assert says(message, *(repr(v) for v in versions if v), "one model", "[embedding]")
    assert "None" not in message
    found, _ = nearcast.check(spec(**embedding_spec(*versions, checks={"embedding": "keep"})), base=tmp_path)
    assert [p.policy for p in found.problems] == ["keep"]


def test_equal_embedding_versions_and_undeclared_ones_are_fine(tmp_path):
    for side in ("items", "queries"):
        write_parquet(tmp_path / f"{side}.parquet", list(GOOD), list(GOOD.values()))
    for version in ("v1", None):
        assert nearcast.check(spec(**embedding_spec(version, version)), base=tmp_path)[0].problems == ()


@pytest.mark.parametrize("checks", [{}, {"wrong_dimension": "drop"}, {"wrong_dimension": "keep"}])
def test_queries_and_items_of_two_dimensions_never_join(checks, tmp_path):
    sides = {"items": table(list(GOOD), list(GOOD.values())), "queries": table(["q"], [[1, 2, 3]])}
    message = refusal(tmp_path, exclude_self=False, checks=checks, **sides)
    assert says(message, "items have 2 components", "queries", "3", "one model")


@pytest.mark.parametrize(
    ("setting", "column"),
    [
        ({"id": "key"}, "key"),
        ({"vector": "emb"}, "emb"),
        ({"attributes": ["brand"]}, "brand"),
        ({"display": ["x"]}, "x"),
    ],
)
def test_a_missing_column_is_named_with_the_file_and_the_columns_there_are(setting, column, tmp_path):
    write_parquet(tmp_path / "items.parquet", list(GOOD), list(GOOD.values()), name=["A", "B", "C"])
    message = refusal(tmp_path, items=FILE | setting)
    assert says(message, "items.parquet has no column", repr(column), "id, vector, name")


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame, pa.table])
def test_a_missing_column_of_a_table_is_named(library, tmp_path):
    assert says(refusal(tmp_path, items=library({"id": [1, 2]})), "items has no column 'vector'", "columns are id")
    both = refusal(tmp_path, items=library({"key": [1, 2]}))
    assert says(both, "no column 'id', 'vector'", 'the spec says which one it is: id = "..." and vector = "..."')


@pytest.mark.parametrize("path", ["missing.parquet", "missing/", "missing/*.parquet"])
def test_a_missing_file_is_named_with_its_full_path(path, tmp_path):
    message = refusal(tmp_path, items={"path": path})
    assert says(message, "no Parquet file at", str(tmp_path), "missing", "relative to the spec")


@pytest.mark.parametrize("contents", [b"", b"id,vector\n1,2\n", b"PAR1 cut short"])
def test_a_file_that_is_no_parquet_is_named(contents, tmp_path):
    (tmp_path / "items.parquet").write_bytes(contents)
    assert says(refusal(tmp_path, items=FILE), str(tmp_path / "items.parquet"), "is not a readable Parquet file")


def test_a_parquet_file_cut_short_in_its_middle_is_named(tmp_path):
    path = write_parquet(
        tmp_path / "items.parquet", list(range(2000)), np.random.default_rng(0).random((2000, 8)).tolist()
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes(len(whole) // 2 - 100) + whole[len(whole) // 2 :])
    assert says(refusal(tmp_path, items=FILE), "items.parquet")


@pytest.mark.parametrize(
    ("element", "name"), [(pa.int64(), "int64"), (pa.int32(), "int32"), (pa.bool_(), "bool"), (pa.string(), "string")]
)
def test_vectors_of_other_numbers_are_refused_with_the_ones_that_work(element, name, tmp_path):
    values = {pa.string(): ["x", "y"], pa.bool_(): [True, False]}.get(element, [1, 2])
    message = refusal(tmp_path, items=table(["a"], [values], element=element))
    assert says(message, "'vector'", name, "float16, float32, float64, int8 or uint8")


def test_a_column_that_holds_no_lists_is_refused(tmp_path):
    message = refusal(tmp_path, items=pa.table({"id": ["a"], "vector": [1.5]}))
    assert says(message, "'vector' is double", "lists of float16")


def test_lists_of_lists_are_refused(tmp_path):
    assert says(refusal(tmp_path, items=pa.table({"id": ["a"], "vector": [[[1.0]]]})), "'vector'", "lists of float16")


@pytest.mark.parametrize("ids", [pa.array([1.0, 2.0]), pa.array([True, False]), pa.array([[1], [2]])])
def test_ids_that_are_neither_strings_nor_integers_are_refused_with_their_type(ids, tmp_path):
    message = refusal(tmp_path, items=table(ids, [[1, 0], [0, 1]]))
    assert says(message, "items: ids in 'id' are", str(ids.type), "strings or integers")


@pytest.mark.parametrize(
    "items",
    [
        (np.array([1.0, 2.0]), np.eye(2)),
        (np.array([1.0, 2.0], object), np.eye(2)),
        pd.DataFrame({"id": [1.0, None], "vector": [[1.0, 0.0], [0.0, 1.0]]}),
    ],
    ids=["pair", "pair of objects", "pandas"],
)
def test_ids_of_floats_are_refused_wherever_they_come_from(items, tmp_path):
    assert says(refusal(tmp_path, items=items), "ids", "strings or integers")


@pytest.mark.parametrize(
    "items",
    [
        (np.array(["a", 1], object), np.eye(2)),
        pd.DataFrame({"id": pd.Series(["a", 1], dtype=object), "vector": [[1.0, 0.0], [0.0, 1.0]]}),
    ],
    ids=["pair", "pandas"],
)
def test_ids_of_two_types_in_one_column_are_refused(items, tmp_path):
    assert says(refusal(tmp_path, items=items), "items", "id")


def test_a_missing_id_among_objects_is_a_null_id(tmp_path):
    message = refusal(tmp_path, items=(np.array(["a", None, "b"], object), np.eye(3)))
    assert says(message, "1 row has no id", "items row 1", "null_id")


@pytest.mark.parametrize(
    ("ids", "vectors", "words"),
    [
        (["a", "b", "c"], np.eye(2), ["3", "2"]),
        (["a", "b"], np.ones(2), ["vectors have shape (2,)"]),
        (["a", "b"], np.ones((2, 2, 2)), ["vectors have shape (2, 2, 2)"]),
        (["a", "b"], np.ones((2, 0)), ["no components"]),
        ([["a"], ["b"]], np.eye(2), ["ids have shape (2, 1)"]),
        (["a", "b"], np.eye(2, dtype=complex), ["complex"]),
        (["a", "b"], np.eye(2, dtype=np.int64), ["int64", "float16, float32, float64, int8 or uint8"]),
    ],
    ids=["too few vectors", "flat", "three dimensions", "no components", "nested ids", "complex", "int64"],
)
def test_a_pair_of_arrays_that_do_not_fit_is_refused(ids, vectors, words, tmp_path):
    assert says(refusal(tmp_path, items=(np.array(ids), vectors)), "items", *words)


@pytest.mark.parametrize("data", [[1, 2], {"id": [1]}, (np.eye(2),), "items.parquet"])
def test_what_is_no_table_is_refused_with_what_works(data, tmp_path):
    with pytest.raises(InputError) as caught:
        nearcast.check(spec(), items=data, base=tmp_path)
    assert says(str(caught.value), "items is a", "Arrow, pandas or polars table, or a pair (ids, vectors)")


@pytest.mark.parametrize("vectors", [[[1.0], [2.0, 3.0]], [[1.0, 0.0], None]], ids=["ragged", "a missing one"])
def test_a_pair_with_vectors_that_are_no_matrix_is_refused(vectors, tmp_path):
    assert says(refusal(tmp_path, items=(["a", "b"], vectors)), "items")


def test_npy_vectors_without_ids_are_refused_with_the_line_to_add(tmp_path):
    message = refusal(tmp_path, SpecError, items={"path": "vectors.npy"})
    assert says(message, "vectors.npy holds vectors without ids", 'ids = "ids.npy"')


def npy(tmp_path, vectors, ids=("a", "b")):
    np.save(tmp_path / "vectors.npy", vectors)
    (tmp_path / "ids.txt").write_text("".join(f"{i}\n" for i in ids))
    return {"path": "vectors.npy", "ids": "ids.txt"}


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (np.eye(3), ["ids.txt has 2 ids for the 3 vectors"]),
        (np.ones(2), ["vectors.npy has shape (2,)", "(count, dimension)"]),
        (np.eye(2, dtype=np.int64), ["int64", "float16, float32, float64, int8 or uint8"]),
        (np.eye(2, dtype=complex), ["complex"]),
        (np.array([[1, None], [2, 3]], object), ["vectors.npy"]),
        (np.ones((2, 0)), ["no components"]),
    ],
    ids=["too few ids", "flat", "int64", "complex", "objects", "no components"],
)
def test_npy_vectors_that_do_not_fit_are_refused(vectors, words, tmp_path):
    assert says(refusal(tmp_path, items=npy(tmp_path, vectors)), *words)


def test_a_missing_npy_file_is_named(tmp_path):
    (tmp_path / "ids.txt").write_text("a\n")
    message = refusal(tmp_path, items={"path": "vectors.npy", "ids": "ids.txt"})
    assert says(message, str(tmp_path / "vectors.npy"))


@pytest.mark.parametrize("ids", ["ids.txt", "ids.npy", "ids.parquet"])
def test_a_missing_file_of_ids_is_named(ids, tmp_path):
    np.save(tmp_path / "vectors.npy", np.eye(2))
    assert says(refusal(tmp_path, items={"path": "vectors.npy", "ids": ids}), str(tmp_path / ids))


def test_a_missing_column_of_the_file_of_ids_is_named(tmp_path):
    np.save(tmp_path / "vectors.npy", np.eye(2))
    pq.write_table(pa.table({"key": ["a", "b"]}), tmp_path / "ids.parquet")
    message = refusal(tmp_path, items={"path": "vectors.npy", "ids": "ids.parquet"})
    assert says(message, "ids.parquet has no column 'id'", "columns are key")


def test_an_npy_file_that_is_none_is_named(tmp_path):
    (tmp_path / "vectors.npy").write_bytes(b"no array")
    (tmp_path / "ids.txt").write_text("a\n")
    message = refusal(tmp_path, items={"path": "vectors.npy", "ids": "ids.txt"})
    assert says(message, "vectors.npy is not a readable .npy file")


def test_ids_of_floats_in_an_npy_file_are_refused(tmp_path):
    np.save(tmp_path / "vectors.npy", np.eye(2))
    np.save(tmp_path / "ids.npy", np.array([0.5, 1.5]))
    message = refusal(tmp_path, items={"path": "vectors.npy", "ids": "ids.npy"})
    assert says(message, "ids.npy", "float64", "strings or integers")


def test_every_bad_input_is_an_error_of_ours_with_an_exit_code():
    assert issubclass(InputError, NearcastError)
    assert (InputError.exit_code, SpecError.exit_code) == (3, 2)


def test_the_norms_of_both_sides_are_summed_up(tmp_path):
    sides = {"items": table(["a", "b"], [[3, 4], [0, 1]]), "queries": table(["q"], [[6, 8]])}
    found = report(tmp_path, exclude_self=False, **sides)
    assert found.items.norms == {"mean": 3.0, "min": 1.0, "max": 5.0, "p01": 1.04, "p25": 2.0, "p50": 3.0, "p75": 4.0,
                                 "p99": 4.96, "unit_share": 0.5}  # fmt: skip
    assert found.queries.norms["mean"] == 10.0
