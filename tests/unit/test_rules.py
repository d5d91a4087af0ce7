from __future__ import annotations

import datetime
import operator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearcast.eligibility import (
    check_rules,
    collect_columns,
    compile_rules,
    failing,
    item_only,
    open_eligibility,
    parse_rule,
    request_time,
    save_eligibility,
)
from nearcast.errors import DamagedError, InputError, SpecError
from nearcast.knn.eligible import BitsetOverlap, Interval, ListOverlap, eligible_pairs
from rule_cases import SCHEMA, conditions, tables


def parse_rules(*texts):
    return [parse_rule(f"r{number}", text) for number, text in enumerate(texts)]


def kept(rules, queries, items):
    """(n, m) what the compiled rules keep."""
    compiled = compile_rules(rules, queries, items)
    return np.ones((len(queries), len(items)), np.bool_) if compiled is None else eligible_pairs(compiled)


def judged(rules, queries, items):
    """(n, m) what the slow judge keeps, pair by pair."""
    pairs = [[failing(rules, query, item) is None for item in items.to_pylist()] for query in queries.to_pylist()]
    return np.array(pairs, np.bool_).reshape(len(queries), len(items))


def pairs(text, *, query, item):
    """What one rule keeps of columns given as lists, as rows of 0 and 1."""
    queries, items = (pa.table({"id": range(len(next(iter(side.values())))), **side}) for side in (query, item))
    found = kept(parse_rules(text), queries, items)
    assert (found == judged(parse_rules(text), queries, items)).all()
    return found.astype(int).tolist()


def refusal(*texts, items=SCHEMA, queries=SCHEMA):
    with pytest.raises(SpecError) as caught:
        check_rules(parse_rules(*texts), items, queries)
    return str(caught.value)


# ---- what rules mean ----


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(conditions(), min_size=1, max_size=3), tables(), tables())
def test_compiled_rules_keep_the_pairs_that_the_judge_keeps(texts, queries, items):
    rules = parse_rules(*texts)
    assert (kept(rules, queries, items) == judged(rules, queries, items)).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(texts=st.lists(conditions(), min_size=1, max_size=2), queries=tables(), items=tables(), data=st.data())
def test_columns_that_hold_nothing_need_no_type(texts, queries, items, data):
    names = data.draw(st.lists(st.sampled_from(SCHEMA.names[1:]), min_size=1, max_size=4, unique=True))
    known = [without_values(table, names, typed=True) for table in (queries, items)]
    untyped = [without_values(table, names, typed=False) for table in (queries, items)]
    assert (kept(parse_rules(*texts), *known) == kept(parse_rules(*texts), *untyped)).all()


def without_values(table, names, *, typed):
    """The table with null or [] in these columns: of their types, or, as pandas writes them, of none."""
    for name in names:
        kind = table.schema.field(name).type
        nothing = pa.nulls(len(table), kind if typed else None)
        if pa.types.is_list(kind) and len(name) % 2:
            nothing = pa.array([[]] * len(table), kind if typed else pa.list_(pa.null()))
        table = table.set_column(table.schema.get_field_index(name), name, nothing)
    return table


def test_a_set_that_has_a_value():
    found = pairs(
        "item.countries has query.country",
        query={"country": ["NL", "DE", None]},
        item={"countries": [["NL", "BE"], [], None, ["DE", None]]},
    )
    assert found == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_a_missing_list_excludes_nothing():
    found = pairs("item.id not in query.bought", query={"bought": [[0, 2], [], None]}, item={"x": [1, 1, 1]})
    assert found == [[0, 1, 0], [1, 1, 1], [1, 1, 1]]


def test_a_missing_value_is_neither_in_a_list_nor_outside_of_it():
    sides = {"query": {"country": ["NL", None]}, "item": {"banned": [["NL"], ["DE"], None]}}
    assert pairs("item.banned has query.country", **sides) == [[1, 0, 0], [0, 0, 0]]
    assert pairs("not item.banned has query.country", **sides) == [[0, 1, 1], [0, 0, 0]]


def test_what_is_compared_with_null_is_barred_until_the_rule_says_otherwise():
    sides = {"query": {"a": ["x", None]}, "item": {"a": ["x", "y", None]}}
    assert pairs("item.a != query.a", **sides) == [[0, 1, 0], [0, 0, 0]]
    assert pairs("not item.a == query.a", **sides) == [[0, 1, 0], [0, 0, 0]]
    assert pairs("item.a != query.a or item.a is null", **sides) == [[0, 1, 1], [0, 0, 1]]


