"""Links in memory, held to a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.errors import DamagedError
from nearcast.stores.value_format import decode_integer_keys, encode_key
from nearcast.table.item_links import build_links

NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 9)
KEYS = NUMBERS.map(encode_key)


@given(st.data(), st.booleans())
def test_an_items_ads_are_those_that_it_was_given_whatever_the_order(data, numbers):
    ids = NUMBERS if numbers else KEYS
    given_ads = data.draw(st.dictionaries(ids, st.lists(st.integers(0, 1 << 30), max_size=3), max_size=6))
    asked = data.draw(st.lists(ids | st.sampled_from([*given_ads]) if given_ads else ids, max_size=8))
    lengths = np.array([len(ads) for ads in given_ads.values()], np.int64)
    positions = np.array([ad for ads in given_ads.values() for ad in ads], np.int64)
    items = list(given_ads)
    links = build_links(np.array(items, np.int64) if numbers else items, lengths, positions)
    places, found = links.find(np.array(asked, np.int64) if numbers else asked)
    expected = [(place, ad) for place, item in enumerate(asked) for ad in given_ads.get(item, [])]
    assert list(zip(places.tolist(), found.tolist(), strict=True)) == expected


@given(st.lists(NUMBERS))
def test_keys_of_numbers_are_read_back(numbers):
    assert decode_integer_keys([encode_key(number) for number in numbers]).tolist() == numbers


@pytest.mark.parametrize("keys", [[b"1234567"], [b"1234567", b"123456789"], [b"\x00\xff"]])
def test_a_key_that_is_no_number_is_damage(keys):
    with pytest.raises(DamagedError, match="no number"):
        decode_integer_keys(keys)
