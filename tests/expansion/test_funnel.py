"""From candidates to ads, in arrays: held to plain Python, and stage by stage where it can be checked by hand."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest
from funnel_reference import chosen
from hypothesis import given
from hypothesis import strategies as st

from nearcast.ads.ad_funnel import STAGES, AdQuery, CandidateAds, convert_scores, merge_scores, select_ads
from nearcast.ads.targeting import compile_ad_rules
from nearcast.errors import InputError
from nearcast.table.ad_columns import to_column, to_seconds
from nearcast.table.ad_set import ads_of, with_pauses, with_values, without_overlay
from nearcast.table.expansion_settings import AdSettings, Target
from nearcast.types import Metric

NOW = 1000.0
TARGETING = (
    Target(column="countries", test="has", request="country"),
    Target(column="segment", test="in", request="segments"),
    Target(column="least_age", test="at_most", request="age"),
)
SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "advertiser": pa.string(),
        "bid": pa.float64(),
        "budget": pa.float64(),
        "spent": pa.float64(),
        "starts": pa.timestamp("us"),
        "ends": pa.timestamp("us"),
        "countries": pa.list_(pa.string()),
        "segment": pa.string(),
        "least_age": pa.int64(),
    }
)


def maybe(strategy):
    return st.one_of(st.none(), strategy)


ROWS = st.fixed_dictionaries(
    {
        "advertiser": maybe(st.sampled_from("abc")),
        "bid": maybe(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        "budget": maybe(st.sampled_from([1.0, 2.0])),
        "spent": maybe(st.sampled_from([0.5, 1.0, 2.0])),
        "starts": maybe(st.sampled_from([NOW - 1, NOW, NOW + 1])),
        "ends": maybe(st.sampled_from([NOW - 1, NOW, NOW + 1])),
        "countries": maybe(st.lists(st.sampled_from(["de", "fr", "it"]), unique=True)),
        "segment": maybe(st.sampled_from("xy")),
        "least_age": maybe(st.sampled_from([0, 18])),
        "paused": st.booleans(),
    }
)
REQUESTS = st.fixed_dictionaries(
    {
        "country": maybe(st.sampled_from(["de", "fr", "mars"])),
        "segments": maybe(st.lists(st.sampled_from("xyz"))),
        "age": maybe(st.sampled_from([17, 18])),
    }
)


def ads_from(rows):
    """Ads of these rows by id, and the same live, with pauses."""
    table = pa.Table.from_pylist(
        [
            {
                "id": ad,
                **{name: value for name, value in row.items() if name not in ("paused", "starts", "ends")},
                **{name: moment(row[name]) for name in ("starts", "ends")},
            }
            for ad, row in rows.items()
        ],
        SCHEMA,
    )
    gone = {ad: float("inf") for ad, row in rows.items() if row["paused"]}
    return with_pauses(without_overlay(ads_of(table)), gone, NOW)


def moment(seconds):
    return None if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.UTC).replace(tzinfo=None)


@given(
    st.dictionaries(st.integers(0, 30), ROWS, min_size=1, max_size=12),
    st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=1, max_size=6),
    REQUESTS,
    st.data(),
)
def test_the_arrays_choose_what_plain_python_chooses(rows, scores, request, data):
    rows = dict(sorted(rows.items()))
    links = {c: data.draw(st.lists(st.sampled_from(list(rows)), unique=True)) for c in range(len(scores))}
    settings = AdSettings(
        order=data.draw(st.sampled_from(["similarity", "similarity_times_bid"])),
        items=data.draw(st.sampled_from(["best", "sum"])),
        caps=data.draw(st.dictionaries(st.sampled_from(["advertiser", "item"]), st.integers(1, 2))),
        targeting=TARGETING,
    )
    k = data.draw(st.integers(1, 5))
    places = np.array([c for c, linked in links.items() for _ in linked], np.int64)
    positions = np.array([list(rows).index(ad) for linked in links.values() for ad in linked], np.int64)
    live = ads_from(rows)
    found = select_ads(
        CandidateAds(np.array(scores), places, positions), live, compile_ad_rules(TARGETING), settings,
        AdQuery(request, k, NOW),
    )  # fmt: skip
    expected = chosen(
        scores, links, rows, request, now=NOW, k=k, order=settings.order, items=settings.items, caps=settings.caps
    )
    ids = live.ads.arrays["id"].to_numpy()
    told = [
        (int(ids[p]), int(c), float(s)) for p, c, s in zip(found.positions, found.candidates, found.scores, strict=True)
    ]
    assert told == expected
    assert tuple(stage.name for stage in found.stages) == STAGES
    counts = [stage.ads for stage in found.stages[1:]]
    assert counts == sorted(counts, reverse=True)
    assert found.stages[-1].ads == len(expected)


def test_each_stage_says_how_many_candidates_and_ads_are_left():
    row = dict.fromkeys(SCHEMA.names[1:]) | {"paused": False}
    rows = {
        0: row | {"paused": True},
        1: row | {"ends": NOW},
        2: row | {"countries": ["fr"]},
        3: row | {"budget": 1.0, "spent": 1.0},
        4: row | {"advertiser": "a"},
        5: row | {"advertiser": "a"},
        6: row,
        7: row,
    }
    settings = AdSettings(caps={"advertiser": 1}, targeting=TARGETING)
    found = select_ads(
        CandidateAds(np.array([1.0, 0.5, 0.2]), np.array([0, 0, 0, 1, 1, 1, 1, 1]), np.arange(8)),
        ads_from(rows),
        compile_ad_rules(TARGETING),
        settings,
        AdQuery({"country": "de"}, 2, NOW),
    )
    assert [(stage.candidates, stage.ads) for stage in found.stages] == [
        (3, 0), (2, 7), (2, 6), (1, 5), (1, 4), (1, 3), (1, 2),
    ]  # fmt: skip
    assert found.positions.tolist() == [4, 6]


def test_an_ad_without_a_value_is_for_everybody_and_one_with_a_value_for_nobody_who_does_not_say():
    row = dict.fromkeys(SCHEMA.names[1:]) | {"paused": False}
    live = ads_from({1: row, 2: row | {"countries": ["de"]}, 3: row | {"countries": []}})
    among = compile_ad_rules(TARGETING[:1]).among
    assert among({}, live.columns, np.arange(3)).tolist() == [True, False, False]
    assert among({"country": "de"}, live.columns, np.arange(3)).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("test", "given", "fits"),
    [
        ("equals", 2, [False, True, False]),
        ("in", [1, 3], [True, False, True]),
        ("at_least", 2, [False, True, True]),
        ("at_most", 2, [True, True, False]),
        ("equals", "2", [False, False, False]),
        ("in", ["x", None], [False, False, False]),
        ("at_least", "tall", [False, False, False]),
    ],
)
def test_numbers_are_compared_with_numbers_and_with_nothing_else(test, given, fits):
    column = to_column(pa.array([1, 2, 3]))
    found = compile_ad_rules((Target(column="n", test=test, request="n"),)).among(
        {"n": given}, {"n": column}, np.arange(3)
    )
    assert found.tolist() == fits


def test_dates_are_compared_with_times_however_they_are_written():
    column = to_column(pa.array([datetime.date(2026, 1, 1), datetime.date(2026, 1, 3)]))
    for written in ("2026-01-02", "2026-01-02T00:00:00Z", 1_767_312_000, datetime.datetime(2026, 1, 2)):
        found = compile_ad_rules((Target(column="d", test="at_most", request="at"),)).among(
            {"at": written}, {"d": column}, np.arange(2)
        )
        assert found.tolist() == [True, False]


def test_lists_are_asked_whether_they_share_a_value():
    column = to_column(pa.array([["a", "b"], ["c"], [], None]))
    targets = compile_ad_rules((Target(column="l", test="overlaps", request="l"),))
    assert targets.among({"l": ["b", "c"]}, {"l": column}, np.arange(4)).tolist() == [True, True, False, True]
    assert targets.among({"l": []}, {"l": column}, np.arange(4)).tolist() == [False, False, False, True]
    assert targets.among({"l": ["b"]}, {"l": column}, np.array([1, 0])).tolist() == [False, True]


def test_a_request_of_the_wrong_shape_is_an_error_that_names_the_field():
    column = to_column(pa.array(["a"]))
    with pytest.raises(InputError, match=r"request\.c is to be a list"):
        compile_ad_rules((Target(column="c", test="in", request="c"),)).among({"c": "a"}, {"c": column}, np.arange(1))
    with pytest.raises(InputError, match=r"request\.c is to be one value"):
        compile_ad_rules((Target(column="c", test="equals", request="c"),)).among(
            {"c": ["a"]}, {"c": column}, np.arange(1)
        )


@pytest.mark.parametrize(
    ("values", "place", "new"),
    [
        ([1, 2], 1, 7), ([1, 2], 0, 2.5), ([1, 2], 0, None), (["a", "b"], 0, "new"), (["a", None], 1, "a"),
        ([["a"], ["b"]], 0, ["c", "b"]), ([["a"], None], 1, []), ([True, False], 0, False),
    ],
)  # fmt: skip
def test_a_column_with_another_value_is_the_column_of_the_other_values(values, place, new):
    rows = np.arange(len(values))
    changed = to_column(pa.array(values)).with_values({place: new})
    expected = to_column(pa.array([new if row == place else value for row, value in enumerate(values)]))
    assert changed.missing.tolist() == expected.missing.tolist()
    for value in [*values, new]:
        if value is None:
            continue
        asked = (lambda column, value=value: column.holding(rows, value)) if isinstance(value, list) else (
            lambda column, value=value: column.equal(rows, value)
        )  # fmt: skip
        assert asked(changed).tolist() == asked(expected).tolist(), value


def test_newer_values_are_taken_back_when_they_are_no_longer_there():
    ads = ads_of(pa.table({"id": [1, 2], "spent": [0.0, 5.0]}))
    live = with_values(without_overlay(ads), {2: {"spent": (9.0, float("inf"))}, 3: {"spent": (1.0, 1.0)}}, NOW)
    assert live.columns["spent"].values.tolist() == [0.0, 9.0]
    assert live.rows(np.array([1]), ["spent"]) == [{"spent": 9.0}]
    back = with_values(live, {2: {}}, NOW)
    assert back.columns["spent"].values.tolist() == [0.0, 5.0]
    assert back.rows(np.array([1, 0]), ["spent"]) == [{"spent": 5.0}, {"spent": 0.0}]


def test_a_value_that_its_column_cannot_hold_makes_it_a_missing_one():
    ads = ads_of(pa.table({"id": [1, 2], "spent": [0.0, 5.0]}))
    live = with_values(
        without_overlay(ads), {1: {"spent": ("much", float("inf"))}, 2: {"spent": (6.0, float("inf"))}}, NOW
    )
    assert live.columns["spent"].missing.tolist() == [True, False]
    assert live.columns["spent"].values[1] == 6.0


def test_merging_gives_the_best_or_the_sum_and_the_first_of_equal_members():
    scores = np.array([0.5, 1.0, 1.0, 0.25])
    groups = np.array([0, 0, 0, 1])
    assert [part.tolist() for part in merge_scores(groups, 2, scores, "best")] == [[1.0, 0.25], [1, 3]]
    assert [part.tolist() for part in merge_scores(groups, 2, scores, "sum")] == [[2.5, 0.25], [1, 3]]


def test_similarities_are_never_below_zero():
    scores = np.array([-4.0, -1.0, 0.0], np.float32)
    assert convert_scores(scores, Metric.L2).tolist() == [0.2, 0.5, 1.0]
    assert convert_scores(scores, Metric.COSINE).tolist() == [0.0, 0.0, 0.0]


def test_what_is_no_time_is_an_error():
    for value in ("tomorrow", [], None):
        with pytest.raises(InputError, match="is no time"):
            to_seconds(value)
