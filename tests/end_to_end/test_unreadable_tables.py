"""What no reader can open: never current, told by a running service, no harm to others, and a way back that is good."""

from __future__ import annotations

import contextlib
import shutil

import pyarrow as pa
import pytest
from tests.end_to_end.service import running, until
from tests.end_to_end.shop import flip_a_byte
from tests.published import load, point, publish

import nearcast
from nearcast.ads.publish_expansion import publish_expansion
from nearcast.cli import cli
from nearcast.errors import DamagedError, InputError, NotFoundError
from nearcast.publishing.publish_table import publish_table
from nearcast.publishing.retention import retire_versions
from nearcast.stores import open_store
from nearcast.stores.version_facts import EXPANSION, WEIGHT_TABLE
from nearcast.table.expansion_settings import AdSettings

LISTS = {"a": [("x", 0.9), ("y", 0.5)]}
ADS = pa.table({"ad": [1, 2], "bid": [0.5, 1.0]})
LINKS = pa.table({"item": ["x", "x"], "ad": [1, 2]})
ROWS = pa.table({"key": ["red"], "items": [["a"]], "weights": pa.array([[1.0]], pa.list_(pa.float32()))})
ADS_OF_A = "/v1/generators/shop/ads"
FACTS = {"kind": EXPANSION, "expansion": AdSettings().model_dump(mode="json"), "as_of": "2026-01-01T00:00:00+00:00"}
OF_DECIMALS = {"columns": {"price": "decimal128(9, 2)"}, "items": {1: {"id": 1, "price": "1.50"}}}


def load_unreadable(store, name, version):
    """An expansion table with a column of decimals, as it was published before its type was looked at."""
    load(store, name, version, {"x": [(1, 1.0)]}, **OF_DECIMALS, **FACTS)
    return version


@pytest.fixture(params=["lmdb", "redis"])
def store(request, tmp_path):
    url = f"lmdb:{tmp_path / 'nearcast/store'}"
    url = url if request.param == "lmdb" else request.getfixturevalue("redis_url") + "?buckets=4"
    with contextlib.closing(open_store(url)) as opened:
        publish(opened, "shop", 1, LISTS, metric="cosine")
        publish_expansion(opened, "ads", ADS, LINKS)
        yield opened


def shown(store):
    with nearcast.open(store, "shop") as shop, nearcast.open_expansion(store, "ads") as ads:
        found = ads.ads(shop, ["a"])
        return list(found.ads), found.table


def test_a_rollback_passes_over_what_nobody_can_open_and_good_versions_are_kept_beside_it(store):
    publish_expansion(store, "ads", ADS.slice(0, 1), LINKS)  # 2
    for version in (3, 4, 5):
        point(store, "ads", load_unreadable(store, "ads", version))
        with store.lock("ads"):
            retire_versions(store, "ads", store.pointer("ads"), 3)
    assert store.versions("ads") == [1, 2, 5]
    with pytest.raises(DamagedError, match="ads 000005"):
        nearcast.open_expansion(store, "ads")
    assert nearcast.roll_back("ads", store=store).version == 2
    assert shown(store) == ([1], "000002")
    with pytest.raises(DamagedError, match="could not be opened by any reader"):
        nearcast.roll_back("ads", to=5, store=store)
    assert publish_expansion(store, "ads", ADS, LINKS).version == 6
    assert store.versions("ads") == [1, 2, 6]
    assert nearcast.roll_back("ads", store=store).version == 2


def test_a_table_that_nobody_can_open_is_followed_by_a_good_one(store):
    point(store, "ads", load_unreadable(store, "ads", 2))
    load(store, "ads", 3, {"x": [(1, 1.0)]}, format=9, kind=EXPANSION)
    point(store, "ads", 3)
    publish_expansion(store, "ads", ADS, LINKS)
    assert shown(store) == ([1, 2], "000004")
    assert store.versions("ads") == [1, 4]


