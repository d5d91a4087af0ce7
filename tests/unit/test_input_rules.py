"""The rules that compare inputs: what each refuses by name of the column, and what is natural and passes."""

from __future__ import annotations

import datetime
import decimal
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nearcast.join.profile_inputs import _comparison_kind, _is_empty, _summarize_values, _to_plain_array
from nearcast.measure.profile import compare_columns
from nearcast.publishing.audit_rules import RULES
from nearcast.publishing.audit_values import (
    AuditFigures,
    CurrentFigures,
    CurrentInputs,
    Finding,
    ValueChange,
    VectorChange,
)
from nearcast.sources import ids as ids_module
from nearcast.sources.ids import hash_ids, sample_rows_by_hash
from nearcast.spec import AuditSpec

N = 2_000
RNG = np.random.default_rng(1)
PRICES = np.round(RNG.lognormal(3, 1, N), 2)
COUNTRIES = RNG.choice(["DE", "FR", "NL"], N, p=[0.5, 0.3, 0.2])
DAYS = np.array([datetime.date(2026, 3, 1) - datetime.timedelta(days=int(d)) for d in RNG.exponential(200, N)])


def column(values: Any, kind: pa.DataType | None = None) -> dict[str, Any]:
    """The profile of a column with these values."""
    array = _to_plain_array(pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values, kind)]))
    empty = _is_empty(array)
    there = array.filter(pa.array(~empty))
    facts = {
        "type": str(array.type),
        "kind": _comparison_kind(array.type),
        "empty": float(empty.mean()) if len(empty) else 0.0,
        "count": len(there),
    }
    return facts | (_summarize_values(there) if len(there) else {})


def table(**attributes: dict[str, Any]) -> dict[str, Any]:
    """The profile of a table with these columns."""
    return {
        "rows": N,
        "vectors": N,
        "dim": 16,
        "median_length": 1.0,
        "embedding": None,
        "id_type": "string",
        "faults": {},
        "attributes": attributes,
    }


GOOD = {"items": table(price=column(PRICES), country=column(COUNTRIES)), "rules": {}}
SERVED = CurrentInputs(N, 0.97, 86_400.0, GOOD, {}, {"items": VectorChange(1_000, 0.0, (16, 16))})
CURRENT = CurrentFigures("000006", 100, 10_000, 100, 100, 0.8, 100, SERVED)
SNAPSHOT = AuditFigures(
    "000007", 10, {"fill_rate": 1.0}, 0.95, True, 100, 10_000, 3600.0, False, CURRENT, N, "inner_product", GOOD
)


def judged(then: dict[str, Any] | None = None, now: dict[str, Any] | None = None, **served: Any) -> AuditFigures:
    """The snapshot with these tables' figures changed, then and now."""
    inputs = replace(SERVED, profile=GOOD | (then or {}), **served)
    return replace(SNAPSHOT, current=replace(CURRENT, inputs=inputs), profile=GOOD | (now or {}))


def found(rule: str, case: AuditFigures, **settings: Any) -> Finding:
    return RULES[rule].find(case, AuditSpec(**settings))


def columns(then: Any, now: Any, kind: pa.DataType | None = None, other: pa.DataType | None = None) -> AuditFigures:
    """One column `x` of the items, then and now."""
    return judged({"items": table(x=column(then, kind))}, {"items": table(x=column(now, other or kind))})


INPUT_RULES = list(RULES)[list(RULES).index("items") : list(RULES).index("vectors") + 1]


@pytest.mark.parametrize("rule", INPUT_RULES)
def test_the_same_inputs_pass_every_rule(rule: str) -> None:
    assert found(rule, SNAPSHOT).passed


@pytest.mark.parametrize("rule", INPUT_RULES)
def test_every_rule_passes_at_the_first_publish_and_beside_versions_without_a_profile(rule: str) -> None:
    alone = replace(SNAPSHOT, current=None)
    older = judged(None, None)
    older = replace(older, current=replace(CURRENT, inputs=replace(SERVED, profile=None, vectors={})))
    for case in (
        alone,
        older,
        replace(SNAPSHOT, profile=None),
        replace(SNAPSHOT, current=replace(CURRENT, inputs=None)),
    ):
        assert found(rule, case).passed


