"""The history: one SQLite file that many processes add to, and that loses nothing."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest
from tests.monitoring.nights import Nights

import nearcast
from nearcast.errors import AuditError, DamagedError
from nearcast.history.event_log import FILE, append, read


def add_many(folder: Path, name: str) -> None:
    for number in range(50):
        assert append(folder, name, "run", number, {"n": number}) is None


def test_rows_come_back_in_their_order_by_generator_kind_and_number(tmp_path: Path) -> None:
    for number in range(5):
        append(tmp_path, "a", "run", number, {"n": number})
        append(tmp_path, "b", "publish", number, {})
    assert [event.facts["n"] for event in read(tmp_path, "a")] == [0, 1, 2, 3, 4]
    assert [event.version for event in read(tmp_path, "a", last=2)] == [3, 4]
    assert [event.kind for event in read(tmp_path)][:2] == ["run", "publish"]
    assert read(tmp_path, "a", ["publish"]) == []
    assert read(tmp_path / "elsewhere") == []


def test_four_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add_many, args=(tmp_path, name)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(read(tmp_path)) == 200


def test_a_row_with_the_same_identity_is_added_once(tmp_path: Path) -> None:
    for _ in range(3):
        append(tmp_path, "a", "run", 1, {}, identity="run a 1")
    assert len(read(tmp_path)) == 1


def test_where_there_are_no_snapshots_no_folder_is_made_for_a_history(tmp_path: Path) -> None:
    assert append(tmp_path / "none", "a", "rollback", 1, {}) is None
    assert not (tmp_path / "none").exists()


def test_a_file_that_is_no_history_says_what_to_do_and_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"this is no database at all, however long it may be" * 40)
    with pytest.raises(DamagedError, match="move it away, and a new history begins"):
        read(tmp_path)
    assert "was not written" in str(append(tmp_path, "a", "run", 1, {}))


def test_a_history_of_a_newer_nearcast_is_left_alone(tmp_path: Path) -> None:
    append(tmp_path, "a", "run", 1, {})
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("pragma user_version = 9")
    with pytest.raises(DamagedError, match="format 9, and this nearcast reads 1; upgrade it"):
        read(tmp_path)
    assert "format 9" in str(append(tmp_path, "a", "run", 2, {}))


def test_runs_publishes_failed_audits_rollbacks_and_passes_are_all_kept(tmp_path: Path) -> None:
    shop = Nights(tmp_path, audit={"min_overlap": 0.5})
    out = tmp_path / "nearcast"
    shop.run()
    shop.publish()
    shop.night()
    nearcast.roll_back(shop.parsed, out=out)
    shop.spec = shop.spec | {"audit": {"min_keys": 10_000}}
    shop.pass_a_day()
    shop.write()
    shop.run()
    with pytest.raises(AuditError):
        nearcast.publish(shop.parsed, out=out)
    kinds = [(event.kind, event.facts.get("outcome")) for event in read(out, "shop")]
    assert kinds == [
        ("run", None),
        ("publish", "published"),
        ("run", None),
        ("publish", "published"),
        ("monitor", None),
        ("rollback", "rolled_back"),
        ("run", None),
        ("publish", "audit_failed"),
    ]
    refused = read(out, "shop")[-1].facts["findings"]
    assert [finding["rule"] for finding in refused if not finding["passed"]] == ["keys"]


def test_a_run_that_was_killed_before_it_was_added_is_added_by_the_next_pass(tmp_path: Path) -> None:
    shop = Nights(tmp_path)
    shop.run()
    shop.night()
    (tmp_path / "nearcast" / FILE).unlink()
    shop.look()
    assert [(e.kind, e.version) for e in read(tmp_path / "nearcast")] == [("run", 1), ("run", 2), ("monitor", 2)]


def test_the_same_run_again_is_not_added_twice(tmp_path: Path) -> None:
    shop = Nights(tmp_path)
    shop.run()
    shop.run()  # nothing has changed: the snapshot there is is the answer
    assert len(read(tmp_path / "nearcast", "shop", ["run"])) == 1


@pytest.mark.parametrize("target", ["victim", "nowhere"])
def test_a_link_in_the_place_of_the_history_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / "out" / FILE).symlink_to(tmp_path / target)
    told = append(tmp_path / "out", "shop", "run", 1, {})
    assert told is not None
    assert "is a symbolic link, which is not followed" in told
    assert (tmp_path / "victim").read_bytes() == b""
    assert not (tmp_path / "nowhere").exists()
    if target == "victim":
        with pytest.raises(DamagedError, match="is a symbolic link"):
            read(tmp_path / "out")
