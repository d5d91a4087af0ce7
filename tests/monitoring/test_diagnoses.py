"""What the monitor, its JSON, the history and the page say of a planted state: the true cause, and nothing false."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.monitoring.nights import DIM, Nights, write_parquet

import nearcast
from nearcast.cli.monitor import monitor
from nearcast.dashboard.document import build_document
from nearcast.errors import StoreError
from nearcast.history.event_log import read
from nearcast.monitoring.monitor_pass import MonitorReport
from nearcast.monitoring.recall_today import find_surviving_neighbors
from nearcast.stores import open_store
from nearcast.types import Neighbors
from published import let_expire


def begun(folder: Path, **more: Any) -> Nights:
    """A catalogue whose first night is published."""
    shop = Nights(folder, **more)
    shop.run()
    assert shop.publish() == []
    return shop


def titles(watched: MonitorReport) -> dict[str, str]:
    return {alert.check: alert.headline for alert in watched.alerts}


def page_of(shop: Nights) -> dict[str, Any]:
    return build_document(shop.folder / "nearcast", lists=False)["generators"][0]


def say(shop: Nights, *arguments: str) -> str:
    done = CliRunner().invoke(monitor, [*arguments, "--out", str(shop.folder / "nearcast"), "--quiet"])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@contextlib.contextmanager
def overlay_of(shop: Nights) -> Any:
    with nearcast.overlay(shop.folder / "nearcast" / "store", "shop") as overlay:
        yield overlay


def popular(shop: Nights, count: int) -> list[str]:
    """The items that are in most lists."""
    with nearcast.open(shop.folder / "nearcast" / "store", "shop") as lookup:
        listed = Counter(lookup.get_many(shop.query_ids).ids.to_pylist())
    return [item for item, _ in listed.most_common(count)]


class TestOverlay:
    """Items that the overlay removes are missing by intent."""

    @pytest.fixture(scope="class")
    @classmethod
    def shop(cls, tmp_path_factory: pytest.TempPathFactory) -> Nights:
        return begun(tmp_path_factory.mktemp("overlay"))

    def test_paused_items_are_not_missed_neighbors(self, shop: Nights) -> None:
        with overlay_of(shop) as overlay:
            overlay.remove(popular(shop, 150))
        watched = shop.look()
        assert watched.alerts == ()
        assert watched.served is not None
        assert watched.served.recall == 1.0
        assert watched.served.removed_items == 150
        assert 0.1 < watched.served.removed < 0.5
        assert page_of(shop)["state"]["troubles"] == ()

    def test_restored_and_expired_items_count_again(self, shop: Nights) -> None:
        with overlay_of(shop) as overlay:
            paused = [entry.item for entry in overlay.entries()]
            overlay.restore(paused[:100])
        with contextlib.closing(open_store(f"lmdb:{shop.folder}/nearcast/store")) as store:
            let_expire(store, "shop", *paused[100:])
        served = shop.look().served
        assert served is not None
        assert (served.removed_items, served.removed, served.recall) == (0, 0.0, 1.0)

    def test_what_is_new_is_missed_among_paused_items_too(self, shop: Nights) -> None:
        with overlay_of(shop) as overlay:
            overlay.remove(popular(shop, 150))
        shop.pass_a_day(churn=0.4)
        shop.write()
        watched = shop.look()
        assert titles(watched)["served_recall"] == "Served lists miss new items"
        assert "of the missed neighbors are new items" in watched.alerts[0].text

    def test_an_overlay_that_empties_the_lists_is_named(self, shop: Nights) -> None:
        with overlay_of(shop) as overlay:
            overlay.remove([f"i{n:05d}" for n in range(2_000)])
        watched = shop.look()
        assert titles(watched)["removed"] == "The overlay removes most of the served candidates"
        assert not {"served_recall", "dead"} & set(titles(watched))
        assert "the served lists of 000001 lose 100.0% of their candidates" in watched.alerts[0].text


class TestRefusedNight:
    """A night that the audit refuses, and the mended one after it."""

    @pytest.fixture(scope="class")
    @classmethod
    def shop(cls, tmp_path_factory: pytest.TempPathFactory) -> Nights:
        shop = begun(tmp_path_factory.mktemp("refused"))
        for _ in range(3):
            assert shop.night() == []
        shop.pass_a_day()
        shop.write(items=np.roll(shop.items, 1, axis=0))
        shop.run()
        assert "overlap" in shop.publish()
        return shop

    def test_by_name_the_monitor_says_that_it_was_refused_by_which_rule_and_what_is_served(self, shop: Nights) -> None:
        said = say(shop, "shop")
        assert "nothing is wrong" not in said
        assert "The audit refused 000005" in said
        assert "overlap" in said
        assert "Users get snapshot 000004" in said
        assert "000004 has been served since" in said

    def test_monitor_json_history_and_page_say_the_same(self, shop: Nights) -> None:
        told = json.loads(
            CliRunner().invoke(monitor, ["shop", "--out", str(shop.folder / "nearcast"), "--json"]).stdout
        )
        kept = read(shop.folder / "nearcast", "shop", ["monitor"])[-1].facts
        page = page_of(shop)["state"]
        assert [a["title"] for a in told["alerts"]] == [a["title"] for a in kept["alerts"]]
        assert {a["title"] for a in told["alerts"]} == {t["title"] for t in page["troubles"]}
        assert page["troubles"][0]["title"] == "Ids and vectors of items are shifted"
        assert told["verdict"].startswith("Ids and vectors of items are shifted")

    def test_a_page_that_no_monitor_has_looked_at_says_the_same(self, shop: Nights) -> None:
        before = page_of(shop)["state"]["troubles"]
        shop.run()  # nothing to do: the history is as it was
        assert page_of(shop)["state"]["troubles"] == before

    def test_the_mended_night_is_compared_with_what_is_served(self, shop: Nights) -> None:
        shop.write()
        shop.run()
        manifest = json.loads(
            (shop.folder / "nearcast" / "shop" / "snapshots" / "000006" / "manifest.json").read_text()
        )
        assert manifest["compared_with"] == {"version": 4, "served": True}
        assert manifest["measures"]["overlap"] > 0.7
        assert manifest["measures"]["items_moved"] == 0.0

    def test_the_page_does_not_hold_the_refused_night_against_the_mended_one(self, shop: Nights) -> None:
        state = page_of(shop)["state"]
        assert [t for t in state["troubles"] if t["check"] != "audit"] == []
        assert "has not seen the newest run, 000006" in state["watched"]
        assert "The audit refused 000005" in state["became"]
        assert "000006, the newest, is not published yet" in state["became"]

    def test_the_monitor_says_nothing_false_of_the_mended_night(self, shop: Nights) -> None:
        assert titles(shop.look()) == {}
        assert shop.publish() == []
        state = page_of(shop)["state"]
        assert (state["level"], state["troubles"]) == ("ok", ())


class TestHalfMissing:
    """Half of the items are missing on the second night, when nothing is usual yet."""

    @pytest.fixture(scope="class")
    @classmethod
    def shop(cls, tmp_path_factory: pytest.TempPathFactory) -> Nights:
        shop = begun(tmp_path_factory.mktemp("half"), audit={"min_overlap": 0.0, "max_size_change": 100.0})
        shop.pass_a_day()
        shop.write(items=shop.items[:1_000], item_ids=shop.item_ids[:1_000])
        shop.run()
        return shop

    def test_the_headline_has_the_cause_and_both_numbers_everywhere(self, shop: Nights) -> None:
        title = "Half of the items are missing: 1,000 of 2,000 that are served"
        assert page_of(shop)["state"]["troubles"][0]["title"] == title  # before any monitor
        assert titles(shop.look()) == {"items_count": title}
        assert page_of(shop)["state"]["troubles"][0]["title"] == title
        assert title in say(shop, "shop")
        event = read(shop.folder / "nearcast", "shop", ["monitor"])[-1]
        assert event.facts["alerts"][0]["title"] == title

    def test_a_mended_run_without_a_monitor_ends_it(self, shop: Nights) -> None:
        shop.write()
        shop.run()
        page = page_of(shop)
        assert page["state"]["troubles"] == ()
        assert page["state"]["word"] == "Not monitored"
        assert page["runs"]["items_vectors"][-1] == 2_000

    def test_today_s_file_cut_short_is_not_taken_for_items_that_are_gone(self, shop: Nights) -> None:
        shop.write(items=shop.items[:1_000], item_ids=shop.item_ids[:1_000])
        watched = shop.look()
        assert titles(watched) == {"items_count": "Half of the items are missing: 1,000 of 2,000 that are served"}
        assert "dead" in watched.alerts[0].follows


class TestNeverMonitored:
    """Runs and publishes that no monitor has looked at."""

    @pytest.fixture(scope="class")
    @classmethod
    def shop(cls, tmp_path_factory: pytest.TempPathFactory) -> Nights:
        return begun(tmp_path_factory.mktemp("never"))

    def test_it_is_not_green(self, shop: Nights) -> None:
        page = build_document(shop.folder / "nearcast", lists=False)
        state = page["generators"][0]["state"]
        assert (state["level"], state["word"]) == ("unknown", "Not monitored")
        assert state["watched"] == "The monitor has not run yet."
        assert page["headline"] == {"level": "unknown", "text": "1 of 1 generator is not monitored"}

    def test_a_first_pass_says_what_it_cannot_know(self, shop: Nights) -> None:
        said = say(shop, "shop")
        assert "nothing is wrong, but usual values need at least 3 earlier runs" in said
        assert "the served version was not checked" in said


class TestAnotherSpec:
    """The spec, the ids or the vectors are others than those of what is served."""

    def test_another_k_is_no_shift_of_scores_and_another_metric_is_said(self, tmp_path: Path) -> None:
        shop = begun(tmp_path)
        for _ in range(3):
            assert shop.night() == []
        shop.spec = shop.spec | {"k": 40}
        shop.run()
        assert titles(shop.look()) == {}
        shop.spec = shop.spec | {"k": 10, "metric": "l2"}
        watched = shop.look()
        assert titles(watched) == {"served_spec": "The served version was made by another spec"}
        assert "the metric is l2 today and cosine in the served version" in watched.alerts[0].text
        assert watched.served is not None
        assert watched.served.recall is None
        shop.run()
        assert set(titles(shop.look())) == {"served_spec"}

    def test_vectors_of_another_model_today_are_not_called_new_items(self, tmp_path: Path) -> None:
        shop = begun(tmp_path)
        turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))
        shop.write(queries=shop.queries @ turn)
        watched = shop.look()
        assert titles(watched) == {"served_recall": "Served lists are no longer the nearest items"}
        assert watched.alerts[0].effect == "The vectors have changed since: other items are nearest now."

    def test_keys_of_another_type_are_said_and_stop_nothing(self, tmp_path: Path) -> None:
        shop = begun(tmp_path)
        write_parquet(
            shop.folder / "queries.parquet",
            [int(name[1:]) for name in shop.query_ids],  # type: ignore[misc]
            shop.queries,
            segment=["home"] * 600,
        )
        watched = shop.look()
        assert titles(watched)["served_spec"] == "The served version was made by another spec"
        assert titles(watched)["misses"] == "Queries of today are not in the served table"
        assert "served_recall" not in titles(watched)


def test_rules_that_wait_for_a_request_are_not_applied_where_there_is_none(tmp_path: Path) -> None:
    rule = {"name": "affordable", "keep": "item.price <= request.limit"}
    shop = Nights(tmp_path, items={"path": "items/*.parquet", "attributes": ["price"]}, rules=[rule])
    for part in range(4):
        rows = range(part, 2_000, 4)
        path, ids = shop.folder / "items" / f"part-{part}.parquet", [shop.item_ids[row] for row in rows]
        write_parquet(path, ids, shop.items[list(rows)], price=[float(row) for row in rows])
    shop.run()
    assert shop.publish() == []
    watched = shop.look()
    assert watched.alerts == ()
    assert watched.served is not None
    assert (watched.served.recall, watched.served.removed) == (1.0, 0.0)


def test_a_version_that_another_folder_published_is_what_users_get(tmp_path: Path) -> None:
    shop = begun(tmp_path)
    other = Nights(tmp_path / "other")
    for _ in range(3):
        other.pass_a_day()
        other.write()
        other.run()
    nearcast.publish("shop", out=other.folder / "nearcast", store=str(shop.folder / "nearcast" / "store"))
    watched = shop.look()
    assert watched.served is not None
    assert watched.served.version == 3
    assert watched.users_get.startswith("Users get snapshot 000003")
    assert "published from elsewhere" in watched.users_get
    assert page_of(shop)["live"]["version"] == 3


def looked_up(shop: Nights, keys: list[str | int], *, found: bool) -> None:
    folder = shop.folder / "nearcast" / "lookups"
    folder.mkdir(exist_ok=True)
    rows = [[key, found, "table" if found else "none"] for key in keys]
    now = time.time()
    facts = {"generator": "shop", "began": now - 60, "until": now, "seen": len(rows), "sample": rows}
    (folder / "shop-1-1.json").write_text(json.dumps(facts))


class TestLookUps:
    """Samples of look-ups that tell little, or are of another version."""

    @pytest.fixture(scope="class")
    @classmethod
    def shop(cls, tmp_path_factory: pytest.TempPathFactory) -> Nights:
        return begun(tmp_path_factory.mktemp("samples"))

    def test_look_ups_that_all_miss_are_an_alert_on_the_first_pass(self, shop: Nights) -> None:
        looked_up(shop, [f"x{n}" for n in range(50)], found=False)
        watched = shop.look()
        assert titles(watched) == {"misses": "Keys are not found"}
        assert "none of the 50 keys that were looked up is in the served table 000001" in watched.alerts[0].text

    def test_keys_of_two_types_are_judged_by_the_type_of_the_table(self, shop: Nights) -> None:
        looked_up(shop, [*shop.query_ids[:30], *range(30)], found=True)
        served = shop.look().served
        assert served is not None
        assert (served.sampled, served.misses, served.recall) == ("look-ups", 0.5, 1.0)

    def test_empty_and_broken_samples_count_as_none(self, shop: Nights) -> None:
        looked_up(shop, [], found=True)
        (shop.folder / "nearcast" / "lookups" / "shop-2-2.json").write_text("{")
        watched = shop.look()
        assert watched.alerts == ()
        assert watched.served is not None
        assert (watched.served.sampled, watched.served.misses) == ("queries", 0.0)


def test_a_store_that_cannot_be_read_is_an_alert_beside_what_the_runs_say(tmp_path: Path) -> None:
    shop = begun(tmp_path)
    shop.spec = shop.spec | {"publish": {"store": "redis://127.0.0.1:9/0"}}
    watched = shop.look()
    assert titles(watched) == {"unreachable": "The store could not be read"}
    assert isinstance(watched.failure, StoreError)
    done = CliRunner().invoke(monitor, [str(shop.folder / "shop.toml")])
    assert isinstance(done.exception, StoreError)
    assert "The store could not be read" in done.output


def test_a_store_that_was_lost_is_told_until_something_is_published_again(tmp_path: Path) -> None:
    shop = begun(tmp_path)
    store = shop.folder / "nearcast" / "store"
    store.rename(tmp_path / "away")
    watched = shop.look()
    assert titles(watched) == {"unreachable": "The store has lost all published versions"}
    assert watched.users_get == "Users get nothing: the store holds nothing, and 000001 was published to it."
    state = page_of(shop)["state"]
    assert (state["level"], state["seen"]) == ("bad", watched.users_get)
    elsewhere = nearcast.monitor(shop.folder / "shop.toml", store=f"lmdb:{tmp_path / 'other'}")
    assert "holds nothing, and 000001 was published to lmdb:" in elsewhere.alerts[0].text
    assert "newest lists" in elsewhere.users_get  # from the other store, as far as one knows
    shop.publish()
    assert titles(shop.look()) == {}


def test_after_a_rollback_the_last_line_says_so(tmp_path: Path) -> None:
    shop = begun(tmp_path)
    assert shop.night() == []
    nearcast.roll_back("shop", out=shop.folder / "nearcast")
    watched = shop.look()
    assert watched.verdict.startswith("rolled back to 000001")
    assert "000002 was rolled back from." in watched.users_get


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_truth_without_removed_items_is_that_of_a_catalogue_without_them(data: st.DataObject) -> None:
    n, queries = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    removed = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    depths = np.array(data.draw(st.lists(st.integers(1, 12), min_size=queries, max_size=queries)))
    scores = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(queries, n)).astype(np.float32)

    def ask(rows: np.ndarray, width: int) -> Neighbors:
        order = np.argsort(-scores[rows], axis=1, kind="stable")[:, :width]
        return Neighbors(order, np.take_along_axis(scores[rows], order, 1))

    found = find_surviving_neighbors(removed, np.arange(queries), depths, ask)
    for row in range(queries):
        left = [p for p in np.argsort(-scores[row], kind="stable") if not removed[p]][: depths[row]]
        assert found.positions[row][: len(left)].tolist() == left
        assert (found.positions[row][len(left) :] == -1).all()