def test_a_version_without_a_profile_is_said() -> None:
    case = replace(SNAPSHOT, current=replace(CURRENT, inputs=replace(SERVED, profile=None)))
    text = "000006 was made without a profile of its inputs: the next one can be compared"
    assert found("distribution", case).text == text


@pytest.mark.parametrize(
    ("n", "passed"),
    [(N, True), (1_800, True), (1_799, False), (1_500, False), (1_000, False), (3_000, True), (3_001, False)],
)
def test_items_may_be_a_tenth_fewer_and_half_more(n: int, passed: bool) -> None:
    assert found("items", replace(SNAPSHOT, items=n)).passed is passed


def test_half_of_the_items_missing_says_so() -> None:
    text = found("items", replace(SNAPSHOT, items=1_000)).text
    assert text == (
        "it has 1,000 items where 000006 has 2,000: 50.00% are lost, and at most 10.00% may be; look for a part of the "
        "items that is missing"
    )


def test_ids_made_anew_are_refused_by_the_items_that_are_kept() -> None:
    finding = found("items_kept", judged(items_kept=0.0))
    assert not finding.passed
    assert "of the 2,000 items of 000006, 0.00% are in this snapshot too" in finding.text
    assert found("items_kept", judged(items_kept=0.7)).passed
    assert not found("items_kept", judged(items_kept=0.6995)).passed


DAY = datetime.timedelta(days=1)
TODAY = datetime.date(2026, 3, 1)
FLAGS = RNG.random(N) < 0.9
LISTS = [sorted(RNG.choice(["a", "b", "c", "d", "e"], RNG.integers(1, 3), replace=False).tolist()) for _ in range(N)]
THIRD = np.arange(N) % 3 == 0
NOISY = np.round(PRICES * RNG.lognormal(0, 0.08, N), 2)

