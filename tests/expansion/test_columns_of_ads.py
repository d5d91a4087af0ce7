"""Columns of ads by their types: kept without loss, or refused by name; and what those that mean something may hold."""

from __future__ import annotations

import contextlib
import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

import nearcast
from nearcast.ads.publish_expansion import publish_expansion
from nearcast.eligibility import parse_rule, serialize_rules
from nearcast.errors import InputError
from nearcast.stores import open_store
from nearcast.stores.base import OverlayEntry
from nearcast.table.expansion_schema import convert_columns
from nearcast.table.expansion_settings import AdSettings, Target
from published import publish

LINKS = pa.table({"item": ["x", "x", "x"], "ad": [1, 2, 3]})
UTC = datetime.UTC
D = decimal.Decimal


@pytest.fixture
def store(tmp_path):
    with contextlib.closing(open_store(f"lmdb:{tmp_path}")) as opened:
        publish(opened, "shop", 1, {"a": [("x", 0.9)]}, metric="cosine")
        yield opened


def ads_with(**columns):
    return pa.table({"ad": [1, 2, 3], **columns})


def shown(store, request=None, **asked):
    with nearcast.open(store, "shop") as shop, nearcast.open_expansion(store, "ads") as ads:
        return ads.ads(shop, ["a"], request=request, **asked)


