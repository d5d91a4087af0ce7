"""The contract of resolvers: what a request knows becomes keys with weights, by plain values alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.errors import InputError, SpecError
from nearcast.serve.resolvers import (
    HALF_LIFE_SECONDS,
    MOST_KEYS,
    MOST_RECENT,
    RESOLVERS,
    reads_table,
    resolve_keys,
)
from nearcast.stores.names import normalize_table_key, table_name

KEYS = st.one_of(st.integers(-5, 5), st.text("abc", max_size=2))
WEIGHTS = st.floats(1e-3, 1e3)
KNOWN = {
    "viewed": KEYS,
    "recent": st.lists(KEYS, max_size=20),
    "session": st.lists(st.tuples(KEYS, st.floats(0, 1e6), WEIGHTS), max_size=20),
    "phrase": st.text(max_size=8),
    "person": KEYS,
}
ROWS = st.lists(st.tuples(KEYS, WEIGHTS), max_size=20)
CONTEXTS = st.fixed_dictionaries({}, optional=KNOWN)


def nothing(table, key):
    return ()


def keys_of(context, read=nothing, keys=(), **more):
    return [(each.key, round(each.weight, 9)) for each in resolve_keys(keys, context, read, **more)]


def test_every_resolver_is_known_by_its_own_name_and_tested_here():
    assert {name: resolver.name for name, resolver in RESOLVERS.items()} == {name: name for name in RESOLVERS}
    assert set(KNOWN) == set(RESOLVERS)


@pytest.mark.parametrize("name", RESOLVERS)
@given(data=st.data())
def test_keys_are_distinct_and_fall_by_weights_above_zero(name, data):
    resolver, known = RESOLVERS[name], data.draw(KNOWN[name])
    row = data.draw(ROWS) if resolver.table else ()
    assert (resolver.table_key(known) is None) == (resolver.table is None)
    found = resolver.keys(known, row)
    assert found == resolver.keys(known, row), "it is a function of what it is given"
    weights = [weight for _, weight in found]
    assert all(0 < weight < math.inf for weight in weights)
    assert weights == sorted(weights, reverse=True)
    assert len({key for key, _ in found}) == len(found)


@pytest.mark.parametrize("name", RESOLVERS)
@pytest.mark.parametrize("wrong", [1.5, True, b"bytes", {"a": 1}, object()])
def test_what_is_not_of_its_kind_is_refused(name, wrong):
    with pytest.raises(InputError, match=name):
        RESOLVERS[name].table_key(wrong)


@given(st.lists(st.tuples(KEYS, WEIGHTS), max_size=8), CONTEXTS, ROWS, st.integers(1, 40))
def test_weights_add_up_to_one_over_at_most_so_many_keys(keys, context, row, most):
    found = resolve_keys(keys, context, lambda table, key: row, most=most)
    assert len(found) <= most
    assert not found or math.isclose(sum(each.weight for each in found), 1.0)
    assert len({each.key for each in found}) == len(found)
    assert [each.weight for each in found] == sorted((each.weight for each in found), reverse=True)
    assert all(each.weight > 0 and set(each.origins) <= {"keys", *context} for each in found)


def test_the_key_in_view_is_the_key():
    assert keys_of({"viewed": 7}) == [(7, 1.0)]


def test_recent_keys_count_alike_and_only_the_newest():
    assert keys_of({"recent": ["b", "a", "b", "c"]}) == [(key, round(1 / 3, 9)) for key in "bac"]
    assert [key for key, _ in keys_of({"recent": list(range(50))})] == list(range(MOST_RECENT))


def test_an_engagement_counts_half_after_a_half_life_and_engagements_add_up():
    assert keys_of({"session": [("a", 0), ("b", HALF_LIFE_SECONDS)]}) == [
        ("a", round(2 / 3, 9)),
        ("b", round(1 / 3, 9)),
    ]
    assert keys_of({"session": [("a", 0), ("b", 0), ("b", 0)]}) == [("b", round(2 / 3, 9)), ("a", round(1 / 3, 9))]
    assert keys_of({"session": [("a", 0), ("b", 0, 3)]}) == [("b", 0.75), ("a", 0.25)]


def test_an_old_session_is_as_good_as_a_new_one_if_there_is_no_newer():
    year = 3e7
    assert keys_of({"session": [("a", year), ("b", year + HALF_LIFE_SECONDS)]}) == keys_of(
        {"session": [("a", 0), ("b", HALF_LIFE_SECONDS)]}
    )


def test_a_phrase_and_a_person_are_what_their_tables_say():
    asked = []

    def read(table, key):
        asked.append((table, key))
        return [(1, 3.0), (2, 1.0)]

    assert keys_of({"phrase": "  Red SHOES\t"}, read) == [(1, 0.75), (2, 0.25)]
    assert keys_of({"person": "Ann"}, read) == [(1, 0.75), (2, 0.25)]
    assert asked == [("phrases", "red shoes"), ("people", "Ann")]


def test_each_thing_known_counts_alike_and_what_leads_to_nothing_does_not_count():
    assert keys_of({"viewed": "a", "recent": ["b", "c"], "phrase": "unheard of", "person": None}) == [
        ("a", 0.5),
        ("b", 0.25),
        ("c", 0.25),
    ]


def test_a_key_that_several_lead_to_has_the_sum_and_tells_of_each():
    found = resolve_keys([("b", 2), ("c", 2)], {"viewed": "b"}, nothing)
    assert [(each.key, each.weight, each.origins) for each in found] == [
        ("b", 0.75, ("keys", "viewed")),
        ("c", 0.25, ("keys",)),
    ]


def test_keys_that_the_generator_takes_for_one_are_one():
    found = resolve_keys([("7", 1)], {"viewed": 7}, nothing, normalize=int)
    assert [(each.key, each.weight, each.origins) for each in found] == [(7, 1.0, ("keys", "viewed"))]


def test_of_too_many_keys_the_heaviest_stay():
    found = keys_of({}, keys=[(key, key + 1) for key in range(100)])
    assert [key for key, _ in found] == list(range(99, 99 - MOST_KEYS, -1))


def test_a_context_that_nobody_knows_names_those_that_there_are():
    with pytest.raises(SpecError, match="the context names 'weather'; known resolvers are viewed, recent, session"):
        resolve_keys([], {"weather": "rain"}, nothing)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), 1e10, True, "1"])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(InputError, match="weight of key 'a'"):
        resolve_keys([("a", weight)], {}, nothing)


@pytest.mark.parametrize("event", [("a",), ("a", 1, 2, 3), ("a", -1), ("a", float("nan")), ("a", "1"), "ab"])
def test_an_engagement_without_an_age_is_refused(event):
    with pytest.raises(InputError, match="session"):
        resolve_keys([], {"session": [event]}, nothing)


def test_only_a_phrase_and_a_person_need_a_table():
    assert [name for name in RESOLVERS if reads_table({name: "x"})] == ["phrase", "person"]


@pytest.mark.parametrize("phrase", ["red shoes", " Red  Shoes", "RED\tSHOES\n", "Ｒｅｄ shoes"])
def test_phrases_that_people_take_for_the_same_are_one_key(phrase):
    assert normalize_table_key("phrases", phrase) == "red shoes"
    assert normalize_table_key("people", phrase) == phrase


@given(st.text(max_size=20))
def test_the_key_of_a_phrase_is_its_own_key(text):
    assert normalize_table_key("phrases", normalize_table_key("phrases", text)) == normalize_table_key("phrases", text)


@pytest.mark.parametrize("table", ["", "a.b", "Phrases", "a/b"])
def test_a_table_has_a_name_that_a_store_can_use(table):
    with pytest.raises(SpecError):
        table_name("pins", table)
