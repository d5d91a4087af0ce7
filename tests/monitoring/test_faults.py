"""Ten planted faults, each on real runs after healthy nights: each is caught, and named for what it is."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.monitoring.nights import Nights

from needs import require_module

HEALTHY = 5  # nights before the fault


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Nights]:
    """Return catalogues with some healthy nights behind them, each made once. Copy, do not write."""

    made: dict[str, Nights] = {}

    def make(**settings: object) -> Nights:
        if (key := repr(settings)) in made:
            return made[key]
        shop = made[key] = Nights(tmp_path_factory.mktemp("healthy"), **settings)
        shop.run()
        shop.publish()
        for _ in range(HEALTHY):
            assert shop.night() == []
        return shop

    return make


def nights(healthy: Callable[..., Nights], folder: Path, **settings: object) -> Nights:
    """A catalogue with some healthy nights behind it, and the vectors and ids of the next day."""
    shop = healthy(**settings).copy(folder)
    shop.pass_a_day()
    shop.write()
    return shop


def test_half_of_the_items_missing(healthy: Callable[..., Nights], tmp_path: Path) -> None:
    shop = nights(healthy, tmp_path)
    shop.write(items=shop.items[:1_000], item_ids=shop.item_ids[:1_000])
    found = shop.found()
    assert set(found) == {"items_count"}
    assert "items is 1,000, usual is 2,000" in found["items_count"]


def test_query_vectors_of_another_model(healthy: Callable[..., Nights], tmp_path: Path) -> None:
    shop = nights(healthy, tmp_path)
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(24, 24)))
    shop.write(queries=shop.queries @ turn)
    found = shop.found()
    assert set(found) == {"queries_model"}
    assert "the vectors of the queries are those of another model" in found["queries_model"]
    assert shop.publish() == ["overlap", "vectors"]


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_vectors_that_are_not_normalized_any_more(healthy: Callable[..., Nights], tmp_path: Path, metric: str) -> None:
    shop = nights(healthy, tmp_path, metric=metric)
    lengths = np.random.default_rng(4).uniform(0.9, 1.05, size=(2_000, 1))
    shop.write(items=shop.items * lengths)
    found = shop.found()
    assert set(found) == {"items_norms"}
    assert "were the vectors normalized" in found["items_norms"]


def test_one_shard_stale(healthy: Callable[..., Nights], tmp_path: Path) -> None:
    shop = nights(healthy, tmp_path)
    stale = (tmp_path / "items" / "part-2.parquet").read_bytes()
    shop.run()
    shop.pass_a_day()
    shop.write()
    (tmp_path / "items" / "part-2.parquet").write_bytes(stale)
    found = shop.found()
    assert set(found) == {"items_stale"}
    assert "1 of 4 files of the items are those of an earlier run: items/part-2.parquet" in found["items_stale"]


def test_the_vectors_of_one_slice_of_the_queries_zeroed(healthy: Callable[..., Nights], tmp_path: Path) -> None:
    shop = nights(healthy, tmp_path, metric="inner_product")
    zeroed = shop.queries.copy()
    zeroed[shop.segment("toys")] = 0
    shop.write(queries=zeroed)
    found = shop.found()
    assert set(found) == {"queries_zeros", "slice"}
    assert "median best score of segment toys is 0, usual is" in found["slice"]


def test_the_vectors_of_a_shard_of_the_items_zeroed(healthy: Callable[..., Nights], tmp_path: Path) -> None:
    shop = nights(healthy, tmp_path, metric="inner_product")
    zeroed = shop.items.copy()
    zeroed[1::4] = 0
    shop.write(items=zeroed)
    found = shop.found()
    assert "items_zeros" in found
    assert set(found) <= {"items_zeros", "items_norms", "coverage"}


def test_ids_shifted_by_one(healthy: Callable[..., Nights], tmp_path: Path) -> None:
    shop = nights(healthy, tmp_path)
    shop.write(items=np.roll(shop.items, 1, axis=0))
    found = shop.found()
    assert set(found) == {"items_ids"}
    assert "ids and vectors of the items are shifted against each other" in found["items_ids"]
    assert shop.publish() == ["overlap", "vectors"]


def test_a_day_that_is_mended_is_not_held_against_the_one_that_was_refused(
    healthy: Callable[..., Nights], tmp_path: Path
) -> None:
    shop = nights(healthy, tmp_path)
    shop.write(items=np.roll(shop.items, 1, axis=0))
    assert set(shop.found()) == {"items_ids"}
    assert shop.publish() == ["overlap", "vectors"]
    shop.write()
    assert shop.found() == {}
    assert shop.publish() == []
    shop.write(items=np.roll(shop.items, 1, axis=0))  # and again: this one is held against a good one
    assert set(shop.found()) == {"items_ids"}


def test_duplicates_of_one_item_filling_lists(healthy: Callable[..., Nights], tmp_path: Path) -> None:
    shop = nights(healthy, tmp_path)
    copied = shop.items.copy()
    copied[50:450] = copied[50]
    shop.write(items=copied)
    found = shop.found()
    assert set(found) == {"copies"}


def test_an_index_built_for_another_metric(healthy: Callable[..., Nights], tmp_path: Path) -> None:
    """Vectors of very different lengths, so that what is near by l2 is not what has a large product."""
    require_module("faiss")
    settings = {"metric": "inner_product", "recall": 0.8, "engine": "faiss-ivf", "lengths": (0.2, 3)}
    shop = nights(healthy, tmp_path, **settings, engine_settings={"nlist": 20, "nprobe": 2})
    other = Nights.__new__(Nights)
    other.__dict__ |= shop.__dict__ | {"folder": tmp_path / "other", "spec": shop.spec | {"metric": "l2"}}
    shutil.copytree(tmp_path / "items", tmp_path / "other" / "items")
    shutil.copy(tmp_path / "queries.parquet", tmp_path / "other" / "queries.parquet")
    other.run()
    shop.run()
    home, alien = (folder / "nearcast" / "shop" / "artifacts" for folder in (tmp_path, tmp_path / "other"))
    (ours,), (theirs,) = home.glob("index-*"), alien.glob("index-*")
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    shutil.rmtree(tmp_path / "nearcast" / "shop" / "snapshots" / f"{shop.look().version:06d}")
    import nearcast
    from nearcast.errors import TargetError

    with pytest.raises(TargetError):
        nearcast.run(shop.spec, base=tmp_path, again=True)
    found = {alert.check: alert.text for alert in shop.look().alerts}
    assert set(found) == {"metric"}
    assert "the lists look like those of metric l2, and the spec says inner_product" in found["metric"]


def test_a_probe_count_cut_to_a_tenth(healthy: Callable[..., Nights], tmp_path: Path) -> None:
    require_module("faiss")
    settings = {"recall": 0.8, "engine": "faiss-ivf"}
    shop = nights(healthy, tmp_path, **settings, engine_settings={"nlist": 60, "nprobe": 20})
    shop.spec = shop.spec | {"engine_settings": {"nlist": 60, "nprobe": 2}}
    found = shop.found()
    assert set(found) - {"slice"} == {"effort"}
    assert "nprobe is 2 and was 20" in found["effort"]


def test_a_table_three_weeks_old_over_a_catalogue_that_turns_over_5_percent_a_day(tmp_path: Path) -> None:
    shop = Nights(tmp_path, audit={"max_age_hours": 10_000.0})
    shop.run()
    manifest = tmp_path / "nearcast" / "shop" / "snapshots" / "000001" / "manifest.json"
    facts = json.loads(manifest.read_text())
    made = time.time() - 21 * 86_400
    facts["run"]["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made))
    manifest.write_text(json.dumps(facts))
    assert shop.publish() == []
    shop.spec = shop.spec | {"audit": {"max_age_hours": 48.0}}
    for _ in range(21):
        shop.pass_a_day(churn=0.05)
    shop.write()
    watched = shop.look()
    assert {alert.check for alert in watched.alerts} == {"served_recall", "dead", "age"}
    assert watched.served is not None
    assert 0.5 < watched.served.dead < 0.8  # 1 - 0.95 ** 21 = 0.66
    assert watched.served.refresh_seconds is not None
    assert 1 < watched.served.refresh_seconds / 86_400 < 4  # 0.95 ** 2 = 0.9, the least allowed
    assert "refresh the table every" in next(a.text for a in watched.alerts if a.check == "dead")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "churn", "settings"),
    [
        ("cosine", 0.02, {}),
        ("l2", 0.05, {}),
        ("inner_product", 0.03, {"recall": 0.9, "engine": "faiss-ivf", "engine_settings": {"nlist": 30}}),
    ],
)
def test_thirty_healthy_days_say_nothing(tmp_path: Path, metric: str, churn: float, settings: dict) -> None:
    if settings:
        require_module("faiss")
    shop = Nights(tmp_path, metric=metric, seed=11, **settings)
    shop.run()
    shop.publish()
    assert [shop.night(churn) for _ in range(30)] == [[]] * 30
