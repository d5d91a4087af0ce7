"""Rules at look-up: what a store keeps of them bars what the judge bars, whatever a request brings."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearcast.eligibility import RuleSet, failing, parse_rule, serialize_rules
from nearcast.errors import InputError
from nearcast.stores.value_format import encode_items
from rule_cases import SCHEMA, conditions, tables


def parse_rules(*texts):
    return [parse_rule(f"r{number}", text) for number, text in enumerate(texts)]


def prepared(*texts, items=SCHEMA, queries=SCHEMA):
    """As a store would give the rules back: through JSON."""
    return RuleSet.prepare(json.loads(json.dumps(serialize_rules(parse_rules(*texts), items, queries))))


def stored(table):
    """The rows of a table as a store has them."""
    return [json.loads(value) for value in encode_items(table.drop_columns(["id"]))]


def finite(row):
    """The row as JSON can hold it: infinity is null there."""

    def value(held):
        if isinstance(held, list):
            return [value(one) for one in held]
        return None if isinstance(held, float) and not math.isfinite(held) else held

    return {name: value(held) for name, held in row.items()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(conditions(), min_size=1, max_size=3), tables(), tables())
def test_a_list_keeps_what_the_judge_keeps(texts, queries, items):
    rules = parse_rules(*texts)
    ruleset = prepared(*texts, items=items.schema, queries=queries.schema)
    known = [ruleset.item(number, row) for number, row in enumerate(stored(items))]
    for number, (query, row) in enumerate(zip(queries.to_pylist(), stored(queries), strict=True)):
        left, barred = ruleset.filter_items(ruleset.context(number, row, None), known)
        judged = [failing(rules, finite(query), finite(item), {}) for item in items.to_pylist()]
        assert left == [place for place, name in enumerate(judged) if name is None]
        assert barred == {name: judged.count(name) for name in judged if name is not None}


def test_what_a_request_brings_stands_in_for_the_query_s_own():
    ruleset = prepared("item.text == query.text", "item.num <= request.limit")
    known = [ruleset.item(n, {"text": text, "num": n}) for n, text in enumerate(["a", "b", "a"])]

    def left(request):
        return ruleset.filter_items(ruleset.context(1, {"text": "a"}, request), known)

    assert left({"limit": 5}) == ([0, 2], {"r0": 1})
    assert left({"limit": 1, "text": "b"}) == ([1], {"r0": 2})
    assert left({"limit": 1}) == ([0], {"r0": 1, "r1": 1})
    assert left(None) == ([], {"r0": 1, "r1": 2})  # a limit that is not brought is null, and nothing is below null


def test_newer_values_of_an_item_count():
    ruleset = prepared("item.flag")
    item = ruleset.item(7, {"flag": True})
    assert ruleset.filter_items(ruleset.context(1, {}, None), [item])[0] == [0]
    assert ruleset.filter_items(ruleset.context(1, {}, None), [ruleset.update_values(item, {"flag": False})])[0] == []


def test_a_list_of_exclusions_comes_with_the_request():
    ruleset = prepared("not (request.seen has item.id)")
    known = [ruleset.item(n, {}) for n in range(4)]
    assert ruleset.filter_items(ruleset.context(1, {}, {"seen": [1, 3]}), known) == ([0, 2], {"r0": 2})
    assert ruleset.filter_items(ruleset.context(1, {}, {}), known) == ([0, 1, 2, 3], {})


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"limi": 3}, "no rule asks for 'limi' of a request; did you mean 'limit'"),
        ({"limit": "three"}, "the request's 'limit' is to be a number, such as"),
        ({"limit": True}, "is to be a number"),
        ({"limit": [3]}, "is to be a number"),
    ],
)
def test_a_request_that_does_not_go_with_the_rules_is_told_the_way_out(request_, words):
    ruleset = prepared("item.num <= request.limit")
    with pytest.raises(InputError, match=words):
        ruleset.context(1, {}, request_)