def test_a_budget_times_a_factor_is_exact_in_float64():
    price = 0.1 * 3  # a little above 0.3
    assert pairs("item.price <= query.budget * 3", query={"budget": [0.1]}, item={"price": [0.3, price]}) == [[1, 1]]
    assert pairs("item.price < query.budget * 3", query={"budget": [0.1]}, item={"price": [0.3, price]}) == [[1, 0]]


def test_whole_numbers_are_compared_as_such():
    big = 2**53
    assert pairs("item.a == query.a", query={"a": [big + 1]}, item={"a": [big, big + 1, big + 2]}) == [[0, 1, 0]]


def test_nan_is_null_and_so_is_a_division_by_zero():
    assert pairs("item.a <= query.a", query={"a": [float("nan"), 1.0]}, item={"a": [0.0, float("nan")]}) == [
        [0, 0],
        [1, 0],
    ]
    assert pairs("1 / item.a > query.a", query={"a": [0.0]}, item={"a": [0.0, 2.0]}) == [[0, 1]]


def test_a_window_of_days():
    day = datetime.date(2026, 11, 25)
    ages = [day - datetime.timedelta(days=n) for n in (0, 28, 29)]
    assert pairs("query.day - item.day <= days(28)", query={"day": [day]}, item={"day": ages}) == [[1, 1, 0]]
    assert pairs("item.day >= query.day - days(28)", query={"day": [day]}, item={"day": ages}) == [[1, 1, 0]]


def test_a_date_is_midnight_and_time_zones_are_minded():
    at = [datetime.datetime(2026, 11, 25, tzinfo=datetime.UTC), datetime.datetime(2026, 11, 25, 1, tzinfo=datetime.UTC)]
    item = {"at": pa.array(at, pa.timestamp("ns", "Europe/Amsterdam"))}
    found = pairs("item.at <= query.day", query={"day": [datetime.date(2026, 11, 25)]}, item=item)
    assert found == [[1, 0]]


def test_never_oneself():
    assert pairs("item.id != query.id", query={"x": [0, 0]}, item={"x": [0, 0]}) == [[0, 1], [1, 0]]


def test_every_rule_must_hold_and_the_first_that_does_not_is_named():
    rules = parse_rules("item.a > 0", "item.b > 0")
    rows = [{"a": 1, "b": 1}, {"a": 1, "b": 0}, {"a": 0, "b": 0}, {"a": None, "b": 1}, {}]
    assert [failing(rules, {}, row) for row in rows] == [None, "r1", "r0", "r0", "r0"]


# ---- what rules are compiled to ----


def leaves(*texts, query, item):
    queries, items = (pa.table({"id": range(len(next(iter(side.values())))), **side}) for side in (query, item))
    compiled = compile_rules(parse_rules(*texts), queries, items)
    return [] if compiled is None else list(compiled.leaves)


def test_conditions_of_the_item_alone_become_one_leaf():
    found = leaves(
        "item.a > 1",
        "item.a < 5 and item.b",
        "item.a == query.a",
        query={"a": [1]},
        item={"a": [1, 3], "b": [True, True]},
    )
    assert [type(leaf) for leaf in found] == [Interval, Interval]
    assert found[0].codes.tolist() == [-1, 0]


def test_rules_that_keep_every_pair_are_no_eligibility():
    assert leaves("item.a > 0", "query.a == 1", query={"a": [1]}, item={"a": [1, 3]}) == []
    assert compile_rules([], pa.table({"id": [1]}), pa.table({"id": [1]})) is None


def test_rules_that_wait_for_a_request_do_not_bind_at_the_join():
    assert leaves("item.a == request.a", query={"a": [1]}, item={"a": [1, 3]}) == []


@pytest.mark.parametrize(
    ("size", "kind", "words"),
    [(3, BitsetOverlap, 1), (64, BitsetOverlap, 1), (65, BitsetOverlap, 2), (257, ListOverlap, 0)],
)
def test_few_values_are_bits_and_many_are_lists(size, kind, words):
    values = [f"v{number}" for number in range(size)]
    (leaf,) = leaves("item.v overlaps query.v", query={"v": [values, []]}, item={"v": [values[:2], values[1:]]})
    assert type(leaf) is kind
    assert kind is ListOverlap or leaf.items.shape == (2, words)


