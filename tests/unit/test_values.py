"""What keys and values mean: what goes in comes out, one and many agree, and what is damaged is told."""

from __future__ import annotations

import datetime as dt
import decimal
import hashlib
import json
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nearcast.errors import DamagedError, InputError
from nearcast.stores.value_format import (
    REASONS,
    decode_list,
    decode_lists,
    encode_items,
    encode_key,
    encode_keys,
    encode_lists,
    id_kind,
    id_type,
    parse_key,
)

INT64S = st.integers(-(1 << 63), (1 << 63) - 1)
UINT32S = st.integers(0, (1 << 32) - 1)
LONG = st.builds(str.__mul__, st.sampled_from(["a", "☕", "ab"]), st.integers(100, 500))
TEXTS = st.one_of(st.text(max_size=8), LONG)
SCORES = st.floats(width=32, allow_nan=False)
KINDS = {0: (UINT32S, pa.int64()), 1: (INT64S, pa.int64()), 2: (TEXTS, pa.string())}


@st.composite
def tables(draw, kinds=(0, 1, 2), most_lists=12):
    """Kind of the ids; lists of (id, score); reasons."""
    kind = draw(st.sampled_from(kinds))
    ids, _ = KINDS[kind]
    full = draw(st.integers(0, 6))
    length = st.one_of(st.just(full), st.integers(0, 9))
    lists = draw(
        st.lists(
            length.flatmap(lambda n: st.lists(st.tuples(ids, SCORES), min_size=n, max_size=n)), max_size=most_lists
        )
    )
    reasons = draw(st.lists(st.sampled_from(REASONS), min_size=len(lists), max_size=len(lists)))
    return kind, lists, reasons


def encoded(kind, lists, reasons):
    ids = pa.array([[i for i, _ in one] for one in lists], pa.list_(KINDS[kind][1]))
    scores = pa.array([[s for _, s in one] for one in lists], pa.list_(pa.float32()))
    return encode_lists(ids, scores, reasons, kind)


def slices(found, n):
    """Decoded lists as decode_list gives them."""
    ids = found.ids.to_pylist()
    cuts = found.offsets.tolist()
    return [
        (ids[cuts[i] : cuts[i + 1]], found.scores[cuts[i] : cuts[i + 1]].tolist(), REASONS[found.reasons[i]])
        for i in range(n)
    ]


def ids_of(kind):
    return "string" if kind == 2 else "int64"


@settings(max_examples=150)
@given(table=tables())
def test_lists_come_back_one_by_one_and_all_at_once(table):
    kind, lists, reasons = table
    values = encoded(*table)
    expected = [([i for i, _ in one], [s for _, s in one], reason) for one, reason in zip(lists, reasons, strict=True)]
    assert [decode_list(value) for value in values] == expected
    found = decode_lists(values, ids_of(kind))
    assert slices(found, len(lists)) == expected
    assert found.found.tolist() == [True] * len(lists)
    assert found.ids.type == (pa.string() if kind == 2 else pa.int64())
    found.ids.validate(full=True)
    assert (found.scores.dtype, found.offsets.dtype) == (np.float32, np.int64)


@given(table=tables(), data=st.data())
def test_missing_keys_have_empty_lists_in_their_places(table, data):
    kind, lists, _ = table
    values = encoded(*table)
    places = data.draw(st.lists(st.sampled_from([*range(len(lists)), None, None]), max_size=30))
    found = decode_lists([None if place is None else values[place] for place in places], ids_of(kind))
    assert found.found.tolist() == [place is not None for place in places]
    expected = [([], [], None) if place is None else decode_list(values[place]) for place in places]
    assert slices(found, len(places)) == expected


def test_nothing_is_decoded_into_nothing():
    for ids, kind in (("string", pa.string()), ("int64", pa.int64())):
        for values in ([], [None], [None, None]):
            found = decode_lists(values, ids)
            assert (found.offsets.tolist(), found.ids.type, len(found.scores)) == ([0] * (len(values) + 1), kind, 0)


@given(table=tables(), data=st.data())
def test_a_value_that_was_cut_short_or_has_grown_is_damaged(table, data):
    kind, lists, _ = table
    values = encoded(*table)
    if not lists:
        return
    place = data.draw(st.integers(0, len(lists) - 1))
    whole = values[place]
    changed = data.draw(
        st.one_of(st.integers(0, len(whole) - 1).map(lambda n: whole[:n]), st.binary(min_size=1).map(whole.__add__))
    )
    with pytest.raises(DamagedError):
        decode_list(changed)
    with pytest.raises(DamagedError):
        decode_lists([*values[:place], changed, *values[place + 1 :]], ids_of(kind))
    with pytest.raises(DamagedError):
        decode_lists([changed], ids_of(kind))


