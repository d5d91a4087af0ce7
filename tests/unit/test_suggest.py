"""What somebody may have meant: the nearest of many keys."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.suggest import describe_generators, nearest_keys

KEYS = pa.array([f"customer-{number:05d}" for number in range(0, 50_000, 7)] + ["Apple", "fig", "m\u00fcsli", ""])


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("custmer-00700", "customer-00700"),
        ("customer-00700x", "customer-00700"),
        ("CUSTOMER-00700", "customer-00700"),
        (" customer-00700 ", "customer-00700"),
        ("xustomer-00700", "customer-00700"),
        ("apple", "Apple"),
        ("appel", "Apple"),
        ("musli", "m\u00fcsli"),
        ("figs", "fig"),
    ],
)
def test_a_misspelt_key_is_found_among_many(asked, nearest):
    assert nearest_keys(asked, KEYS)[0] == nearest


def test_numbers_are_near_by_their_distance():
    numbers = pa.array(range(0, 1000, 10))
    assert nearest_keys(123, numbers) == [120, 130, 110]
    assert nearest_keys("-5", numbers, n=1) == [0]
    assert nearest_keys("seven", numbers) == nearest_keys("9" * 40, numbers) == []


@pytest.mark.parametrize("asked", ["zzzzzz", "", "  ", "\u0000", "%s[bold]"])
def test_nothing_is_said_where_nothing_is_like_it(asked):
    assert nearest_keys(asked, KEYS) == []


@given(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=30, unique=True), st.integers(1, 5))
def test_whatever_is_asked_a_few_keys_that_there_are_come_back(asked, keys, n):
    found = nearest_keys(asked, pa.array(keys, pa.string()), n)
    assert len(found) <= n
    assert set(found) <= set(keys)
    assert len(set(found)) == len(found)


@given(st.text("abcdefgh", min_size=6, max_size=12), st.data())
def test_a_key_with_one_letter_changed_is_found(key, data):
    place = data.draw(st.integers(0, len(key) - 1))
    asked = key[:place] + "z" + key[place + 1 :]
    others = [f"other-{number}" for number in range(50)]
    assert nearest_keys(asked, pa.array([*others, key]), 1) == [key]


def test_of_many_generators_the_nearest_are_named_and_of_few_all():
    few = [f"shop-{n}" for n in range(10)]
    assert describe_generators("x", few, "none") == f"generators there are {', '.join(few)}"
    many = [f"shop-{n}" for n in range(1000)]
    assert describe_generators("shopp-77", many, "none").startswith(
        "the nearest of the 1,000 generators there are 'shop-77'"
    )
    assert len(describe_generators("q", many, "none")) < 100
    assert describe_generators("q", [], "none") == "none"