def test_values_that_only_one_side_holds_take_no_bits():
    (leaf,) = leaves(
        "item.v has query.v", query={"v": ["a", "z"]}, item={"v": [["a"], [f"v{number}" for number in range(999)]]}
    )
    assert isinstance(leaf, BitsetOverlap)
    assert leaf.items.tolist() == [[1], [0]]


def test_lists_of_many_values_keep_what_the_judge_keeps():
    rng = np.random.default_rng(5)
    queries, items = (
        pa.table({"id": range(40), "v": [rng.integers(0, 3000, size=rng.integers(0, 90)).tolist() for _ in range(40)]})
        for _ in range(2)
    )
    for text in (
        "item.v overlaps query.v",
        "not item.v overlaps query.v",
        "query.v has item.id",
        "item.id not in query.v",
    ):
        assert (kept(parse_rules(text), queries, items) == judged(parse_rules(text), queries, items)).all()


def test_many_rules_nest_no_deeper_than_the_native_evaluation_can_go():
    from nearcast.kernels.rule_blocks import MAX_DEPTH, compute_depth

    texts = [f"item.a != query.a + {number}" for number in range(80)]
    sides = {"query": {"a": [1, 5]}, "item": {"a": [1, 3]}}
    queries, items = (pa.table({"id": [0, 1], **sides[side]}) for side in ("query", "item"))
    compiled = compile_rules(parse_rules(*texts), queries, items)
    assert compute_depth(compiled.tree) < MAX_DEPTH
    assert (eligible_pairs(compiled) == judged(parse_rules(*texts), queries, items)).all()


def test_what_is_saved_is_opened_again_byte_for_byte(tmp_path):
    rng = np.random.default_rng(3)
    table = pa.table(
        {"id": range(5), "a": rng.integers(5, size=5), "v": [[1, 2], [3], [], None, [2]], "s": [list(range(300))] * 5}
    )
    rules = parse_rules("item.a <= query.a", "not item.v overlaps query.v or item.a == 3", "item.s overlaps query.s")
    compiled = compile_rules(rules, table, table)
    save_eligibility(compiled, tmp_path / "one")
    save_eligibility(compile_rules(rules, table, table), tmp_path / "two")
    opened = open_eligibility(tmp_path / "one")
    assert opened.tree == compiled.tree
    assert (eligible_pairs(opened) == eligible_pairs(compiled)).all()
    assert (eligible_pairs(opened.of_items(slice(1, 3))) == eligible_pairs(compiled)[:, 1:3]).all()
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) > 3
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_damaged_is_told(tmp_path):
    table = pa.table({"id": [1, 2], "a": [1, 2]})
    save_eligibility(compile_rules(parse_rules("item.a == query.a"), table, table), tmp_path)
    next(tmp_path.glob("*-codes.npy")).unlink()
    with pytest.raises(DamagedError, match="run again"):
        open_eligibility(tmp_path)


# ---- what rules speak of ----


def test_rules_tell_what_they_need():
    rules = parse_rules(
        "item.a > 1 and not item.flag", "item.a < query.b and item.id != query.id", "item.c == request.d"
    )
    assert collect_columns(rules) == (("a", "flag", "c"), ("b",), ("d",))
    assert item_only(rules) == (rules[0],)
    assert request_time(rules) == (rules[2],)


# ---- what is refused before anything runs ----