BAD_VALUES = {
    "divided by 100": (PRICES, PRICES / 100),
    "in cents": (PRICES, PRICES * 100),
    "in cents, whole numbers": ((PRICES * 100).astype(int), (PRICES * 10_000).astype(int)),
    "another currency for a third": (PRICES, np.where(THIRD, PRICES * 25, PRICES)),
    "all the same": (PRICES, np.full(N, 9.99)),
    "a constant that became another": (np.full(N, 12.99), np.full(N, 0.13)),
    "filled with zeros": (np.where(THIRD, np.nan, PRICES), np.where(THIRD, 0.0, PRICES)),
    "negative": (PRICES, -PRICES),
    "counters at zero": (RNG.poisson(20, N), np.zeros(N, int)),
    "renamed": (COUNTRIES, np.char.lower(COUNTRIES)),
    "one value for all": (COUNTRIES, np.full(N, "DE")),
    "a value that is no longer there": (COUNTRIES, np.where(COUNTRIES == "NL", "DE", COUNTRIES)),
    "a flag turned round": (FLAGS, ~FLAGS),
    "a flag that is always true": (RNG.random(N) < 0.8, np.ones(N, bool)),
    "every list holds all": (LISTS, [["a", "b", "c", "d", "e"]] * N),
    "lists of other values": (LISTS, [[value.upper() for value in row] for row in LISTS]),
    "dates of 1970": (DAYS, np.full(N, datetime.date(1970, 1, 1))),
    "dates a year early": (DAYS, DAYS - 365 * DAY),
    "dates that are all today": (DAYS, np.full(N, TODAY)),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_column_with_other_values_is_refused_by_its_name(name: str) -> None:
    then, now = BAD_VALUES[name]
    case = columns(list(then), list(now))
    finding = found("distribution", case)
    assert not finding.passed, finding
    assert finding.text.startswith("x of the items: ")
    assert "-> " in finding.text
    assert "PSI " in finding.text
    assert found("distribution", case, skip_columns=("x",)).passed


NATURAL_VALUES = {
    "prices that move": (PRICES, NOISY),
    "prices of a sale of a third": (PRICES, np.where(THIRD, PRICES * 0.7, PRICES)),
    "everything a fifth dearer": (PRICES, PRICES * 1.2),
    "traffic of a weekend": (PRICES, NOISY * 1.9),
    "counters that grow": (RNG.poisson(20, N), RNG.poisson(21, N)),
    "a constant": (np.full(N, 0.19), np.full(N, 0.19)),
    "a constant that grows by one": (np.full(N, 20_260_301), np.full(N, 20_260_302)),
    "seconds since 1970": (np.full(N, 1_772_323_200), np.full(N, 1_772_409_600)),
    "another sample of the same": (RNG.lognormal(3, 1, N), RNG.lognormal(3, 1, N)),
    "another small sample of the same": (RNG.lognormal(3, 1, 300), RNG.lognormal(3, 1, 300)),
    "a tiny sample of the same": (RNG.lognormal(3, 1, 20), RNG.lognormal(3, 1, 20)),
    "stars": (RNG.choice([1, 2, 3, 4, 5], N), RNG.choice([1, 2, 3, 4, 5], N)),
    "a new category": (COUNTRIES, np.where(RNG.random(N) < 0.05, "BE", COUNTRIES)),
    "flags, a tenth of them another": (FLAGS, FLAGS ^ (RNG.random(N) < 0.1)),
    "texts that name their row": ([f"title {n}" for n in range(N)], [f"title {n}" for n in range(100, N + 100)]),
    "lists that grow": (LISTS, [[*row, "f"] if n % 10 == 0 else row for n, row in enumerate(LISTS)]),
    "always today": (np.full(N, TODAY), np.full(N, TODAY + DAY)),
    "always the last hours": (
        [datetime.datetime(2026, 3, 1) - datetime.timedelta(minutes=int(m)) for m in RNG.integers(0, 900, N)],
        [datetime.datetime(2026, 3, 2) - datetime.timedelta(minutes=int(m)) for m in RNG.integers(0, 900, N)],
    ),
    "releases": (DAYS, DAYS + DAY),
    "all null on both days": (np.full(N, None), np.full(N, None)),
}


@pytest.mark.parametrize("name", NATURAL_VALUES)
def test_what_is_natural_passes(name: str) -> None:
    then, now = NATURAL_VALUES[name]
    kind = pa.float64() if "null" in name else None
    case = columns(list(then), list(now), kind)
    for rule in ("distribution", "types", "empty_values"):
        finding = found(rule, case)
        assert finding.passed, finding


KINDS = {
    "number": ([1.5] * N, pa.float64()),
    "whole number": ([3] * N, pa.int64()),
    "text": (["a"] * N, pa.string()),
    "flag": ([True] * N, pa.bool_()),
    "date": ([TODAY] * N, pa.date32()),
    "list": ([["a"]] * N, pa.list_(pa.string())),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_null_everywhere_is_refused_by_its_name_whatever_its_type(kind: str) -> None:
    values, of = KINDS[kind]
    for nothing in (of, pa.null()):
        finding = found("empty_values", columns(values, [None] * N, of, nothing))
        assert not finding.passed
        assert finding.text.startswith("x of the items: null or empty in 0.00% -> 100.00% of the rows")
        assert found("types", columns(values, [None] * N, of, nothing)).passed


@pytest.mark.parametrize(
    ("values", "empty"), [(["a"] * N, [""] * N), ([["a"]] * N, [[]] * N), ([1.5] * N, [np.nan] * N)]
)
def test_empty_texts_lists_and_not_a_number_count_as_empty(values: list[Any], empty: list[Any]) -> None:
    kind = pa.array(values).type
    assert not found("empty_values", columns(values, empty, kind)).passed


def test_a_few_more_nulls_pass_and_a_quarter_more_does_not() -> None:
    some = np.where(RNG.random(N) < 0.05, None, PRICES)
    assert found("empty_values", columns(list(PRICES), list(some), pa.float64())).passed
    quarter = np.where(RNG.random(N) < 0.25, None, PRICES)
    assert not found("empty_values", columns(list(PRICES), list(quarter), pa.float64())).passed


@pytest.mark.parametrize("then", KINDS)
@pytest.mark.parametrize("now", KINDS)
def test_a_column_of_another_kind_is_refused_by_its_name(then: str, now: str) -> None:
    case = columns(KINDS[then][0], KINDS[now][0], KINDS[then][1], KINDS[now][1])
    same = then == now or {then, now} == {"number", "whole number"}
    finding = found("types", case)
    assert finding.passed is same
    assert same or finding.text == (
        f"x of the items: {KINDS[then][1]} -> {KINDS[now][1]}; write it with the type it had"
    ).replace("list<string>", str(pa.list_(pa.string())))


def test_ids_of_another_type_are_refused() -> None:
    finding = found("types", judged(None, {"items": GOOD["items"] | {"id_type": "int64"}}))
    assert finding.text == "ids of the items: string -> int64; write them with the type they had"


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        (ValueChange(1_000, 1.0, False, "True -> False"), False),
        (ValueChange(1_000, 0.4, False, "'a' -> 'b'"), True),
        (ValueChange(1_000, 0.33, True, "10 -> 43"), False),
        (ValueChange(1_000, 0.2, True, "10 -> 43"), True),
        (ValueChange(90, 0.4, True, "10 -> 43"), True),
        (ValueChange(20, 1.0, False, "True -> False"), True),
    ],
)
def test_items_of_both_versions_with_other_values(change: ValueChange, passed: bool) -> None:
    case = judged(changes={("items", "x"): change})
    assert found("changed_values", case).passed is passed
    assert found("changed_values", case, skip_columns=("x",)).passed
    assert passed or "x of the items: " in found("changed_values", case).text