RUN_ENDS = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", "b"]))
KEPT = {
    "int8": (pa.array([1, None, -3], pa.int8()), [1, None, -3]),
    "uint64": (pa.array([1, None, 2**63 - 1], pa.uint64()), [1, None, 2**63 - 1]),
    "float16": (pa.array([np.float16(1.5), None, np.float16(0.25)], pa.float16()), [1.5, None, 0.25]),
    "float32": (pa.array([1.5, None, 0.1], pa.float32()), [1.5, None, float(np.float32(0.1))]),
    "a float that is none": (pa.array([1.5, float("nan"), float("inf")]), [1.5, None, None]),
    "decimal": (pa.array([D("1.10"), None, D("-20.00")], pa.decimal128(20, 2)), [1.1, None, -20.0]),
    "decimal256": (pa.array([D("0.30"), None, D("5")], pa.decimal256(60, 2)), [0.3, None, 5.0]),
    "list<decimal>": (pa.array([[D("1.5")], None, []], pa.list_(pa.decimal128(9, 1))), [[1.5], None, []]),
    "large_string": (pa.array(["a", None, "é"], pa.large_string()), ["a", None, "é"]),
    "string_view": (pa.array(["a", None, "é"], pa.string_view()), ["a", None, "é"]),
    "dictionary": (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    "run ends": (RUN_ENDS, ["a", "a", "b"]),
    "bool": (pa.array([True, None, False]), [True, None, False]),
    "binary": (pa.array([b"\x00\xff", None, b""], pa.binary()), ["00ff", None, ""]),
    "fixed binary": (pa.array([b"ab", None, b"cd"], pa.binary(2)), ["6162", None, "6364"]),
    "null": (pa.nulls(3), [None, None, None]),
    "large_list": (pa.array([["a"], None, []], pa.large_list(pa.string())), [["a"], None, []]),
    "fixed_size_list": (pa.array([[1, 2], None, [3, None]], pa.list_(pa.int32(), 2)), [[1, 2], None, [3, None]]),
    "list_view": (pa.array([["a"], None, []], pa.list_view(pa.string())), [["a"], None, []]),
    "list<float16>": (pa.array([[np.float16(0.5)], None, []], pa.list_(pa.float16())), [[0.5], None, []]),
    "list<bool>": (pa.array([[True, None], None, []]), [[True, None], None, []]),
    "list<null>": (pa.array([[], None, []]), [[], None, []]),
    "list<dictionary>": (
        pa.ListArray.from_arrays(pa.array([0, 1, 1, 2]), pa.array(["a", "b"]).dictionary_encode()),
        [["a"], [], ["b"]],
    ),
    "list<timestamp>": (
        pa.array([[datetime.datetime(2026, 1, 1)], None, []], pa.list_(pa.timestamp("ms"))),
        [[datetime.datetime(2026, 1, 1)], None, []],
    ),
    "date32": (pa.array([datetime.date(2026, 1, 2), None, datetime.date(1500, 1, 1)]),
               [datetime.datetime(2026, 1, 2), None, datetime.datetime(1500, 1, 1)]),
    "date64": (pa.array([datetime.date(2026, 1, 2), None, None], pa.date64()),
               [datetime.datetime(2026, 1, 2), None, None]),
    "timestamp[ns]": (pa.array([1_000, None, 2_000], pa.timestamp("ns")),
                      [datetime.datetime(1970, 1, 1, 0, 0, 0, 1), None, datetime.datetime(1970, 1, 1, 0, 0, 0, 2)]),
    "timestamp with a zone": (
        pa.array([datetime.datetime(2026, 1, 1, 12, tzinfo=UTC), None, None], pa.timestamp("s", "Europe/Berlin")),
        [datetime.datetime(2026, 1, 1, 12), None, None],
    ),
    "extension": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", None, "3"])), ["{}", None, "3"]),
}  # fmt: skip


def test_a_column_is_published_and_read_back_without_loss_whatever_its_type(store):
    values = {name: column for name, (column, _) in KEPT.items()}
    publish_expansion(store, "ads", ads_with(**values), LINKS)
    found = shown(store, fields=list(values))
    assert list(found.ads) == [1, 2, 3]
    for name, (_, expected) in KEPT.items():
        assert [columns[name] for columns in found.columns] == expected, name


REFUSED = {
    "uint64": (pa.array([1, 2, 2**63], pa.uint64()), "9223372036854775808, which is above"),
    "decimal": (pa.array([D("0.1234567890123456789"), None, None]), "no float is; convert it to text"),
    "list<decimal>": (pa.array([[D("0.1234567890123456789")], None, None]), "no float is"),
    "struct": (pa.array([{"a": 1}, None, None]), "struct<a: int64>"),
    "map": (pa.array([[("a", 1)], None, None], pa.map_(pa.string(), pa.int64())), "map<string, int64>"),
    "list<struct>": (pa.array([[{"a": 1}], None, None]), "list<"),
    "list<list>": (pa.array([[["a"]], None, None]), "a list of lists"),
    "time": (pa.array([datetime.time(1), None, None]), "time64"),
    "duration": (pa.array([datetime.timedelta(1), None, None]), "duration"),
    "interval": (pa.array([(1, 2, 3), None, None], pa.month_day_nano_interval()), "interval"),
    "timestamp[ns]": (pa.array([1, None, None], pa.timestamp("ns")), "whole microseconds"),
    "a time after 9999": (pa.array([400_000_000_000, None, None], pa.timestamp("s")), "after 9999"),
    "text that is not UTF-8": (
        pa.Array.from_buffers(
            pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 1, 1], np.int32)), pa.py_buffer(b"\xff")]
        ),
        "not UTF-8",
    ),
    "union": (pa.UnionArray.from_sparse(pa.array([0, 0, 0], pa.int8()), [pa.array([1, 2, 3])]), "union"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_column_that_no_reader_can_open_is_refused_by_name_and_type_with_the_types_that_are_kept(store, name):
    column, words = REFUSED[name]
    publish_expansion(store, "ads", ads_with(), LINKS)
    with pytest.raises(InputError, match="thing is of type") as raised:
        publish_expansion(store, "ads", ads_with(thing=column), LINKS)
    assert words in str(raised.value)
    assert "It holds whole numbers" in str(raised.value)
    assert store.pointer("ads").version == 1
    assert store.versions("ads") == [1]
    assert list(shown(store).ads) == [1, 2, 3]


def test_all_columns_that_cannot_be_kept_are_named_at_once():
    columns = {name: column for name, (column, _) in REFUSED.items() if "UTF" not in name}
    with pytest.raises(InputError) as raised:
        convert_columns(pa.table(columns), AdSettings())
    assert all(f"{name} is of type" in str(raised.value) for name in columns)


NUMBERS = "it takes whole numbers, floats or decimals"
TIMES = "it takes timestamps, dates, or seconds"
BY_BID = {"order": "similarity_times_bid"}


def target(test):
    return {"targeting": [{"column": "c", "test": test, "request": "c"}]}


@pytest.mark.parametrize(
    ("columns", "settings", "words"),
    [
        ({"budget": ["10", "20", None]}, {}, rf"columns.budget: budget is a column of type string; {NUMBERS}"),
        ({"budget": [True, False, None]}, {}, f"of type bool; {NUMBERS}"),
        ({"budget": [[1], [2], None]}, {}, f"of type list<.*>; {NUMBERS}"),
        ({"budget": [{"a": 1}] * 3}, {}, NUMBERS),
        ({"budget": [datetime.date(2026, 1, 1)] * 3}, {}, NUMBERS),
        ({"budget": pa.array(["1"] * 3).dictionary_encode()}, {}, NUMBERS),
        ({"budget": [b"1"] * 3}, {}, NUMBERS),
        ({"money": ["1"] * 3}, {"columns": {"budget": "money"}}, "columns.budget: money is a column of type string"),
        ({"bugdet": [1] * 3}, {"columns": {"budget": "budget"}}, "no column 'budget'; did you mean 'bugdet'"),
        ({"spent": ["1"] * 3}, {}, f"columns.spent: .*{NUMBERS}"),
        ({"bid": [[1.0]] * 3}, BY_BID, f"columns.bid: .*{NUMBERS}"),
        ({"bid": [True] * 3}, BY_BID, f"columns.bid: .*{NUMBERS}"),
        ({"bid": [True] * 3}, {}, f"columns.bid: .*{NUMBERS}"),
        ({"bidd": [1] * 3}, BY_BID, "no column 'bid'; did you mean 'bidd'"),
        ({"starts": ["2026-01-01"] * 3}, {}, f"columns.starts: starts is a column of type string; {TIMES}"),
        ({"ends": [True] * 3}, {}, f"columns.ends: .*{TIMES}"),
        ({"ends": [datetime.time(1)] * 3}, {}, f"columns.ends: .*{TIMES}"),
        ({"starts": [datetime.timedelta(1)] * 3}, {}, f"columns.starts: .*{TIMES}"),
        ({"c": ["de"] * 3}, target("has"), "of type string, of which 'has' cannot be asked; it takes lists"),
        ({"c": [[1.5]] * 3}, target("overlaps"), "'overlaps' cannot be asked; it takes lists of text or whole"),
        ({"c": [["de"]] * 3}, target("equals"), "'equals' cannot be asked; it takes one value"),
        ({"c": [["de"]] * 3}, target("in"), "'in' cannot be asked"),
        ({"c": ["tall"] * 3}, target("at_least"), "'at_least' cannot be asked; it takes numbers, dates"),
        ({"c": [True] * 3}, target("at_most"), "'at_most' cannot be asked"),
        ({"c": [{"a": 1}] * 3}, target("equals"), "'equals' cannot be asked"),
        ({"c": [["n"]] * 3}, {"caps": {"c": 1}}, "caps: c is a column of type list"),
        (
            {"c": ["de"] * 3, "d": [["de"]] * 3},
            {"targeting": [*target("in")["targeting"], {"column": "d", "test": "has", "request": "c"}]},
            "request.c would have to be one value .* and a list",
        ),
    ],
)
def test_a_column_that_decides_what_is_shown_is_refused_where_its_type_cannot(store, columns, settings, words):
    with pytest.raises(InputError, match=words):
        publish_expansion(store, "ads", ads_with(**columns), LINKS, AdSettings(**settings))
    assert store.pointer("ads") is None


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("columns", "settings", "words"),
    [
        ({"budget": pa.array([1.0, NAN, 2.0])}, {}, r"budget of ad 2 \(row 2\) is nan; leave it null"),
        ({"budget": pa.array([1.0, NAN, NAN])}, {}, r"budget of ad 2 \(row 2\) and of 1 more ads is nan"),
        ({"budget": pa.array([1.0, 1.0, INF])}, {}, r"budget of ad 3 \(row 3\) is inf; leave it null"),
        ({"spent": pa.array([-INF, 1.0, 1.0])}, {}, "spent of ad 1 .* is -inf"),
        ({"spent": [0, -1, 0]}, {}, "spent of ad 2 .* is -1; a spent column takes numbers from 0 on"),
        ({"bid": [0.5, 0.5, -0.5]}, {}, "bid of ad 3 .* is -0.5; a bid column"),
        ({"bid": pa.array([NAN, 1.0, 1.0])}, BY_BID, "bid of ad 1 .* is nan"),
        ({"starts": pa.array([NAN, 1.0, 1.0])}, {}, "starts of ad 1 .* is nan"),
        ({"ends": [1_800_000_000_000] * 3}, {}, "ends of ad 1 .* is it in milliseconds"),
        ({"c": pa.array([NAN, 1.0, 1.0])}, target("at_least"), "c of ad 1 .* is nan"),
        ({"c": pa.array([1.0, INF, 1.0])}, {"caps": {"c": 1}}, "c of ad 2 .* is inf"),
        ({"budget": pa.array([1.0, np.float16("nan"), 2.0], pa.float16())}, {}, "budget of ad 2 .* is nan"),
    ],
)
def test_a_number_that_can_mean_nothing_is_refused_with_its_ad_and_row(store, columns, settings, words):
    with pytest.raises(InputError, match=words):
        publish_expansion(store, "ads", ads_with(**columns), LINKS, AdSettings(**settings))
    assert store.pointer("ads") is None


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"budget": [D("1.5"), D("0.0"), None]}, [1, 3]),
        ({"budget": pa.nulls(3)}, [1, 2, 3]),
        ({"budget": pa.array([5, -1, None], pa.int8()), "spent": [5, 0, 7]}, [3]),
        ({"budget": pa.array([5, 1, 9], pa.uint64()), "spent": pa.array([5, 0.5, None], pa.float32())}, [2, 3]),
        ({"starts": [datetime.date(2026, 1, 1), None, datetime.date(2040, 1, 1)]}, [1, 2]),
        ({"starts": pa.array([0, None, 2_000_000_000], pa.timestamp("s", "America/New_York"))}, [1, 2]),
        ({"starts": pa.array([0, None, 2_000_000_000_000], pa.timestamp("ms"))}, [1, 2]),
        ({"ends": [1, None, 2_000_000_000]}, [2, 3]),
        ({"ends": pa.array([1.5, None, 2e9])}, [2, 3]),
        ({"starts": pa.nulls(3), "ends": pa.nulls(3), "bid": pa.nulls(3)}, [1, 2, 3]),
    ],
)
def test_columns_of_every_accepted_type_limit_ads_as_they_say(store, columns, expected):
    publish_expansion(store, "ads", ads_with(**columns), LINKS)
    assert sorted(shown(store, now="2030-01-01").ads) == expected


