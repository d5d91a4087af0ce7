"""`nearcast alerts` and `nearcast monitor --all` as processes: acknowledge, snooze, many generators, a broken one."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.end_to_end.shop import fail, nearcast, succeed
from tests.monitoring.hooks import listening_hook
from tests.monitoring.nights import Nights, toml

import nearcast as package
from nearcast.errors import NotFoundError, SpecError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator with three nights, whose items are then too few. Copy it, do not write files."""
    shop = Nights(tmp_path_factory.mktemp("made"))
    shop.run()
    for _ in range(3):
        shop.night()
    shop.write(items=shop.items[:1_000] * shop.lengths[:1_000], item_ids=shop.item_ids[:1_000])
    shop.run()
    (shop.folder / "shop.toml").write_text(toml(shop.spec))
    return shop.folder


@pytest.fixture
def shop(made: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    shutil.copytree(made, folder)
    return folder


def add(folder: Path, text: str) -> None:
    """Append tables to the spec."""
    with (folder / "shop.toml").open("a") as file:
        file.write(text)


def alerts(folder: Path) -> dict[str, Any]:
    found = json.loads(succeed("alerts", "list", "shop.toml", "--json", cwd=folder).stdout)
    return {row["alert"]: row for row in found}


def test_an_alert_is_listed_with_its_owner_until_it_ends(shop: Path) -> None:
    add(shop, '[monitor]\nowner = "search"\n[[monitor.alerts]]\ncheck = "items_count"\nseverity = "critical"\n')
    assert "no history" in fail("alerts", "list", "other", code=7, cwd=shop)
    done = succeed("monitor", "shop.toml", cwd=shop)
    assert "[owner: search]" in " ".join(done.stdout.split())
    row = alerts(shop)["items_count"]
    assert (row["owner"], row["severity"], row["acknowledged"], row["snoozed"]) == ("search", "critical", None, None)
    shown = " ".join(succeed("alerts", "list", cwd=shop).stdout.split())
    assert "items_count" in shown
    assert "search" in shown


def test_an_acknowledged_alert_fails_no_check_and_says_who(shop: Path) -> None:
    fail("monitor", "shop.toml", "--fail-on", "any", code=13, cwd=shop)
    for name in alerts(shop):
        succeed("alerts", "acknowledge", "shop.toml", name, "--who", "ada", "--why", "the export is late", cwd=shop)
    assert alerts(shop)["items_count"]["acknowledged"]["why"] == "the export is late"
    done = succeed("monitor", "shop.toml", "--fail-on", "any", cwd=shop)
    assert "acknowledged or snoozed" in " ".join(done.stdout.split())
    assert "ada: the export is late" in " ".join(succeed("alerts", "list", "shop", cwd=shop).stdout.split())
    state = package.monitor(shop / "shop.toml").handled
    assert "items_count" in state


def test_a_snoozed_alert_fails_no_check_until_it_is_unsnoozed(shop: Path) -> None:
    succeed("monitor", "shop.toml", cwd=shop)
    succeed("alerts", "snooze", "shop.toml", "any", "--for", "8h", "--who", "ada", cwd=shop)
    succeed("monitor", "shop.toml", "--fail-on", "any", cwd=shop)
    assert alerts(shop)["items_count"]["snoozed"]["seconds_left"] > 7 * 3600
    succeed("alerts", "unsnooze", "shop.toml", "any", "--who", "ada", cwd=shop)
    fail("monitor", "shop.toml", "--fail-on", "any", code=13, cwd=shop)


def test_wrong_arguments_are_errors_that_name_what_there_is(shop: Path) -> None:
    succeed("monitor", "shop.toml", cwd=shop)
    assert "did you mean 'items_count'" in fail("alerts", "acknowledge", "shop.toml", "item_count", code=7, cwd=shop)
    assert "open" in fail("alerts", "snooze", "shop.toml", "nonsense", "--for", "8h", code=7, cwd=shop)
    assert "--for or --until" in fail("alerts", "snooze", "shop.toml", "age", code=2, cwd=shop)
    assert "has passed" in fail("alerts", "snooze", "shop.toml", "age", "--until", "2001-01-01", code=2, cwd=shop)
    assert "nothing is snoozed" in fail("alerts", "unsnooze", "shop.toml", "age", code=7, cwd=shop)
    with pytest.raises(SpecError, match="more than 0 seconds"):
        package.snooze_alert("shop", "age", seconds=0, who="ada", out=shop / "nearcast")
    with pytest.raises(NotFoundError, match="no history"):
        package.acknowledge_alert("other", "age", who="ada", out=shop / "nearcast")


def test_two_checks_at_once_leave_one_alert_open(shop: Path) -> None:
    done = [threading.Thread(target=nearcast, args=("monitor", "shop"), kwargs={"cwd": shop}) for _ in range(3)]
    for thread in done:
        thread.start()
    for thread in done:
        thread.join()
    assert [row["alert"] for row in alerts(shop).values()].count("items_count") == 1
    assert len(package.list_alerts("shop", out=shop / "nearcast")) == len(alerts(shop))


def test_a_team_gets_one_message_when_an_alert_begins_and_one_when_it_ends(shop: Path, made: Path) -> None:
    with listening_hook() as hook:
        add(shop, '[[monitor.webhooks]]\nformat = "slack"\nurl = "env:HOOK"\n')
        for _ in range(2):
            done = nearcast("monitor", "shop.toml", cwd=shop, HOOK=hook.url)
            assert done.returncode == 0
            assert "s3cret" not in done.stdout + done.stderr
        (message,) = hook.take()
        assert "items_count" in message["text"]
        Nights(shop)  # writes all items again
        succeed("run", "shop.toml", cwd=shop)
        nearcast("monitor", "shop.toml", cwd=shop, HOOK=hook.url)
        ended = [message for message in hook.take() if "resolved: items_count" in message["text"]]
        assert len(ended) == 1
        assert "s3cret" not in (shop / "nearcast" / "history.sqlite").read_bytes().decode("latin-1")
        done = nearcast("monitor", "shop.toml", cwd=shop, HOOK="")
        assert done.returncode == 0


@pytest.fixture
def fleet(made: Path, tmp_path: Path) -> Path:
    """A folder of specs: a generator with an alert, one without, a broken spec, and other files."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    shutil.move(tmp_path / "shop.toml", tmp_path / "b-ill.toml")
    well = tmp_path / "well"
    well.mkdir()
    text = toml(Nights(well).spec | {"name": "well"})
    text = text.replace('"items/*', '"well/items/*').replace('"queries.parquet', '"well/queries.parquet')
    (tmp_path / "c-well.toml").write_text(text)
    succeed("run", "c-well.toml", cwd=tmp_path)
    (tmp_path / "a-broken.toml").write_text('name = "broken"\nmetric = "cosin"\n')
    (tmp_path / "ads.toml").write_text("[ads]\n")
    (tmp_path / "notes.txt").write_text("no spec")
    return tmp_path


def test_one_broken_spec_does_not_stop_the_others(fleet: Path) -> None:
    done = nearcast("monitor", "--all", ".", "--json", cwd=fleet)
    assert done.returncode == 2
    assert "metric" in done.stderr
    rows = {Path(row["spec"]).name: row for row in json.loads(done.stdout)}
    assert list(rows) == ["a-broken.toml", "b-ill.toml", "c-well.toml"]
    assert rows["a-broken.toml"]["report"] is None
    assert "items_count" in [alert["check"] for alert in rows["b-ill.toml"]["report"]["alerts"]]
    assert rows["c-well.toml"]["report"]["alerts"] == []
    assert [row["exit_code"] for row in rows.values()] == [2, 0, 0]
    shown = succeed("alerts", "list", "--json", cwd=fleet).stdout
    assert {row["generator"] for row in json.loads(shown)} == {"shop"}


def test_the_exit_code_is_that_of_the_worst(fleet: Path) -> None:
    assert nearcast("monitor", "--all", ".", "--fail-on", "any", cwd=fleet).returncode == 2
    (fleet / "a-broken.toml").unlink()
    message = fail("monitor", "--all", ".", "--fail-on", "any", code=13, cwd=fleet)
    assert "shop: " in message
    succeed("monitor", "--all", ".", "--fail-on", "seconds", cwd=fleet)
    (fleet / "b-ill.toml").unlink()
    succeed("monitor", "--all", ".", "--fail-on", "any", cwd=fleet)
    (fleet / "c-well.toml").unlink()
    assert "holds no spec" in fail("monitor", "--all", ".", code=7, cwd=fleet)


def test_a_check_is_of_one_generator_or_of_all(fleet: Path) -> None:
    assert "--all FOLDER" in fail("monitor", code=2, cwd=fleet)
    assert "--all FOLDER" in fail("monitor", "c-well.toml", "--all", ".", code=2, cwd=fleet)


def test_the_page_shows_owner_and_who_takes_care(shop: Path) -> None:
    from nearcast.dashboard.generator import build_generator_page
    from nearcast.history.event_log import read

    add(shop, '[monitor]\nowner = "search"\nrunbook = "https://wiki.example.com/items"\n')
    succeed("monitor", "shop.toml", cwd=shop)
    succeed("alerts", "acknowledge", "shop.toml", "items_count", "--who", "ada", "--why", "on it", cwd=shop)
    page = build_generator_page(shop / "nearcast", "shop", read(shop / "nearcast", "shop"))
    trouble = next(one for one in page["state"]["troubles"] if one["check"] == "items_count")
    assert (trouble["owner"], trouble["runbook"]) == ("search", "https://wiki.example.com/items")
    assert trouble["handled"] == "acknowledged by ada: on it"
    assert np.isfinite(page["state"]["looked"])