def rule_facts(kept: float, barred: float = 0.0, by_null: float = 0.0, rows: int = 1_024) -> dict[str, Any]:
    return {
        "keep": "item.sold",
        "queries": rows,
        "items": rows,
        "pairs_kept": kept,
        "queries_without_items": barred,
        "without_items_by_null": by_null,
    }


@pytest.mark.parametrize(
    ("then", "now", "passed"),
    [
        (rule_facts(0.3), rule_facts(0.32), True),
        (rule_facts(0.3), rule_facts(1.0), False),
        (rule_facts(0.9), rule_facts(1.0), False),
        (rule_facts(0.97), rule_facts(1.0), True),
        (rule_facts(0.3), rule_facts(0.0), False),
        (rule_facts(0.2), rule_facts(0.05), False),
        (rule_facts(0.01), rule_facts(0.012), True),
        (rule_facts(0.3, rows=100), rule_facts(0.42, rows=100), True),
        (rule_facts(0.3, 0.03, 0.03), rule_facts(0.3, 0.05, 0.05), True),
        (rule_facts(0.3, 0.03, 0.03), rule_facts(0.2, 0.4, 0.4), False),
    ],
)
def test_a_rule_that_keeps_other_pairs_is_refused_by_its_name(
    then: dict[str, Any], now: dict[str, Any], passed: bool
) -> None:
    finding = found("pairs_kept", judged({"rules": {"sold": then}}, {"rules": {"sold": now}}))
    assert finding.passed is passed
    assert passed or finding.text.startswith("rule sold ")


def test_a_rule_that_was_rewritten_is_not_compared() -> None:
    now = rule_facts(1.0) | {"keep": "item.sold or item.new"}
    assert found("pairs_kept", judged({"rules": {"sold": rule_facts(0.3)}}, {"rules": {"sold": now}})).passed


ARROW_TYPES = [
    *(pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.decimal128(12, 2), pa.bool_()),
    *(pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string()), pa.null()),
    *(pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.time32("s"), pa.duration("ms")),
    *(pa.list_(pa.int64()), pa.large_list(pa.string()), pa.list_(pa.float32(), 2), pa.list_(pa.list_(pa.int8()))),
    *(pa.struct({"a": pa.int8()}), pa.map_(pa.string(), pa.int8()), pa.list_(pa.null()), pa.month_day_nano_interval()),
]


