"""Expansion tables in a store: published, refreshed, overlaid, asked by keys in one call, and refused when wrong."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import time
from functools import partial
from unittest.mock import patch

import pyarrow as pa
import pytest

import nearcast
from nearcast.ads import ads_view
from nearcast.ads.publish_expansion import publish_expansion
from nearcast.errors import InputError, NotFoundError, SpecError
from nearcast.stores import open_store
from nearcast.table.expansion_settings import AdSettings, Target
from published import publish

NEVER = 3600.0
LISTS = {"a": [("x", 0.9), ("y", 0.8), ("z", 0.5)], "b": [("y", 0.95), ("w", 0.4)], "c": []}
ADS = pa.table(
    {
        "ad": [4, 1, 2, 3],
        "advertiser": [None, "n", "n", "m"],
        "bid": [0.5, 1.0, 2.0, 3.0],
        "budget": [1.0, 10.0, None, 5.0],
        "spent": [0.0, 0.0, 0.0, 5.0],
        "countries": [["fr"], ["de"], None, ["fr", "de"]],
        "ends": [None, None, None, datetime.datetime(2030, 1, 1)],
    }
)
LINKS = pa.table({"item": ["x", "x", "y", "w", "w", "x"], "ad": [1, 2, 3, 4, 2, 1]})
SETTINGS = AdSettings(targeting=[Target(column="countries", test="has", request="country")])


@pytest.fixture(params=["lmdb", "redis"])
def store(request, tmp_path):
    url = f"lmdb:{tmp_path}" if request.param == "lmdb" else request.getfixturevalue("redis_url") + "?buckets=16"
    with contextlib.closing(open_store(url)) as opened:
        publish(opened, "shop", 1, LISTS, metric="cosine")
        publish_expansion(opened, "ads", ADS, LINKS, SETTINGS)
        yield opened


@pytest.fixture
def shop(store):
    with nearcast.open(store, "shop", refresh_seconds=NEVER) as opened:
        yield opened


@pytest.fixture
def ads(store):
    with nearcast.open_expansion(store, "ads", refresh_seconds=NEVER) as opened:
        yield opened


def test_keys_become_ads_best_first_each_once_with_what_it_is_shown_for(shop, ads):
    found = ads.ads(shop, ["a", "b", "nobody"], request={"country": "fr"}, fields=["bid", "ends"])
    assert list(found.ads) == [2, 4]
    assert list(found.items) == ["x", "w"]
    assert found.scores == pytest.approx([0.9, 0.4])
    assert found.columns == [{"bid": 2.0, "ends": None}, {"bid": 0.5, "ends": None}]
    assert (found.snapshot, found.table, found.found) == ("000001", "000001", 2)
    assert [(s.name, s.candidates, s.ads) for s in found.stages] == [
        ("candidates", 4, 0),
        ("with_ads", 3, 4),
        ("in_flight", 3, 4),
        ("targeted", 3, 3),
        ("in_budget", 2, 2),
        ("after_caps", 2, 2),
        ("returned", 2, 2),
    ]


def test_a_key_that_is_not_there_has_no_ads_and_is_no_error(shop, ads):
    for keys in (["nobody"], ["c"], []):
        found = ads.ads(shop, keys)
        assert len(found) == 0
        assert [s.ads for s in found.stages] == [0] * 7


def test_weights_scale_what_a_key_counts(shop, ads):
    found = ads.ads(shop, ["a", "b"], weights=[0.1, 1.0], request={"country": "fr"})
    assert list(found.items) == ["w", "w"]
    for wrong in ([1.0], [1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(InputError, match="weight"):
            ads.ads(shop, ["a", "b"], weights=wrong)


def test_what_cannot_be_asked_is_an_error_that_says_why(shop, ads):
    with pytest.raises(NotFoundError, match="no column 'price'; they have advertiser"):
        ads.ads(shop, ["a"], fields=["price"])
    with pytest.raises(InputError, match="k is 0"):
        ads.ads(shop, ["a"], k=0)
    with pytest.raises(InputError, match="is no time"):
        ads.ads(shop, ["a"], now="soon")


def test_flights_are_judged_by_the_time_that_is_given(store, shop, ads):
    with nearcast.overlay(store, "ads") as overlay:
        overlay.update(3, "spent", 0.0)
    ads.refresh()
    assert 3 in ads.ads(shop, ["a"], request={"country": "de"}, now="2029-12-31T23:59:59Z").ads
    assert 3 not in ads.ads(shop, ["a"], request={"country": "de"}, now=datetime.datetime(2030, 1, 1)).ads


def test_a_paused_ad_and_a_spent_budget_are_out_within_a_second(store, shop):
    with nearcast.open_expansion(store, "ads") as following, nearcast.overlay(store, "ads") as overlay:
        assert list(following.ads(shop, ["a"], request={"country": "de"}).ads) == [1, 2]
        overlay.remove([2])
        overlay.update(1, "spent", 10.0)
        deadline = time.monotonic() + 120
        while following.ads(shop, ["a"], request={"country": "de"}).ads:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        overlay.restore([2])
        following.refresh()
        assert list(following.ads(shop, ["a"], request={"country": "de"}).ads) == [2]


@pytest.mark.parametrize("refresh_seconds", [0.05, NEVER])
def test_an_overlay_for_a_while_ends_by_itself(store, shop, refresh_seconds, monkeypatch):
    end = time.time() + 3600
    with nearcast.overlay(store, "ads") as overlay:
        overlay.remove([2], until=end)
    with nearcast.open_expansion(store, "ads", refresh_seconds=refresh_seconds) as ads:
        asked = partial(ads.ads, shop, ["a"], request={"country": "de"})
        assert list(asked().ads) == [1]
        monkeypatch.setattr(time, "time", lambda: end + 60)
        deadline = time.monotonic() + 60
        while list(asked().ads) == [1]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert list(asked().ads) == [1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_after_a_fork_the_child_follows_the_overlay_by_itself(tmp_path):
    with contextlib.closing(open_store(f"lmdb:{tmp_path}")) as store:
        publish(store, "shop", 1, LISTS, metric="cosine")
        publish_expansion(store, "ads", ADS, LINKS, SETTINGS)
        with nearcast.open(store, "shop") as shop, nearcast.open_expansion(store, "ads") as ads:
            asked = partial(ads.ads, shop, ["a"], request={"country": "de"})
            assert list(asked().ads) == [1, 2]
            child = os.fork()
            if child == 0:
                deadline = time.monotonic() + 120
                while list(asked().ads) != [1] and time.monotonic() < deadline:
                    time.sleep(0.01)
                os._exit(list(asked().ads) != [1])
            with nearcast.overlay(f"lmdb:{tmp_path}", "ads") as overlay:
                overlay.remove([2])
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_refresh_knows_better_than_what_was_said_of_a_column_before_it_and_pauses_stay(store, shop, ads):
    with nearcast.overlay(store, "ads") as overlay:
        overlay.update(1, "spent", 10.0)
        overlay.remove([2])
    ads.refresh()
    assert list(ads.ads(shop, ["a"], request={"country": "de"}).ads) == []
    publish_expansion(store, "ads", ADS, LINKS, SETTINGS)
    ads.refresh()
    found = ads.ads(shop, ["a"], request={"country": "de"})
    assert (list(found.ads), found.table) == ([1], "000002")


def test_what_was_said_after_the_table_was_read_stays_in_force_over_it(store, shop, ads):
    read = time.time()
    with nearcast.overlay(store, "ads") as overlay:
        overlay.update(1, "spent", 10.0)
    publish_expansion(store, "ads", ADS, LINKS, SETTINGS, as_of=read)
    ads.refresh()
    assert list(ads.ads(shop, ["a"], request={"country": "de"}).ads) == [2]


def test_a_new_table_is_followed_without_being_told(store, shop):
    with nearcast.open_expansion(store, "ads", refresh_seconds=0.02) as following:
        publish_expansion(store, "ads", ADS.slice(1, 1), LINKS, SETTINGS)
        deadline = time.monotonic() + 120
        while following.ads(shop, ["a"]).table == "000001":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert list(following.ads(shop, ["a"], request={"country": "de"}).ads) == [1]


def test_old_tables_are_taken_away_and_a_rollback_brings_the_last_one_back(store, shop, ads):
    for ad in (1, 2, 3):
        done = publish_expansion(store, "ads", ADS.filter(pa.compute.equal(ADS["ad"], ad)), LINKS, AdSettings(), keep=2)
    assert (done.version, done.previous, done.ads, done.links, done.links_left_out) == (4, 3, 1, 1, 5)
    assert store.versions("ads") == [3, 4]
    nearcast.roll_back("ads", store=store)
    ads.refresh()
    assert list(ads.ads(shop, ["a"]).ads) == [2]


@pytest.mark.parametrize(
    ("ads", "links", "settings", "text"),
    [
        (ADS.rename_columns(["x", *ADS.column_names[1:]]), LINKS, {}, "the ads have no column 'ad'"),
        (ADS, LINKS.rename_columns(["item", "x"]), {}, "the links have no column 'ad'"),
        (pa.concat_tables([ADS, ADS.slice(0, 1)]), LINKS, {}, "4 is the id of several ads"),
        (ADS.append_column("id", ADS["bid"]), LINKS, {}, "called 'id'"),
        (ADS, LINKS.set_column(1, "ad", pa.array(["1"] * 6)), {}, "int64 in the ads, and string in the links"),
        (ADS, LINKS.set_column(1, "ad", pa.array([9] * 6)), {}, "none of 6 links"),
        (ADS, LINKS.set_column(0, "item", pa.array([None] * 6, pa.string())), {}, "missing in 6 rows"),
        (ADS, LINKS, {"caps": {"shop": 1}}, "the ads have no column 'shop'"),
        (ADS, LINKS, {"targeting": [{"column": "x", "test": "in", "request": "y"}]}, "the ads have no column 'x'"),
        (ADS, LINKS, {"targeting": [{"column": "bid", "test": "has", "request": "y"}]}, "'has' cannot be asked"),
    ],
)
def test_tables_that_do_not_fit_are_refused_and_nothing_has_changed(tmp_path, ads, links, settings, text):
    with contextlib.closing(open_store(f"lmdb:{tmp_path}")) as store:
        with pytest.raises(InputError, match=text):
            publish_expansion(store, "ads", ads, links, AdSettings(**settings))
        assert store.pointer("ads") is None


def test_a_generator_is_no_expansion_table_and_is_not_overwritten_by_one(tmp_path):
    with contextlib.closing(open_store(f"lmdb:{tmp_path}")) as store:
        publish(store, "shop", 1, LISTS)
        with pytest.raises(SpecError, match="is a generator, and no expansion table"):
            nearcast.open_expansion(store, "shop")
        with pytest.raises(InputError, match="is a generator in"):
            publish_expansion(store, "shop", ADS, LINKS)
        assert store.pointer("shop").version == 1


def test_rules_of_the_callers_own_take_the_place_of_targeting(store, shop):
    class OnlyDear:
        columns = frozenset({"bid"})

        def among(self, request, columns, rows):
            return columns["bid"].values[rows] >= request["least"]

    with nearcast.open_expansion(store, "ads", eligible=OnlyDear()) as ads:
        assert list(ads.ads(shop, ["a", "b"], request={"least": 2}).ads) == [2]


def test_text_ids_of_ads_and_numbers_of_items_go_together(tmp_path):
    with contextlib.closing(open_store(f"lmdb:{tmp_path}")) as store:
        publish(store, "shop", 1, {1: [(10, 0.5), (11, 0.25)]}, metric="cosine")
        table = pa.table({"ad": ["b", "é"], "note": [None, "x" * 3]})
        publish_expansion(store, "ads", table, pa.table({"item": [11, 10, 12], "ad": ["b", "é", "b"]}))
        with nearcast.open(store, "shop") as shop, nearcast.open_expansion(store, "ads") as ads:
            found = ads.ads(shop, [1], fields=["note"])
    assert (list(found.ads), list(found.items)) == (["é", "b"], [10, 11])
    assert found.as_dict()["ads"][0] == {"ad": "é", "item": 10, "score": 0.5, "columns": {"note": "xxx"}}


LONG = "é" * 400  # 800 bytes: its key is not its text


@pytest.mark.parametrize("items", [list(range(-3, 40)), [f"i{n}" for n in range(40)] + [LONG, ""]], ids=["int", "text"])
@pytest.mark.parametrize("kind", [int, str])
@pytest.mark.parametrize("url", ["lmdb", "redis"])
def test_links_that_are_held_and_links_that_are_looked_up_are_the_same(url, kind, items, request, tmp_path):
    url = f"lmdb:{tmp_path}" if url == "lmdb" else request.getfixturevalue("redis_url") + "?buckets=4"
    rng = random.Random(5)
    ads = [1 << 40, 7, 9, 11, 12]
    links = sorted({(rng.choice(items[:-1]), rng.choice(ads)) for _ in range(60)} | {(items[-1], 7)}, key=str)
    named = [kind(item) for item in items] if isinstance(items[0], int) else [*items, "nobody's"]
    lists = {"one": [(item, 1.0) for item in named], "few": [(named[-2], 0.5)], "none": []}
    with contextlib.closing(open_store(url)) as store:
        publish(store, "shop", 1, lists, metric="cosine")
        pairs = pa.table({"item": [item for item, _ in links], "ad": [ad for _, ad in links]})
        publish_expansion(store, "ads", pa.table({"ad": ads}), pairs, AdSettings(k=1000))
        found = {}
        for held in (True, False):
            with (
                patch.object(ads_view, "MOST_ITEMS_HELD", len(items) if held else 0),
                nearcast.open(store, "shop") as shop,
                nearcast.open_expansion(store, "ads") as opened,
            ):
                asked = [["one"], ["few"], ["none"], ["nobody"], ["few", "one", "none"]]
                found[held] = [opened.ads(shop, keys).as_dict() | {"age_seconds": 0} for keys in asked]
    assert found[True] == found[False]
    with_ads = found[True][0]["stages"][1]
    assert (with_ads["candidates"], with_ads["ads"]) == (len({item for item, _ in links}), len({a for _, a in links}))
    assert [(row["item"], row["ad"]) for row in found[True][1]["ads"]] == [
        (named[-2], ad) for item, ad in sorted(links, key=lambda link: link[1]) if str(item) == str(named[-2])
    ]