@pytest.mark.parametrize("what", ["facts", "lists", "rows"])
def test_nothing_becomes_current_that_a_reader_cannot_open_whatever_its_kind(store, what, monkeypatch):
    """A publisher with an error of its own: what it writes reads back as it was written, and is of no use."""
    publish_table(store, "shop", "phrases", ROWS)
    for module in ("ads.publish_expansion", "publishing.publish_table"):
        monkeypatch.setattr(f"nearcast.{module}.FACTS_FORMAT", 9 if what == "facts" else 1)
        if what == "lists":
            monkeypatch.setattr(f"nearcast.{module}.encode_lists", lambda ids, *_: [b"\x99\0\0\0"] * len(ids))
    if what == "rows":
        monkeypatch.setattr("nearcast.ads.publish_expansion.encode_items", lambda rows: [b"[1]"] * len(rows))
        monkeypatch.setattr("nearcast.publishing.publish_table._pairs", rows_of_lists(monkeypatch))
    with pytest.raises(DamagedError, match=r"version 000002 of ads .*could not be opened by any reader"):
        publish_expansion(store, "ads", ADS, LINKS)
    other = ROWS.set_column(0, "key", pa.array(["blue"]))
    with pytest.raises(DamagedError, match=r"version 000002 of shop.phrases .*could not be opened by any reader"):
        publish_table(store, "shop", "phrases", other)
    assert [store.versions(name) for name in ("ads", "shop.phrases")] == [[1], [1]]
    assert [store.pointer(name).version for name in ("ads", "shop.phrases")] == [1, 1]


def rows_of_lists(monkeypatch):
    from nearcast.publishing import publish_table
    from nearcast.stores.base import Space

    made = publish_table._pairs
    return lambda rows: {**made(rows), Space.ITEMS: [(key, b"[1]") for key, _ in made(rows)[Space.ITEMS]]}


def test_a_running_service_says_that_it_stays_on_an_old_table_and_follows_the_next_good_one(store, tmp_path):
    publish_table(store, "shop", "phrases", ROWS)
    with running(tmp_path, "shop", "ads", "--store", store.url, "--refresh", 0.05) as service:
        service.post("/v1/generators/shop/merged", {"context": {"phrase": "red"}}).raise_for_status()
        point(store, "ads", load_unreadable(store, "ads", 2))
        load(store, "shop.phrases", 2, {"red": [("a", 1.0)]}, format=9, kind=WEIGHT_TABLE)
        point(store, "shop.phrases", 2)
        for name in ("ads", "shop.phrases"):
            until(lambda name=name: f"{name} still answers from the version that it has" in service.said)
            assert service.metric(f'nearcast_update_failing{{generator="{name}"}}') == 1
            assert service.metric(f'nearcast_snapshot_version{{generator="{name}"}}') == 1
            assert service.metric(f'nearcast_update_failures_total{{generator="{name}"}}') == 1
        ready = service.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        assert {text.partition(":")[0] for text in ready.json()["reasons"]} == {"ads", "shop.phrases"}
        assert service.metric('nearcast_update_failing{generator="shop"}') == 0
        assert service.post(ADS_OF_A, {"keys": ["a"]}).json()["table"] == "000001"
        publish_expansion(store, "ads", ADS, LINKS)
        publish_table(store, "shop", "phrases", ROWS.set_column(0, "key", pa.array(["blue"])))
        for name in ("ads", "shop.phrases"):
            until(lambda name=name: f"{name} follows the store again, at 000003" in service.said)
            assert service.metric(f'nearcast_update_failing{{generator="{name}"}}') == 0
        assert service.post(ADS_OF_A, {"keys": ["a"]}).json()["table"] == "000003"
        assert service.get("/readyz").json() == {"ready": True, "reasons": []}


