"""The contract of a home of snapshots, one suite for a local folder and a bucket."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from pathlib import Path

import pytest
from tests.snapshot_folders import remove_snapshot, snapshot_facts, write_snapshot_folder

from nearcast.errors import DamagedError, NotFoundError
from nearcast.storage.artifacts import open_artifacts
from nearcast.storage.open_storage import is_url, join_location, open_storage
from nearcast.table import bucket_home
from nearcast.table.snapshot import (
    Snapshot,
    commit_snapshot,
    find_snapshot,
    hold_snapshot,
    list_generators,
    list_snapshots,
    next_version,
    open_home,
)


@pytest.fixture(params=["folder", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "cache"))
    return str(tmp_path / "out") if request.param == "folder" else request.getfixturevalue("s3_url")


def commit(out: str, folder: Path, fingerprint: str = "one") -> Snapshot:
    return commit_snapshot(out, "shop", write_snapshot_folder(folder), snapshot_facts(fingerprint))


def commit_in_a_process(out: str, folder: str, fingerprint: str, start: object) -> None:
    made = write_snapshot_folder(Path(folder))
    start.wait()  # type: ignore[attr-defined]
    commit_snapshot(out, "shop", made, snapshot_facts(fingerprint))


def commit_at_once(out: str, tmp_path: Path, fingerprints: list[str]) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    processes = [
        context.Process(target=commit_in_a_process, args=(out, str(tmp_path / f"made-{place}"), mark, start))
        for place, mark in enumerate(fingerprints)
    ]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_nothing_is_found_where_nothing_was_committed(out):
    assert list_generators(out) == []
    assert list_snapshots(out, "shop") == []
    assert next_version(out, "shop") == 1
    with pytest.raises(NotFoundError, match="no snapshot of 'shop' in"):
        find_snapshot(out, "shop")


def test_a_committed_snapshot_is_found_looked_up_and_whole(out, tmp_path):
    made = commit(out, tmp_path / "made")
    assert (made.version, made.name, made.manifest.version) == (1, "000001", 1)
    assert made.url == join_location(out, "shop", "snapshots", "000001")
    assert list_generators(out) == ["shop"]
    found = find_snapshot(out, "shop")
    assert {**found.manifest.as_dict(), "files": 0} == {**made.manifest.as_dict(), "files": 0}
    found.verify()
    answer = found.lookup("q000007", ("name",))
    assert len(answer.ids) == 4
    assert answer.columns["name"] == tuple(f"item {int(item[1:])}" for item in answer.ids)
    assert found.has("items")
    assert not found.has("queries")
    assert not found.fetch("queries").is_dir()
    assert {path.name for path in found.fetch("sketch").iterdir()} == {"items.parquet"}


@pytest.mark.parametrize("place", ["the bucket of `out`", "another storage"])
def test_files_that_are_in_a_storage_become_part_of_a_snapshot(out, tmp_path, place, s3_url):
    whole = write_snapshot_folder(tmp_path / "made")
    with_bucket = place == "the bucket of `out`" and is_url(out)
    artifacts = open_artifacts(join_location(out, "work") if with_bucket else f"{s3_url}/work")
    artifacts.commit("table", lambda folder: shutil.move(whole / "candidates", folder) and {})
    elsewhere = artifacts.list_files("table")
    commit_snapshot(out, "shop", whole, snapshot_facts("one"), elsewhere=elsewhere)
    artifacts.remove("")
    found = find_snapshot(out, "shop")
    assert set(found.manifest.facts["files"]) == {*elsewhere, "items/part-00000.parquet", "sketch/items.parquet"}
    found.verify()
    assert len(found.lookup("q000007").ids) == 4


def test_an_unknown_key_is_answered_with_the_nearest(out, tmp_path):
    found = commit(out, tmp_path / "made")
    with pytest.raises(NotFoundError, match="'q000007'"):
        found.lookup("q00007")


def test_versions_count_up_and_the_manifest_has_the_version_that_the_commit_got(out, tmp_path):
    for version in (1, 2, 3):
        made = commit(out, tmp_path / f"made-{version}", f"mark {version}")
        assert (made.version, made.manifest.version) == (version, version)
    assert [snapshot.version for snapshot in list_snapshots(out, "shop")] == [1, 2, 3]
    assert find_snapshot(out, "shop", 2).manifest.fingerprint == "mark 2"
    with pytest.raises(NotFoundError, match="has no snapshot 9; it has 3, 000001 to 000003"):
        find_snapshot(out, "shop", 9)


def test_processes_that_commit_at_once_get_a_version_each(out, tmp_path):
    marks = ["a", "b", "c", "d"]
    commit_at_once(out, tmp_path, marks)
    found = list_snapshots(out, "shop")
    assert [snapshot.version for snapshot in found] == [1, 2, 3, 4]
    assert sorted(snapshot.manifest.fingerprint for snapshot in found) == marks
    for snapshot in found:
        snapshot.verify()


def test_processes_that_commit_the_same_run_at_once_all_end_with_a_whole_snapshot_of_it(out, tmp_path):
    commit_at_once(out, tmp_path, ["same"] * 3)
    found = list_snapshots(out, "shop")
    assert 1 <= len(found) <= 3
    for snapshot in found:
        assert snapshot.manifest.fingerprint == "same"
        snapshot.verify()


def test_a_folder_without_a_manifest_is_never_listed_and_its_number_is_not_used_again(out, tmp_path):
    storage = open_storage(out)
    storage.write("shop/snapshots/000001/candidates/part-00000.parquet", b"half")
    assert list_snapshots(out, "shop") == []
    assert next_version(out, "shop") == 2
    assert commit(out, tmp_path / "made").version == 2
    assert [snapshot.version for snapshot in list_snapshots(out, "shop")] == [2]


def test_a_removed_snapshot_is_gone_with_all_its_files(out, tmp_path):
    for version in (1, 2):
        commit(out, tmp_path / f"made-{version}", f"mark {version}")
    remove_snapshot(open_home(out), "shop", 1)
    assert [snapshot.version for snapshot in list_snapshots(out, "shop")] == [2]
    left = [found.name for found in open_storage(out).list_objects("shop/snapshots")]
    assert left
    assert all(name.startswith("shop/snapshots/000002/") for name in left)
    with pytest.raises(DamagedError, match=r"no manifest.json"):
        open_home(out).open("shop", 1)


def test_a_changed_file_is_found_and_named(out, tmp_path):
    found = commit(out, tmp_path / "made")
    name = "shop/snapshots/000001/items/part-00000.parquet"
    data = bytearray(open_storage(out).read(name))
    data[20] ^= 0xFF
    open_storage(out).write(name, bytes(data))
    with pytest.raises(DamagedError, match=r"000001/items/part-00000.parquet was changed after it was written"):
        found.verify()


def test_a_missing_file_is_found_and_named(out, tmp_path):
    found = commit(out, tmp_path / "made")
    open_storage(out).delete("shop/snapshots/000001/candidates/part-00000.parquet")
    with pytest.raises(DamagedError, match=r"000001/candidates/part-00000.parquet is missing"):
        found.verify()


def test_a_truncated_file_is_found_and_named(out, tmp_path):
    found = commit(out, tmp_path / "made")
    name = "shop/snapshots/000001/sketch/items.parquet"
    open_storage(out).write(name, open_storage(out).read(name)[:-7])
    with pytest.raises(DamagedError, match=r"000001/sketch/items.parquet has \d+ bytes where \d+ were written"):
        found.verify()


def test_a_file_that_the_manifest_does_not_list_is_found_and_named(out, tmp_path):
    found = commit(out, tmp_path / "made")
    open_storage(out).write("shop/snapshots/000001/candidates/part-00009.parquet", b"?")
    with pytest.raises(DamagedError, match=r"part-00009.parquet is not listed in the manifest"):
        found.verify()


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"generator": "shop"}'])
def test_a_damaged_manifest_is_named(out, tmp_path, text):
    commit(out, tmp_path / "made")
    open_storage(out).write("shop/snapshots/000001/manifest.json", text)
    with pytest.raises(DamagedError, match=r"000001/manifest.json (cannot be read|does not hold|lacks)"):
        find_snapshot(out, "shop")


def test_small_files_are_written_read_and_described(out, tmp_path):
    commit(out, tmp_path / "made")
    home = open_home(out)
    assert home.exists()
    assert home.read_file("page.html") is None
    assert home.describe_file("page.html") == (0.0, 0)
    assert str(home.write_file("page.html", b"hello")) == join_location(out, "page.html")
    assert home.read_file("page.html") == b"hello"
    modified, size = home.describe_file("page.html")
    assert modified > 1e9
    assert size == 5
    home.check_writable()
    assert {found.name for found in open_storage(out).list_objects() if "probe" in found.name} == set()


def hold_in_a_process(out: str, held: object) -> None:
    with hold_snapshot(find_snapshot(out, "shop", 1)):
        held.set()  # type: ignore[attr-defined]
        time.sleep(600)


def test_a_snapshot_that_is_held_is_not_removed_until_it_is_let_go(out, tmp_path):
    made, home = commit(out, tmp_path / "made"), open_home(out)
    with hold_snapshot(made), hold_snapshot(find_snapshot(out, "shop")):
        assert not remove_snapshot(home, "shop", 1)
    find_snapshot(out, "shop").verify()
    with hold_snapshot(made):
        assert not remove_snapshot(home, "shop", 1)
    assert remove_snapshot(home, "shop", 1)
    assert list_snapshots(out, "shop") == []
    assert [found.name for found in open_storage(out).list_objects("shop/held")] == []


def test_whether_a_snapshot_is_held_can_be_asked(out, tmp_path):
    made, home = commit(out, tmp_path / "made"), open_home(out)
    with hold_snapshot(made):
        assert home.is_held("shop", 1)
    assert not home.is_held("shop", 1)
    assert not home.is_held("shop", 2)
    find_snapshot(out, "shop").verify()


def test_what_a_killed_removal_left_is_listed_until_it_is_swept(out, tmp_path, monkeypatch):
    home = open_home(out)
    for version in (1, 2, 3):
        commit(out, tmp_path / f"made-{version}", f"mark {version}")
    assert home.list_left("shop") == []
    open_storage(out).delete("shop/snapshots/000002/manifest.json")  # killed after this step
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 90_000.0)  # an attempt in a bucket rests for a day
    assert home.list_left("shop") == [2]
    assert home.sweep("shop") == 1
    assert home.list_left("shop") == []
    assert [snapshot.version for snapshot in list_snapshots(out, "shop")] == [1, 3]


def test_a_snapshot_that_was_removed_cannot_be_held(out, tmp_path):
    made = commit(out, tmp_path / "made")
    remove_snapshot(open_home(out), "shop", 1)
    with pytest.raises(NotFoundError, match="was removed a moment ago"), hold_snapshot(made):
        pass
    assert [found.name for found in open_storage(out).list_objects("shop/held")] == []


def test_a_snapshot_whose_removal_was_killed_is_removed_by_the_next_one(out, tmp_path):
    for version in (1, 2):
        commit(out, tmp_path / f"made-{version}", f"mark {version}")
    open_storage(out).delete("shop/snapshots/000001/manifest.json")  # killed after this step
    assert remove_snapshot(open_home(out), "shop", 1)
    assert remove_snapshot(open_home(out), "shop", 1)
    assert all("000001" not in found.name for found in open_storage(out).list_objects("shop"))
    assert [snapshot.version for snapshot in list_snapshots(out, "shop")] == [2]


@pytest.mark.parametrize("seconds", [-3e8, 3e8])
def test_a_clock_that_was_set_lets_nobody_remove_a_held_snapshot(out, tmp_path, monkeypatch, seconds):
    made, now = commit(out, tmp_path / "made"), time.time
    with hold_snapshot(made):
        monkeypatch.setattr(time, "time", lambda: now() + seconds)
        assert not remove_snapshot(open_home(out), "shop", 1)


def test_another_process_holds_a_snapshot_until_it_is_killed(tmp_path):
    out = str(tmp_path / "out")
    commit(out, tmp_path / "made")
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold_in_a_process, args=(out, held))
    process.start()
    try:
        assert held.wait(60)
        assert not remove_snapshot(open_home(out), "shop", 1)
    finally:
        process.kill()
        process.join(60)
    assert remove_snapshot(open_home(out), "shop", 1)


def test_a_holder_in_a_bucket_that_was_killed_counts_for_a_day(s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "cache"))
    commit(s3_url, tmp_path / "made")
    open_storage(s3_url).write("shop/held/000001-0123456789abcdef", b"")
    assert not remove_snapshot(open_home(s3_url), "shop", 1)
    monkeypatch.setattr(bucket_home, "HELD_SECONDS", -1.0)
    assert remove_snapshot(open_home(s3_url), "shop", 1)
    assert [found.name for found in open_storage(s3_url).list_objects("shop")] == []