@pytest.mark.parametrize("kind", ARROW_TYPES, ids=str)
@pytest.mark.parametrize("values", ["null", "some", "none"])
def test_a_column_of_any_type_has_a_profile_that_is_json(kind: pa.DataType, values: str) -> None:
    array = pa.nulls(5, kind) if values == "null" else pa.array([], kind)
    if values == "some" and not pa.types.is_null(kind):
        array = pa.concat_arrays([pa.nulls(1, kind), pa.array([example_of(kind)] * 4, kind)])
    facts = column(array)
    json.dumps(facts, allow_nan=False)
    assert facts["count"] == (4 if values == "some" and not pa.types.is_null(kind) else 0)
    assert found("distribution", columns(array, array)).passed


def example_of(kind: pa.DataType) -> Any:
    """A value of the type."""
    if pa.types.is_fixed_size_list(kind):
        return [1.0, 2.0]
    if pa.types.is_nested(kind):
        return {"a": 1} if pa.types.is_struct(kind) else [("a", 1)] if pa.types.is_map(kind) else [None]
    examples = {"dur": datetime.timedelta(1), "mon": pa.MonthDayNano([1, 2, 3]), "bin": b"a", "boo": True}
    plain = {"str": "a", "lar": "a", "dic": "a", "dec": decimal.Decimal("1.5"), "tim": datetime.datetime(2026, 1, 1)}
    if pa.types.is_time(kind):
        return datetime.time(1)
    return (examples | plain | {"dat": datetime.date(2026, 1, 1)}).get(str(kind)[:3], 1)


def test_a_rule_that_keeps_nothing_is_refused_at_the_first_publish() -> None:
    case = replace(SNAPSHOT, current=None, profile=GOOD | {"rules": {"sold": rule_facts(0.0)}})
    assert found("pairs_kept", case).passed  # lists are filled, so it keeps some that were not sampled
    assert not found("pairs_kept", replace(case, measures={"fill_rate": 0.0})).passed


def test_a_column_that_a_rule_compares_and_that_holds_nothing_is_refused_at_the_first_publish() -> None:
    void = {"items": table(price=column([None] * N, pa.float64()))}
    case = replace(SNAPSHOT, current=None, profile=void, rule_columns={"items": ("price",)})
    assert found("empty_values", case).text == (
        "price of the items: null or empty in all rows, and a rule asks for it; fill it"
    )
    assert found("empty_values", replace(case, rule_columns={})).passed


@pytest.mark.parametrize(
    ("facts", "change", "passed"),
    [
        ({}, VectorChange(1_000, 0.02, (16, 16)), True),
        ({}, VectorChange(1_000, 1.0, (16, 16)), False),
        ({}, VectorChange(10, 1.0, (16, 16)), True),
        ({"embedding": "v2"}, VectorChange(1_000, 1.0, (16, 16)), True),
        ({"dim": 32}, VectorChange(0, 0.0, (16, 32)), False),
        ({"median_length": 10.0}, VectorChange(1_000, 0.0, (16, 16)), False),
        ({"median_length": 1.2}, VectorChange(1_000, 0.0, (16, 16)), True),
        ({"median_length": 0.0}, VectorChange(1_000, 0.0, (16, 16)), False),
    ],
)
def test_vectors_of_another_model_dimension_or_scale_are_refused(
    facts: dict[str, Any], change: VectorChange, passed: bool
) -> None:
    case = judged(None, {"items": GOOD["items"] | facts}, vectors={"items": change})
    assert found("vectors", case).passed is passed


def test_lengths_do_not_matter_under_cosine() -> None:
    case = judged(None, {"items": GOOD["items"] | {"median_length": 10.0}})
    assert found("vectors", replace(case, metric="cosine")).passed


def test_rows_that_fail_a_check_are_named_by_kind() -> None:
    case = judged(None, {"items": GOOD["items"] | {"faults": {"duplicate_id": 0.5}}})
    text = "duplicate_id in the items: 0.00% -> 50.00% of the rows, and at most 5.00% more may be"
    assert found("bad_rows", case).text.startswith(text)


def test_the_median_is_told_before_and_after() -> None:
    drift = compare_columns(column([12.99] * N), column([0.1299] * N))
    assert drift is not None
    assert drift.what == "median 12.99 -> 0.1299"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.int64()])