def test_what_cannot_be_opened_takes_nothing_else_down_at_a_start_and_is_served_once_it_can(tmp_path):
    root = tmp_path / "nearcast/store"
    bad = ["bad-ads", "future-ads", "flipped", "no-version", "no-pointer", "shop.phrases"]
    with contextlib.closing(open_store(f"lmdb:{root}")) as store:
        publish(store, "shop", 1, LISTS, metric="cosine")
        publish_expansion(store, "ads", ADS, LINKS)
        point(store, "bad-ads", load_unreadable(store, "bad-ads", 1))
        load(store, "future-ads", 1, {"x": [(1, 1.0)]}, format=9, **FACTS)
        point(store, "future-ads", 1)
        load(store, "shop.phrases", 1, {"red": [("a", 1.0)]}, format=9, kind=WEIGHT_TABLE)
        point(store, "shop.phrases", 1)
        for name in ("flipped", "no-version", "no-pointer"):
            publish(store, name, 1, LISTS, metric="cosine")
    file = root / "flipped/versions/000001/data.mdb"
    flip_a_byte(file, file.stat().st_size // 2)
    shutil.rmtree(root / "no-version/versions/000001")
    (root / "no-pointer/current").write_text("{")
    with running(tmp_path) as service:
        assert service.get("/v1/generators/shop/candidates/a").json()["found"]
        answer = service.post(ADS_OF_A, {"keys": ["a"], "expansion": "ads"})
        assert [ad["ad"] for ad in answer.json()["ads"]] == [1, 2]
        assert service.post(ADS_OF_A, {"keys": ["a"]}).json()["error"]["code"] == "which_expansion"
        assert service.post(ADS_OF_A, {"keys": ["a"], "expansion": "bad-ads"}).json()["error"]["code"] == "not_ready"
        assert service.get("/v1/generators/flipped/candidates/a").json()["error"]["code"] == "not_ready"
        assert service.get("/v1/generators/nobody/candidates/a").status_code == 404
        ready = service.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        assert sorted(text.partition(":")[0] for text in ready.json()["reasons"]) == sorted(bad)
        for name in bad:
            assert f"warning: {name} cannot be served: " in service.said
            assert service.metric(f'nearcast_update_failing{{generator="{name}"}}') == 1
            until(lambda name=name: f"{name} cannot be opened: " in service.said)
        merged = service.post("/v1/generators/shop/merged", {"context": {"phrase": "red"}})
        assert merged.json()["error"]["code"] == "store_unavailable"
        with contextlib.closing(open_store(f"lmdb:{root}")) as store:
            publish_expansion(store, "bad-ads", ADS, LINKS)
            publish(store, "flipped", 2, LISTS, metric="cosine")
        until(lambda: service.get("/v1/generators/flipped/candidates/a").status_code == 200)
        until(lambda: service.post(ADS_OF_A, {"keys": ["a"], "expansion": "bad-ads"}).status_code == 200)
        until(lambda: "flipped follows the store again, at 000002" in service.said)
        assert service.metric('nearcast_keys_total{generator="flipped"}') >= 1
        assert service.metric('nearcast_update_failing{generator="bad-ads"}') == 0


def test_where_nothing_can_be_opened_or_a_name_is_not_published_the_service_does_not_start(tmp_path):
    url = f"lmdb:{tmp_path}"
    with contextlib.closing(open_store(url)) as store:
        point(store, "ads", load_unreadable(store, "ads", 1))
        with pytest.raises(DamagedError, match="ads 000001 cannot be read"):
            cli.main(["serve", "--store", url, "--port", "0"], standalone_mode=False)
        publish(store, "shop", 1, LISTS, metric="cosine")
        with pytest.raises(NotFoundError, match="shoes"):
            cli.main(["serve", "shop", "shoes", "--store", url, "--port", "0"], standalone_mode=False)


@pytest.mark.parametrize("column", [pa.array([{"a": 1}, None]), pa.array([2**63, 1], pa.uint64())])
def test_a_column_that_no_reader_could_open_is_refused_and_the_old_table_stays(store, column):
    for _ in range(4):
        with pytest.raises(InputError, match="cannot hold: price is of type"):
            publish_expansion(store, "ads", ADS.append_column("price", column), LINKS)
    assert store.versions("ads") == [1]
    assert shown(store) == ([1, 2], "000001")