def either(decode):
    try:
        return decode()
    except DamagedError:
        return "damaged"


HEADS = st.builds(
    struct.pack, st.just("<BBH"), st.sampled_from([16, 17, 18, 19, 32]), st.integers(0, 9), st.integers(0, 4)
)


@settings(max_examples=300)
@given(value=st.one_of(st.binary(max_size=60), st.builds(bytes.__add__, HEADS, st.binary(max_size=60))))
@example(value=struct.pack("<BBHfH", 18, 0, 1, 0.5, 1) + b"\xff")  # no UTF-8
@example(value=struct.pack("<BBHffHH", 18, 0, 2, 0.5, 0.5, 1, 2) + "aä".encode()[::1])
@example(value=struct.pack("<BBHffHH", 18, 0, 2, 0.5, 0.5, 2, 1) + "aä".encode())  # cut within a character
@example(value=struct.pack("<BBH", 16, 6, 0))  # no such reason
def test_one_and_many_agree_on_what_is_damaged(value):
    for ids in ("string", "int64"):
        one = either(lambda: decode_list(value))
        many = either(lambda ids=ids: slices(decode_lists([value], ids), 1)[0])
        assert repr(one) == repr(many)  # NaN equals NaN then


def test_lists_of_several_kinds_in_one_version_are_damaged():
    number, text = encoded(0, [[(1, 0.5)]], [None]), encoded(2, [[("a", 0.5)]], [None])
    with pytest.raises(DamagedError, match="several kinds"):
        decode_lists([*number, *text], "int64")


@pytest.mark.parametrize(
    ("head", "told"),
    [(32, "its format is 2, and this version of nearcast reads 1"), (0, "format is 0"), (19, "kind 3")],
)
def test_a_value_of_another_format_is_told(head, told):
    value = struct.pack("<BBH", head, 0, 0)
    with pytest.raises(DamagedError, match=told):
        decode_list(value)
    with pytest.raises(DamagedError, match=told):
        decode_lists([value], "int64")


def test_the_bytes_are_as_the_documentation_says():
    assert encoded(0, [[(7, 1.5), (1 << 31, -1.0)]], ["capped"]) == [
        bytes([16, 4, 2, 0]) + struct.pack("<ff", 1.5, -1.0) + struct.pack("<II", 7, 1 << 31)
    ]
    assert encoded(1, [[(-7, 1.5)]], [None]) == [bytes([17, 0, 1, 0]) + struct.pack("<fq", 1.5, -7)]
    assert encoded(2, [[("ä", 1.5), ("", 0.0)]], ["not_probed"]) == [
        bytes([18, 2, 2, 0]) + struct.pack("<ffHH", 1.5, 0.0, 2, 0) + "ä".encode()
    ]
    assert encoded(0, [[]], ["no_vector"]) == [bytes([16, 3, 0, 0])]


def test_a_list_may_be_as_long_as_the_format_allows_and_not_longer():
    ids, scores = list(range(65_535)), [0.0] * 65_535
    (value,) = encode_lists(pa.array([ids]), pa.array([scores], pa.list_(pa.float32())), [None], 0)
    assert decode_list(value)[0] == ids
    assert decode_lists([value], "int64").ids.to_pylist() == ids
    with pytest.raises(InputError, match="65,536 candidates; a store takes 65,535 at most"):
        encode_lists(pa.array([[*ids, 1]]), pa.array([[*scores, 0.0]], pa.list_(pa.float32())), [None], 0)


def test_an_id_may_be_as_long_as_the_format_allows_and_not_longer():
    (value,) = encoded(2, [[("x" * 65_535, 1.0)]], [None])
    assert decode_list(value) == (["x" * 65_535], [1.0], None)
    with pytest.raises(InputError, match="an item's id has 65,536 bytes"):
        encoded(2, [[("x" * 65_536, 1.0)]], [None])


