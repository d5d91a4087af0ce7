"""A log through a real generator: snapshots published or not, an expansion table, an online index, and the history."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from service import running
from shop import N_ITEMS, fail, succeed, write_shop

import nearcast
from nearcast.history.event_log import read
from nearcast.replaying.replay import ReplayReport

ADS = """
name = "offers"
[ads]
path = "ads.parquet"
[links]
path = "links.parquet"
[serve]
k = 3
caps = { advertiser = 2 }
[[serve.targeting]]
column = "town"
test = "equals"
request = "town"
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator with two snapshots, the first of them published, an expansion table, and a log."""
    folder = tmp_path_factory.mktemp("replay")
    write_shop(folder, recall=1.0)
    succeed("run", "shop.toml", "--quiet", cwd=folder)
    succeed("publish", "shop", "--quiet", cwd=folder)
    write_shop(folder, recall=1.0, k=5)
    succeed("run", "shop.toml", "--quiet", cwd=folder)
    items = [f"i{i:04d}" for i in range(N_ITEMS)]
    rng = np.random.default_rng(8)
    towns = [None if draw < 0.3 else "rome" if draw < 0.8 else "oslo" for draw in rng.random(200)]
    pq.write_table(
        pa.table({"ad": np.arange(200), "advertiser": np.arange(200) % 40, "town": towns}), folder / "ads.parquet"
    )
    pq.write_table(pa.table({"item": items, "ad": rng.integers(200, size=N_ITEMS)}), folder / "links.parquet")
    (folder / "offers.toml").write_text(ADS)
    keys = [[f"q{i:03d}", f"q{(i + 1) % 300:03d}"] for i in range(60)]
    engaged = [[items[i] for i in rng.integers(N_ITEMS, size=40)] for _ in keys]
    log = pa.table({"key": [*keys, ["unknown"]], "town": ["rome"] * 61, "engaged": [*engaged, []]})
    pq.write_table(log, folder / "log.parquet")
    return folder


def test_a_log_is_replayed_by_look_up_and_online_and_kept_in_the_history(shop: Path) -> None:
    done = succeed("expand", "offers.toml", cwd=shop)
    assert "offers 000001 is current" in done.stdout
    words = ("replay", "shop.toml", "log.parquet", "--expansion", "offers")
    found = json.loads(succeed(*words, "--json", "--picture", "replay.svg", cwd=shop).stdout)
    offline, online = found["ways"]
    assert (offline["name"], online["name"], found["requests"], found["expansion"]) == (
        "offline",
        "online",
        61,
        "offers",
    )
    left = {name: candidates for name, candidates, _ in offline["stages"]}
    assert left["candidates"] > left["with_ads"] * 0.99
    assert left["with_ads"] > left["targeted"] > 0
    assert offline["returned"] <= 3
    assert offline["missed"] == pytest.approx(1 / 121)
    assert offline["hit_rate"]["of"] == 60
    assert abs(offline["stages"][0][1] - online["stages"][0][1]) < 1
    assert (shop / "replay.svg").stat().st_size < 150_000
    (event,) = read(shop / "nearcast", "shop", ["replay"])
    assert event.version == 1
    assert [set(stage) for stage in event.facts["stages"]] == [{"name", "offline", "online"}] * 7
    assert event.facts["requests"] == 61
    assert event.facts["hit_rate"]["offline"]["value"] == offline["hit_rate"]["value"]


def test_a_snapshot_is_judged_before_it_is_published(shop: Path) -> None:
    words = ("replay", "shop.toml", "log.parquet", "--snapshot", 1, "--snapshot", 2, "--no-online", "-k", 4)
    done = succeed(*words, cwd=shop)
    assert "offline 000001" in done.stdout
    assert "offline 000002" in done.stdout
    assert "is staged for the replay" in done.stderr
    found = json.loads(succeed(*words, "--json", cwd=shop).stdout)
    longer, shorter = (way["stages"][0][1] for way in found["ways"])
    assert longer > shorter
    assert json.loads(succeed("published", "shop", "--json", cwd=shop).stdout)[0]["pointer"]["version"] == 1


def test_what_cannot_be_replayed_is_told(shop: Path) -> None:
    assert "no column 'key'" in fail("replay", "shop.toml", "links.parquet", "--no-online", code=3, cwd=shop)
    fail("replay", "shop.toml", "log.parquet", "--snapshot", 9, "--no-online", code=7, cwd=shop)
    fail("replay", "shop.toml", "log.parquet", "--expansion", "none", "--no-online", code=7, cwd=shop)
    fail("replay", "shop.toml", "log.parquet", "--expansion", "shop", "--no-online", code=2, cwd=shop)


def test_a_served_expansion_answers_beside_its_generator(shop: Path) -> None:
    succeed("expand", "offers.toml", cwd=shop)
    with running(shop) as service:
        assert "serving shop 000001, ads of offers 0000" in service.said
        answer = service.post("/v1/generators/shop/ads", {"keys": ["q000"], "request": {"town": "rome"}}).json()
    assert answer["table"] >= "000001"
    assert 0 < len(answer["ads"]) <= 3


# ---- customers and products, with ids of two types; files that have changed ----


def write_customers(folder: Path, seed: int, key: str, item: str) -> None:
    rng = np.random.default_rng(seed)
    names = {"integer": list(range(40)), "string": [str(n) for n in range(40)]}
    vectors = rng.normal(size=(2, 40, 8)).astype(np.float32)
    for side, kind, rows in (("customers", key, vectors[0]), ("products", item, vectors[1])):
        pq.write_table(pa.table({"id": names[kind], "vector": list(rows)}), folder / f"{side}.parquet")
    spec = 'name = "mixed"\nmetric = "cosine"\nk = 5\nexclude_self = false\nmemory = "2GB"\nthreads = 1\n'
    spec += '[items]\npath = "products.parquet"\n[queries]\npath = "customers.parquet"\n'
    (folder / "mixed.toml").write_text(spec)


@pytest.mark.parametrize(("key", "item"), [("integer", "string"), ("string", "integer"), ("string", "string")])
def test_customers_and_products_may_have_ids_of_two_types(key: str, item: str, tmp_path: Path) -> None:
    write_customers(tmp_path, 1, key, item)
    snapshot = nearcast.run(tmp_path / "mixed.toml").snapshot
    nearcast.publish(tmp_path / "mixed.toml")
    best = {n: snapshot.lookup(n).ids[0] for n in range(40)}
    engaged = [int(best[n]) if n % 2 else str(best[n]) for n in range(40)]
    for engaged_column in (pa.array([int(one) for one in engaged]), pa.array([str(one) for one in engaged])):
        for keys in (pa.array(range(40)), pa.array([str(n) for n in range(40)])):
            log = pa.table({"key": keys, "engaged": engaged_column})
            found = nearcast.replay(tmp_path / "mixed.toml", log)
            assert [way.name for way in found.ways] == ["offline", "online"]
            assert [way.missed for way in found.ways] == [0, 0]
            assert found.ways[0].hit_rate.value == 1.0
            assert found.ways[1].hit_rate.value > 0.9
            assert found.warnings == ()


def test_a_log_of_other_keys_and_items_is_named_and_counts_as_misses(tmp_path: Path) -> None:
    write_customers(tmp_path, 1, "integer", "integer")
    snapshot = nearcast.run(tmp_path / "mixed.toml").snapshot
    nearcast.publish(tmp_path / "mixed.toml")

    def replayed(**log: object) -> ReplayReport:
        return nearcast.replay(tmp_path / "mixed.toml", pa.table(log), online=None)

    best = [str(snapshot.lookup(n).ids[0]) for n in range(40)]
    half = replayed(key=list(range(40)), engaged=[one if n % 2 else f"sku-{one}" for n, one in enumerate(best)])
    assert (half.ways[0].hit_rate.value, half.ways[0].hit_rate.of) == (0.5, 40)
    assert "20 of 40 ids in `engaged` cannot be int64, for example 'sku-" in half.warnings[0]
    other = replayed(key=["x", "y"])
    assert "no key of the log is a key of offline, for example 'x'" in other.warnings[0]
    path = tmp_path / "log.parquet"
    for keys, told in (([1, 2, 3], False), (["1", "2"], False), (["x", "1"], True), ([101, 102], True)):
        pq.write_table(pa.table({"key": keys}), path)
        warnings = nearcast.advise(tmp_path / "mixed.toml", log=path).advice.warnings
        assert any("that are no queries of the spec" in words for words in warnings) == told


def test_a_snapshot_of_other_files_than_the_online_index_is_named_with_a_warning(tmp_path: Path) -> None:
    write_customers(tmp_path, 1, "integer", "string")
    nearcast.run(tmp_path / "mixed.toml")
    nearcast.publish(tmp_path / "mixed.toml")
    log = pa.table({"key": list(range(40)), "engaged": [str(n) for n in range(40)]})
    alike = nearcast.replay(tmp_path / "mixed.toml", log)
    assert alike.warnings == ()
    assert alike.compared[0].startswith("offline: snapshot 000001, made ")
    assert alike.compared[1] == "online: today's files"
    write_customers(tmp_path, 2, "integer", "string")
    pq.write_table(log, tmp_path / "log.parquet")
    done = succeed("replay", "mixed.toml", "log.parquet", cwd=tmp_path)
    assert "offline: snapshot 000001" in done.stdout
    assert "the items and the queries have changed" in " ".join(done.stderr.split())
    (warning,) = json.loads(succeed("replay", "mixed.toml", "log.parquet", "--json", cwd=tmp_path).stdout)["warnings"]
    assert "made from other files than the online index" in warning
    assert nearcast.replay(tmp_path / "mixed.toml", log, online=None).warnings == ()
    nearcast.run(tmp_path / "mixed.toml")
    assert nearcast.replay(tmp_path / "mixed.toml", log, versions=[2]).warnings == ()
    for folder in (tmp_path / "nearcast" / "mixed" / "snapshots").iterdir():
        shutil.rmtree(folder)
    (gone,) = nearcast.replay(tmp_path / "mixed.toml", log).warnings
    assert "its snapshot is not here" in gone