@pytest.mark.parametrize(
    ("text", "word", "way_out"),
    [
        ("item.tinny == 1", "item.tinny", "did you mean 'tiny'?"),
        ("item.budget == 1", "item.budget", "write query.budget"),
        ("query.zzzzzz == 1", "query.zzzzzz", "they have id, "),
        ("item.texts == query.text", "item.texts", "takes has, in or overlaps"),
        ("item.text has query.text", "item.text", "write == for one value"),
        ("item.texts has query.texts", "query.texts", "write overlaps for two lists"),
        ("item.texts overlaps query.text", "query.text", "write has or in"),
        ("item.texts has query.tiny", "item.texts has query.tiny", "cast one of them"),
        ("item.text == 3", "item.text == 3", "compare values of one type"),
        ("item.day > '2026-01-01'", "item.day > '2026-01-01'", 'write date("2026-11-25")'),
        ("item.day - query.day > 28", "item.day - query.day > 28", "write days(28)"),
        ("item.day + 3 > query.day", "item.day", "days(3)"),
        ("item.day + query.day > query.day", "item.day + query.day", "but not added"),
        ("item.tiny * item.text > 1", "item.text", "only numbers are multiplied"),
        ("item.tiny / 0 > 1", "0", "divides by zero"),
        ("item.flag < query.flag", "item.flag < query.flag", "write == or !="),
        ("item.text", "item.text", "a condition is needed"),
        ("(item.tiny > 1) == item.flag", "item.tiny > 1", "this is a condition"),
        ("item.text in ['a', 3]", "['a', 3]", "only one of these"),
        ("item.blob == 'a'", "item.blob", "cast it in the source of the items"),
        ("request.a == request.b", "request.a", "nothing tells the type"),
        ("request.a is null", "request.a", "nothing tells the type"),
        (" + ".join(["item.took"] * 17) + " > query.took", None, "make a column of them"),
    ],
)
def test_what_does_not_fit_the_schemas_is_refused_at_the_word(text, word, way_out):
    items = SCHEMA.append(pa.field("blob", pa.binary()))
    queries = SCHEMA.append(pa.field("budget", pa.float64()))
    message = refusal(text, items=items, queries=queries)
    assert way_out in message
    if word is not None:
        _, line, marks = message.split("\n")
        assert line[marks.index("^") : marks.rindex("^") + 1] == word


def test_two_rules_of_one_name_are_refused():
    with pytest.raises(SpecError, match="2 rules are called 'a'"):
        check_rules([parse_rule("a", "item.flag"), parse_rule("a", "query.flag")], SCHEMA, SCHEMA)


def test_fields_of_a_request_have_the_type_of_what_they_are_compared_with():
    rules = parse_rules(
        "item.texts has request.country",
        "item.num <= request.limit * 1.5",
        "request.today - item.day <= days(30)",
        "item.id not in request.blocked",
        "request.adult or not item.flag",
        "request.tags overlaps item.texts",
        "item.at > request.now - request.patience",
        "request.low <= request.limit",
        "request.word is null",
    )
    found = check_rules(rules, SCHEMA, SCHEMA).request
    assert {name: kind.as_plain() for name, kind in found.items()} == {
        "country": "text",
        "limit": "number",
        "today": "time",
        "blocked": "[integer]",
        "adult": "boolean",
        "tags": "[text]",
        "now": "time",
        "patience": "duration",
        "low": "number",
        "word": "text",  # as the queries' column is
    }


def test_a_time_that_no_calendar_has_is_refused_with_the_way_out():
    table = pa.table({"id": [1], "at": pa.array([2**62], pa.timestamp("s"))})
    with pytest.raises(InputError, match="write null"):
        compile_rules(parse_rules("item.at > query.at"), table, table)


def test_a_whole_number_beyond_64_bits_is_refused_with_the_way_out():
    table = pa.table({"id": [1], "n": pa.array([2**64 - 1], pa.uint64())})
    with pytest.raises(InputError, match="cast it to double"):
        compile_rules(parse_rules("item.n > query.n"), table, table)


# ---- numbers and times of two types are compared by their values ----