def test_slices_of_arrays_are_encoded_as_what_they_show():
    ids = pa.array([["no"], ["a", "b"], ["c"], ["no"]])[1:3]
    scores = pa.array([[9.0], [1.0, 2.0], [3.0], [9.0]], pa.list_(pa.float32()))[1:3]
    assert [decode_list(value) for value in encode_lists(ids, scores, [None, None], 2)] == [
        (["a", "b"], [1.0, 2.0], None),
        (["c"], [3.0], None),
    ]
    assert encode_keys(pa.array(["no", "a", "b", "no"])[1:3]) == [b"a", b"b"]
    assert encode_keys(pa.array([0, 1, 2, 3])[1:3]) == [encode_key(1), encode_key(2)]


@given(ids=st.lists(INT64S))
def test_keys_of_numbers_sort_as_the_numbers_do(ids):
    keys = encode_keys(pa.array(ids, pa.int64()))
    assert keys == [encode_key(i) for i in ids]
    assert sorted(keys) == encode_keys(pa.array(sorted(ids), pa.int64()))
    assert {len(key) for key in keys} <= {8}


@given(ids=st.lists(st.one_of(TEXTS, st.text("\0☕a", max_size=3)), unique=True))
def test_keys_of_strings_are_unique_short_and_never_empty(ids):
    for kind in (pa.string(), pa.large_string()):
        keys = encode_keys(pa.array(ids, kind))
        assert keys == [encode_key(i) for i in ids]
        assert len(set(keys)) == len(ids)
        assert all(0 < len(key) <= 481 for key in keys)


def test_a_long_key_is_its_beginning_and_a_hash_of_all():
    text = "ä" * 300
    data = text.encode()
    assert encode_key("x" * 480) == b"x" * 480
    assert encode_key(text) == data[:448] + b"\xff" + hashlib.blake2b(data, digest_size=32).digest()
    assert encode_key("") == b"\x00\xff"


def test_what_can_be_no_key_is_the_key_of_nothing():
    for number in (1 << 63, -(1 << 63) - 1, 10**30):
        assert len(encode_key(number)) != 8
    assert encode_key("\ud800") not in encode_keys(pa.array(["\ufffd", "?", ""]))


@given(number=INT64S)
def test_a_number_is_understood_as_people_write_it(number):
    assert parse_key(str(number), "int64") == parse_key(number, "int64") == number
    assert parse_key(number, "string") == str(number)


@pytest.mark.parametrize(
    "text", ["", "-", "--1", "+1", " 1", "1.0", "1e3", "٣", "²", "x", "9" * 19, "-" + "9" * 19, "1" * 5000]
)
def test_what_is_no_number_is_no_key(text):
    assert parse_key(text, "int64") is None
    assert parse_key(text, "string") == text


def test_ids_are_written_in_the_narrowest_kind():
    assert id_kind(pa.array([0, (1 << 32) - 1])) == 0
    assert id_kind(pa.array([1 << 32])) == 1
    assert id_kind(pa.array([-1])) == 1
    assert id_kind(pa.array([], pa.int64())) == 0
    assert id_kind(pa.chunked_array([["a"]])) == 2
    assert (id_type(pa.int64()), id_type(pa.string())) == ("int64", "string")


def test_items_are_json_that_anybody_can_read():
    columns = {
        "text": ["Käse ☕", None],
        "number": [1, -(1 << 62)],
        "price": [1.5, float("nan")],
        "many": [[1.0, float("inf")], []],
        "day": [dt.date(2026, 1, 2), None],
        "time": pa.array([dt.datetime(2026, 1, 2, 3, 4, 5), None], pa.timestamp("us", "UTC")),
        "amount": [decimal.Decimal("1.50"), None],
        "raw": [b"\xff", b""],
        "on": [True, False],
        "nested": [{"a": [1]}, None],
    }

    def strictly(data):
        return json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    first, second = map(strictly, encode_items(pa.table(columns)))
    assert first == {
        "text": "Käse ☕",
        "number": 1,
        "price": 1.5,
        "many": [1.0, None],
        "day": "2026-01-02",
        "time": "2026-01-02T03:04:05+00:00",
        "amount": "1.50",
        "raw": "ff",
        "on": True,
        "nested": {"a": [1]},
    }
    assert (second["price"], second["many"], second["text"]) == (None, [], None)


def test_items_without_columns_are_empty():
    table = pa.table({"id": [1, 2, 3]}).select([])
    assert encode_items(table) == [b"{}"] * 3
    assert encode_items(pa.table({"a": pa.array([], pa.int64())})) == []
