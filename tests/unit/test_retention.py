"""Which snapshots stay: the newest, and all that are served, pinned or read, whatever is killed and whatever lies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import published
from nearcast.api.cleaning import clean
from nearcast.api.retaining import measure_disk, retain_snapshots
from nearcast.errors import BusyError, NotFoundError
from nearcast.files import hold_lock
from nearcast.history.event_log import append
from nearcast.join.listener import Listener
from nearcast.publishing.targets import PublishTarget
from nearcast.settings.publish_tables import PublishSpec
from nearcast.stores import open_store
from nearcast.stores.base import PointerEvent, Store
from nearcast.stores.canary_share import Canary
from nearcast.table import snapshot_home
from nearcast.table.snapshot import commit_snapshot, find_snapshot, hold_snapshot, list_snapshots
from nearcast.table.snapshot_pins import list_pins, pin_snapshot, unpin_snapshot
from snapshot_folders import snapshot_facts, write_snapshot_folder

LISTS = {"q1": [("i1", 0.5)]}


class Notes(Listener):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def make(out: Path, count: int) -> None:
    for number in range(count):
        folder = write_snapshot_folder(out.parent / f"made-{number}")
        commit_snapshot(out, "shop", folder, snapshot_facts(f"mark {number}"))


def versions(out: Path) -> list[int]:
    return [snapshot.version for snapshot in list_snapshots(out, "shop")]


def target(out: Path, newest: int | str = 2, **publish: object) -> PublishTarget:
    return PublishTarget("shop", out, PublishSpec(keep_snapshots=newest, **publish))


def retain(out: Path, keep: int | str = 2) -> tuple[list[int], list[str]]:
    notes = Notes()
    removed = retain_snapshots(target(out, keep), notes)
    return list(removed), notes.texts


def publish(out: Path, *numbers: int, store: str = "store") -> Store:
    opened = open_store(f"lmdb:{out / store}")
    for number in numbers:
        published.publish(opened, "shop", number, LISTS)
    return opened


@pytest.fixture
def out(tmp_path: Path) -> Path:
    make(tmp_path / "out", 6)
    return tmp_path / "out"


def test_the_newest_snapshots_stay_and_a_note_names_the_others(out: Path) -> None:
    removed, notes = retain(out)
    assert removed == [1, 2, 3, 4]
    assert notes == ["old snapshots are removed: 000001, 000002, 000003, 000004 (publish.keep_snapshots is 2)"]
    assert versions(out) == [5, 6]
    assert retain(out) == ([], [])


def test_ten_snapshots_stay_unless_the_spec_says_otherwise_and_all_if_it_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, 12)
    for keep in ("all", None):  # None: a manifest of an earlier release
        assert retain(out, keep)[0] == []  # type: ignore[arg-type]
    retain_snapshots(PublishTarget("shop", out), Listener())
    assert versions(out) == list(range(3, 13))


def test_versions_that_the_store_holds_stay_with_the_target_of_a_rollback(out: Path) -> None:
    publish(out, 1, 3)
    assert retain(out)[0] == [2, 4]
    assert versions(out) == [1, 3, 5, 6]


def test_a_canary_stays(out: Path) -> None:
    store = publish(out, 1)
    published.load(store, "shop", 2, LISTS)
    with store.lock("shop") as lock:
        pointer = store.pointer("shop")
        assert pointer is not None
        event = PointerEvent("canary_started", 2, published.CREATED)
        store.point("shop", pointer.with_canary(event, Canary(2, 0.1, "canary", published.CREATED)), lock)
    retain(out, 1)
    assert versions(out) == [1, 2, 6]


def test_a_pinned_snapshot_stays_until_it_is_unpinned(out: Path) -> None:
    pin_snapshot(out, "shop", 3)
    pin_snapshot(out, "shop", 3)
    assert list_pins(out, "shop") == {3}
    retain(out)
    assert versions(out) == [3, 5, 6]
    unpin_snapshot(out, "shop", 3)
    with pytest.raises(NotFoundError, match="shop 000003 is not pinned; pinned snapshots: none"):
        unpin_snapshot(out, "shop", 3)
    assert retain(out)[0] == [3]
    with pytest.raises(NotFoundError, match="shop has no snapshot 3"):
        pin_snapshot(out, "shop", 3)


def test_a_snapshot_that_somebody_reads_stays_until_the_next_time(out: Path) -> None:
    with hold_snapshot(find_snapshot(out, "shop", 1)):
        removed, notes = retain(out)
    assert removed == [2, 3, 4]
    assert notes[0] == "snapshot 000001 is kept, since another process reads it"
    assert retain(out)[0] == [1]


def test_what_other_stores_hold_stays_as_far_as_the_history_knows(out: Path) -> None:
    elsewhere = {"store": "redis://other:6379/0"}
    for version, before in ((1, None), (2, 1)):
        append(out, "shop", "publish", version, {**elsewhere, "before": before})
    append(out, "shop", "publish", 3, {"outcome": "audit_failed"})
    append(out, "shop", "monitor", None, {"store": "redis://third:6379/0", "served": {"version": 4}})
    assert retain(out, 1)[0] == [3, 5]
    assert versions(out) == [1, 2, 4, 6]


def test_of_another_store_only_the_last_versions_stay(out: Path) -> None:
    for version in (1, 2, 3, 4):
        append(out, "shop", "publish", version, {"store": "redis://other:6379/0"})
    retain_snapshots(target(out, 1, keep=2), Listener())
    assert versions(out) == [3, 4, 6]


@pytest.mark.parametrize("store", ["redis://127.0.0.1:1/0", "nosuch://place"])
def test_nothing_is_removed_while_the_store_cannot_be_asked(out: Path, store: str) -> None:
    notes = Notes()
    assert retain_snapshots(target(out, store=store), notes) == ()
    assert notes.texts[0].startswith("old snapshots are kept: ")
    assert len(versions(out)) == 6


def test_a_store_that_cannot_be_asked_is_not_asked_before_there_is_something_to_remove(out: Path) -> None:
    notes = Notes()
    assert retain_snapshots(target(out, 6, store="nosuch://place"), notes) == ()
    assert notes.texts == []


def test_nothing_is_removed_while_the_history_is_damaged_or_the_pointer_is(out: Path) -> None:
    publish(out, 1)
    pointer = out / "store" / "shop" / "current"
    whole = pointer.read_bytes()
    pointer.write_bytes(b"?")
    assert "old snapshots are kept" in retain(out)[1][0]
    pointer.write_bytes(whole)
    (out / "history.sqlite").write_bytes(b"no database" * 100)
    assert "old snapshots are kept" in retain(out)[1][0]
    assert len(versions(out)) == 6


def test_nothing_is_removed_while_somebody_publishes(out: Path) -> None:
    store = publish(out, 1)
    with store.lock("shop"):
        removed, notes = retain(out)
    assert removed == []
    assert "is held by" in notes[0]


@pytest.mark.parametrize("remove", [retain, lambda out: clean(target(out))])
def test_a_publish_need_not_wait_while_files_are_deleted(
    out: Path, monkeypatch: pytest.MonkeyPatch, remove: Callable[[Path], object]
) -> None:
    store, real, deleted = publish(out, 1), snapshot_home._remove_folder, []

    def delete(folder: Path) -> None:
        with store.lock("shop"):
            real(folder)
        deleted.append(folder.name)

    monkeypatch.setattr(snapshot_home, "_remove_folder", delete)
    remove(out)
    assert deleted == ["000002", "000003", "000004"]


def test_a_run_of_retention_makes_no_generator_in_the_store(out: Path) -> None:
    retain(out)
    assert not (out / "store").exists()


@pytest.mark.parametrize("seconds", [-3e8, 3e8])
def test_a_clock_that_was_set_changes_nothing(out: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    publish(out, 2)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    with hold_snapshot(find_snapshot(out, "shop", 1)):
        assert retain(out)[0] == [3, 4]


def remove_and_die(out: Path, steps: int) -> None:
    """Remove old snapshots, and die before the removal of this number."""
    left = iter(range(steps))

    def count(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **options: Any) -> None:
            if next(left, None) is None:
                os._exit(9)
            real(*args, **options)

        return call

    os.unlink, os.rmdir, Path.unlink = count(os.unlink), count(os.rmdir), count(Path.unlink)  # type: ignore[assignment]
    retain_snapshots(target(out), Listener())
    os._exit(0)


def test_a_removal_that_is_killed_at_any_step_leaves_whole_snapshots_and_is_finished_by_the_next(out: Path) -> None:
    publish(out, 2)
    for steps in range(1, 60):
        child = os.fork()
        if child == 0:
            remove_and_die(out, steps)
        _, status = os.waitpid(child, 0)
        for snapshot in list_snapshots(out, "shop"):
            snapshot.verify()
        assert {2, 5, 6} <= set(versions(out))
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert steps > 3
    assert versions(out) == [2, 5, 6]
    assert sorted(path.name for path in (out / "shop" / "snapshots").iterdir()) == ["000002", "000005", "000006"]


# nearcast clean


def fill_work(out: Path) -> Path:
    """Unfinished work, artifacts of an unfinished run, and files that a kept snapshot shares."""
    home = out / "shop"
    for path in (home / "work" / "plan.json", home / "artifacts" / "items-old" / "rows.npy"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 5000)
    os.link(home / "snapshots" / "000006" / "items" / "part-00000.parquet", home / "work" / "shared.parquet")
    (home / "artifacts" / "truth").mkdir()
    return home


def count_bytes(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]  # it holds a process id
    found = {path.stat().st_ino: path.stat().st_size for path in files}
    return sum(found.values())


def test_a_dry_run_lists_what_the_removal_removes_and_the_bytes_that_it_frees(out: Path) -> None:
    home = fill_work(out)
    publish(out, 1)
    pin_snapshot(out, "shop", 2)
    everything = sorted(home.rglob("*"))
    planned = clean(target(out), dry_run=True)
    assert sorted(path for path in home.rglob("*") if path.name != ".lock") == everything
    assert [Path(each.location).relative_to(home).as_posix() for each in planned] == [
        "work",
        "artifacts/items-old",
        "snapshots/000003",
        "snapshots/000004",
    ]
    before = count_bytes(home)
    assert clean(target(out)) == planned
    assert before - count_bytes(home) == sum(each.bytes for each in planned)
    assert versions(out) == [1, 2, 5, 6]
    assert (home / "artifacts" / "truth").is_dir()
    find_snapshot(out, "shop").verify()
    assert clean(target(out)) == []


def test_a_dry_run_does_not_list_what_somebody_reads(out: Path) -> None:
    notes = Notes()
    with hold_snapshot(find_snapshot(out, "shop", 1)):
        planned = clean(target(out), dry_run=True, listener=notes)
        assert [Path(each.location).name for each in planned] == ["000002", "000003", "000004"]
        assert notes.texts == ["snapshot 000001 is kept, since another process reads it"]
        assert clean(target(out)) == planned
    assert versions(out) == [1, 5, 6]


def test_what_a_killed_removal_left_is_listed_and_removed(out: Path) -> None:
    folder = out / "shop" / "snapshots" / "000003"
    (folder / "manifest.json").unlink()  # killed after this step
    left = count_bytes(folder)
    planned = clean(target(out, "all"), dry_run=True)
    assert [(Path(each.location).name, each.kind, each.bytes) for each in planned] == [
        ("000003", "rest of a snapshot", left)
    ]
    assert folder.is_dir()
    assert clean(target(out, "all")) == planned
    assert not folder.exists()
    assert clean(target(out, "all")) == []


def test_removals_at_once_leave_whole_snapshots_and_raise_nothing(out: Path) -> None:
    publish(out, 2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: clean(target(out)), range(4)))
    clean(target(out))
    assert versions(out) == [2, 5, 6]
    for snapshot in list_snapshots(out, "shop"):
        snapshot.verify()


def test_work_and_artifacts_stay_while_a_run_holds_the_generator(out: Path) -> None:
    fill_work(out)
    with hold_lock(out / "shop" / ".lock", "generator 'shop'"), pytest.raises(BusyError, match="is held by process"):
        clean(target(out), dry_run=True)
    assert (out / "shop" / "work").is_dir()


def test_artifacts_stay_while_the_newest_manifest_cannot_be_read(out: Path) -> None:
    fill_work(out)
    (out / "shop" / "snapshots" / "000006" / "manifest.json").write_text("{}")
    assert [each.kind for each in clean(target(out, "all"))] == ["unfinished work"]


def test_disk_use_counts_a_file_with_several_names_once(out: Path) -> None:
    fill_work(out)
    use = measure_disk(find_snapshot(out, "shop"))
    assert (use.snapshots, use.keep) == (6, 10)
    assert use.bytes == count_bytes(out / "shop")


def test_disk_use_is_by_the_settings_of_the_spec_and_reads_no_other_manifest(out: Path) -> None:
    newest = find_snapshot(out, "shop")
    (out / "shop" / "snapshots" / "000002" / "manifest.json").write_text("{")
    use = measure_disk(newest, PublishSpec(keep_snapshots=4))
    assert (use.snapshots, use.keep) == (6, 4)