@pytest.mark.parametrize("column", ["budget", "spent"])
def test_a_limit_that_the_export_does_not_have_can_be_given_by_the_overlay(store, column):
    publish_expansion(store, "ads", ads_with(budget=[5, 5, 5]) if column == "spent" else ads_with(), LINKS)
    with nearcast.overlay(store, "ads") as overlay:
        overlay.update(2, column, 5 if column == "spent" else 0)
    assert list(shown(store).ads) == [1, 3]


TARGETED = AdSettings(
    targeting=[
        Target(column="country", test="in", request="countries"),
        Target(column="least", test="at_most", request="basket"),
        Target(column="words", test="has", request="word"),
        Target(column="new", test="equals", request="new"),
        Target(column="since", test="at_most", request="day"),
    ]
)
TARGETED_ADS = ads_with(
    country=["de", "fr", None],
    least=[10, None, 20],
    words=[["red", "blue"], [], None],
    new=[True, None, False],
    since=[datetime.date(2026, 1, 1), None, None],
)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"countri": ["de"]}, "no targeting and no rule asks for 'countri' of a request; did you mean 'countries'"),
        ({"zzz": 1}, "they ask for basket, countries, day, new, word"),
        ({1: "de"}, "asks for '1' of a request"),
        ({"countries": "de"}, "request.countries is to be a list"),
        ({"countries": [1]}, "the request's 'countries' is to be a text"),
        ({"basket": "12"}, "the request's 'basket' is to be a number"),
        ({"basket": True}, "is to be a number"),
        ({"basket": [12]}, "request.basket is to be one value"),
        ({"word": 5}, "the request's 'word' is to be a text"),
        ({"word": {"a": 1}}, "request.word is to be one value"),
        ({"new": "true"}, "the request's 'new' is to be true or false"),
        ({"day": "soon"}, "'soon' is no time"),
    ],
)
def test_a_request_with_a_field_that_nothing_asks_for_or_of_another_type_is_an_error(store, request_, words):
    publish_expansion(store, "ads", TARGETED_ADS, LINKS, TARGETED)
    with pytest.raises(InputError, match=words):
        shown(store, request_)