def test_a_sample_by_hash_is_of_the_same_ids_however_rows_come_and_keeps_them_while_others_go(
    kind: pa.DataType,
) -> None:
    ids = pa.array([str(n * 37) for n in range(3_000)]).cast(kind)
    whole = sample_rows_by_hash([ids], 100)
    pieces = sample_rows_by_hash([ids[start : start + 7] for start in range(0, len(ids), 7)], 100)
    assert np.array_equal(whole, pieces)
    assert len(np.unique(hash_ids(ids))) == len(ids)
    assert 30 <= np.count_nonzero(whole < 1_500) <= 70
    left = ids.take(pa.array(range(0, len(ids), 2)))
    known = set(ids.take(pa.array(whole)).to_pylist())
    kept = set(left.take(pa.array(sample_rows_by_hash([left], 100))).to_pylist())
    assert known & set(left.to_pylist()) <= kept


def test_hashes_of_strings_depend_on_all_bytes_their_order_and_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", "a", "b", "ab", "ba", "aa", "a\0", "\0a", "\0", "\0\0", "ä", "x" * 5_000, "x" * 5_001]
    found = hash_ids(pa.array(texts))
    assert len(set(found.tolist())) == len(texts)
    assert hash_ids(pa.array(["none", *texts, "b"])[1:-1]).tolist() == found.tolist()
    for size in (0, 3, 5_000):  # bytes that are hashed at a time
        monkeypatch.setattr(ids_module, "HASHED_BYTES", size)
        assert hash_ids(pa.array(texts)).tolist() == found.tolist()
    assert hash_ids(pa.array([], pa.string())).tolist() == []
    assert hash_ids(pa.array([1, 2])).tolist() == [10451216379200822465, 10905525725756348110]  # of SplitMix64


def items_with(**facts: Any) -> AuditFigures:
    """The snapshot with these figures of its items."""
    return judged(None, {"items": GOOD["items"] | facts})


# a rule, a case, and a setting with a value that lets it pass and one that refuses it
SETTINGS = [
    ("items", replace(SNAPSHOT, items=1_500), "max_items_lost", 0.3, 0.2),
    ("items", replace(SNAPSHOT, items=2_800), "max_items_gained", 0.5, 0.3),
    ("items_kept", judged(items_kept=0.6), "min_items_kept", 0.5, 0.7),
    ("bad_rows", items_with(faults={"duplicate_id": 0.1}), "max_bad_rows", 0.2, 0.05),
    ("empty_values", columns(PRICES, np.where(THIRD, np.nan, PRICES)), "max_empty", 0.5, 0.1),
    ("distribution", columns(PRICES, PRICES * 100), "max_drift", 100.0, 0.25),
    ("distribution", columns(PRICES, PRICES * 100), "skip_columns", ("x",), ()),
    (
        "changed_values",
        judged(changes={("items", "x"): ValueChange(1_000, 0.6, False, "")}),
        "max_values_changed",
        0.7,
        0.5,
    ),
    (
        "changed_values",
        judged(changes={("items", "x"): ValueChange(1_000, 0.3, True, "")}),
        "max_values_scaled",
        0.4,
        0.2,
    ),
    (
        "pairs_kept",
        judged({"rules": {"sold": rule_facts(0.3)}}, {"rules": {"sold": rule_facts(0.55)}}),
        "max_pairs_drift",
        1.0,
        0.05,
    ),
    ("vectors", judged(vectors={"items": VectorChange(1_000, 0.3, (16, 16))}), "max_vectors_changed", 0.4, 0.2),
    ("vectors", items_with(median_length=2.0), "max_length_change", 3.0, 1.5),
]


@pytest.mark.parametrize(("rule", "case", "setting", "passes", "refuses"), SETTINGS, ids=[row[2] for row in SETTINGS])
def test_each_setting_decides(rule: str, case: AuditFigures, setting: str, passes: Any, refuses: Any) -> None:
    assert found(rule, case, **{setting: passes}).passed
    assert not found(rule, case, **{setting: refuses}).passed


def test_every_setting_of_the_rules_for_inputs_has_such_a_case() -> None:
    assert {name for rule in INPUT_RULES for name in RULES[rule].settings} == {row[2] for row in SETTINGS}