TIMES = [
    pa.date32(),
    pa.date64(),
    *(pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Asia/Tokyo")),
]
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
MIDNIGHT = 1_795_564_800  # of 25 November 2026, in seconds


def at_midnight(kind, later):
    """A column of that midnight, and, where its unit can tell, of the smallest step later."""
    if pa.types.is_date(kind):
        return pa.array([datetime.date(2026, 11, 25)], kind)
    return pa.array([MIDNIGHT * PER_SECOND[kind.unit] + later], kind)


@pytest.mark.parametrize("item", TIMES, ids=str)
@pytest.mark.parametrize("query", TIMES, ids=str)
def test_times_of_all_types_are_compared_to_the_last_unit(item, query):
    sides = {"query": {"t": at_midnight(query, 0)}, "item": {"t": at_midnight(item, 0)}}
    assert pairs("item.t == query.t", **sides) == [[1]]
    assert pairs("item.t < query.t", **sides) == [[0]]
    if pa.types.is_timestamp(item):
        for later, order in ((1, ">"), (-1, "<")):
            sides["item"] = {"t": at_midnight(item, later)}
            assert pairs(f"item.t {order} query.t", **sides) == [[1]]
            assert pairs(f"query.t {order} item.t", **sides) == [[0]]
            assert pairs("item.t != query.t and not item.t in [date('2026-11-25')]", **sides) == [[1]]


def test_a_nanosecond_counts_beside_dates_that_nanoseconds_cannot_hold():
    query = {"day": [datetime.date(2026, 11, 25), datetime.date(9999, 12, 31), None]}
    item = {"at": pa.array([MIDNIGHT * 10**9, MIDNIGHT * 10**9 + 1, None], pa.timestamp("ns"))}
    assert pairs("query.day < item.at", query=query, item=item) == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert pairs("query.day >= item.at", query=query, item=item) == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert pairs("query.day + days(1) > item.at + days(1)", query=query, item=item)[0] == [0, 0, 0]


@pytest.mark.parametrize("word", ["2026-11-25T00:00:00.000000001Z", "2026-11-25T01:00:00.000000001+01:00"])
def test_a_constant_time_has_nanoseconds(word):
    item = {"at": pa.array([MIDNIGHT * 10**9 + step for step in range(3)], pa.timestamp("ns"))}
    assert pairs(f"item.at == date('{word}')", query={"x": [0]}, item=item) == [[0, 1, 0]]
    assert pairs(f"item.at - date('{word}') < hours(0)", query={"x": [0]}, item=item) == [[1, 0, 0]]


BIG = 2**53
WHOLES = [-(2**63), -BIG - 1, -BIG, -1, 0, 1, BIG, BIG + 1, 2**63 - 1]
FLOATS = [-np.inf, -(2.0**64), -(2.0**63), -(2.0**53), -0.5, -0.0, 0.5, 2.0**53, BIG + 2.0, 2.0**63, 1e300, np.inf]


@pytest.mark.parametrize("order", ["==", "!=", "<", "<=", ">", ">="])
@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()])
def test_whole_numbers_and_floats_are_compared_by_their_values(order, kind):
    wholes = [value for value in WHOLES if value >= 0 or kind == pa.int64()]
    found = pairs(f"item.n {order} query.x", query={"x": FLOATS}, item={"n": pa.array(wholes, kind)})
    holds = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt}
    exact = holds.get(order, operator.ge)  # Python compares a whole number and a float exactly
    assert found == [[int(exact(n, x)) for n in wholes] for x in FLOATS]


def test_a_list_of_floats_has_a_whole_number_only_where_it_is_the_same():
    found = pairs("query.x has item.n", query={"x": [[float(BIG)], [3.0]]}, item={"n": [BIG, BIG + 1, 3]})
    assert found == [[1, 0, 0], [0, 0, 1]]


# ---- arithmetic on constants ----


@pytest.mark.parametrize(
    "text",
    [
        "(-1 / 0) == 1",
        "1.2 / 0 == 1",
        "0 / 0 == 0",
        "item.tiny / 0 > 1",
        "item.tiny / -0 > 1",
        "item.tiny / 0.0 > 1",
        "item.tiny / (1 - 1) > 1",
        "item.tiny / (2 * 0) > 1",
        "1 / (0 / 1) < item.tiny",
        "item.tiny < query.tiny + 1 / 0",
        "item.ints has 1 / 0",
        "not (item.tiny > 1 or query.num / (3 - 3) > 1)",
        "request.limit / 0 > item.tiny",
        "item.tiny <= 1 / 0 <= query.tiny",
        "(1 / 0) is null",
    ],
)
def test_a_division_by_a_constant_zero_is_refused_wherever_it_stands(text):
    assert "divides by zero" in refusal(text)


@pytest.mark.parametrize("text", ["item.num < 1e308 * 10", "item.num < 1e308 + 1e308", "1e300 / 1e-300 > item.num"])
def test_constants_that_come_to_no_number_are_refused(text):
    assert "comes to no number" in refusal(text)


def test_a_division_by_zero_in_the_data_is_null():
    sides = {"query": {"z": [0, 1]}, "item": {"z": [0, 2]}}
    assert pairs("(1 / item.z) is null", **sides) == [[1, 0], [1, 0]]
    assert pairs("1 / item.z > 0 or query.z == 1", **sides) == [[0, 1], [1, 1]]
    assert pairs("not 1 / item.z > 0", **sides) == [[0, 0], [0, 0]]