def test_a_request_is_judged_by_every_field_that_it_brings(store):
    publish_expansion(store, "ads", TARGETED_ADS, LINKS, TARGETED)
    brought = {"countries": ("de",), "basket": 15.5, "word": "red", "new": True, "day": datetime.date(2026, 5, 5)}
    assert list(shown(store, brought).ads) == [1]
    assert list(shown(store, brought | {"basket": 5}).ads) == []
    assert list(shown(store, {"countries": {"fr", None}, "basket": None, "word": None}).ads) == []
    assert list(shown(store, {"basket": 20, "new": False}).ads) == [3]


def test_fields_that_the_generators_rules_ask_for_reach_them_and_the_others_reach_targeting(tmp_path):
    schema = pa.schema([("id", pa.string()), ("shop", pa.string())])
    rules = serialize_rules([parse_rule("shops", "item.shop == request.shop")], schema, schema)
    items = {"x": {"shop": "one"}, "y": {"shop": "two"}}
    with contextlib.closing(open_store(f"lmdb:{tmp_path}")) as store:
        lists = {"a": [("x", 0.9), ("y", 0.8)]}
        publish(store, "shop", 1, lists, items, metric="cosine", rules={**rules, "own_query_columns": False})
        links = pa.table({"item": ["x", "y"], "ad": [1, 2]})
        settings = AdSettings(targeting=[Target(column="country", test="equals", request="country")])
        publish_expansion(store, "ads", ads_with(country=["de", "de", None]), links, settings)
        assert list(shown(store, {"shop": "two", "country": "de"}).ads) == [2]
        assert list(shown(store, {"shop": "one", "country": "fr"}).ads) == []
        with pytest.raises(InputError, match="did you mean 'shop'"):
            shown(store, {"shopp": "two"})
        with pytest.raises(InputError, match="'shop' is to be a text"):
            shown(store, {"shop": 2})


def test_an_export_that_is_older_than_the_one_that_was_current_is_noted(store):
    publish_expansion(store, "ads", ads_with(), LINKS, as_of="2026-02-01")
    assert publish_expansion(store, "ads", ads_with(), LINKS, as_of="2026-02-01").notes == ()
    [note] = publish_expansion(store, "ads", ads_with(), LINKS, as_of="2026-01-01").notes
    assert "older than the one that was current, which is as of 2026-02-01T00:00:00Z" in note


@pytest.mark.parametrize("value", [["de"], {"a": 1}, [[1]], 7, "de", None])
@pytest.mark.parametrize("column", ["text", "list", "budget", "starts"])
def test_whatever_an_older_writer_left_in_the_overlay_takes_no_table_down(store, column, value):
    columns = {"text": ["a"] * 3, "list": [["a"]] * 3, "budget": [1] * 3, "starts": [datetime.date(2026, 1, 1)] * 3}
    publish_expansion(store, "ads", ads_with(**columns), LINKS)
    later = store.now() + 60
    store.overlay("ads").write([OverlayEntry(1, column, value, later)])
    assert list(shown(store).ads)[-2:] == [2, 3]
