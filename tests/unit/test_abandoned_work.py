"""Unfinished work is removed where nobody works, and nowhere else, whatever the clocks of the hosts say."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from nearcast.api.cleaning import clean, find_clean_target
from nearcast.errors import BusyError, StorageError
from nearcast.files import hold_lock
from nearcast.join import abandoned_work
from nearcast.join.abandoned_work import CLOSED, remove_abandoned, sign_of_life
from nearcast.storage.artifacts import open_artifacts
from nearcast.storage.base import Storage
from nearcast.storage.local_storage import LocalStorage
from nearcast.storage.open_storage import open_storage
from s3_server import s3_server, s3_url

__all__ = ["s3_server", "s3_url"]

WORKER = """
import sys, time
import nearcast.join.task_claims as claims
from nearcast.join import abandoned_work
from nearcast.join.abandoned_work import sign_of_life
claims.time.time = lambda: 0.0  # the clock of this host is wrong
with sign_of_life(sys.argv[1], stale_seconds=0.2):
    print("works", flush=True)
    time.sleep(600)
"""


def clean_generator(out: str | Path, **options: float) -> list[str]:
    return [each.location for each in clean(find_clean_target("shop", out), **options)]


@contextlib.contextmanager
def waiting_for_signs(monkeypatch: pytest.MonkeyPatch, work: str) -> Iterator[None]:
    """Let whoever removes work wait until a sign of life in this work has changed, however late it comes."""

    def list_signs() -> list[str]:
        return [each.etag for each in open_storage(work).list_objects("claims/workers")]

    def wait(_seconds: float) -> None:
        before, deadline = list_signs(), time.monotonic() + 120
        while list_signs() == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with monkeypatch.context() as patched:
        patched.setattr(abandoned_work, "time", SimpleNamespace(sleep=wait))
        yield


def write_work(work: Path) -> None:
    open_artifacts(work).commit("join/000001", lambda folder: (folder / "lists").write_bytes(b"lists") and {})


def test_work_of_another_host_is_removed_when_its_process_is_killed_and_not_before(tmp_path, monkeypatch):
    works = [tmp_path / name for name in ("running", "killed long ago")]
    for work in works:
        write_work(work)
    command = [sys.executable, "-c", WORKER, str(works[0])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "works\n"
            with waiting_for_signs(monkeypatch, str(works[0])):
                assert remove_abandoned([str(work) for work in works]) == [str(works[1])]
            assert open_artifacts(works[0]).list_names() == ["join/000001"]
        finally:
            process.kill()
    assert remove_abandoned([str(work) for work in works], 0.3) == [str(works[0])]
    assert [list(LocalStorage(work).list_objects()) for work in works] == [[], []]


def begin(work: Path) -> None:
    with sign_of_life(str(work)):
        pass


def test_who_begins_while_work_is_removed_is_refused_and_may_begin_afterwards(tmp_path):
    write_work(tmp_path)
    LocalStorage(tmp_path).write(CLOSED, b"of a process that was killed")
    with pytest.raises(StorageError, match=r"is being removed by `nearcast clean`; when it has ended, run again"):
        begin(tmp_path)
    assert remove_abandoned([str(tmp_path)], 0.0) == [str(tmp_path)]
    begin(tmp_path)


@pytest.mark.parametrize(("look", "begins"), [(2, True), (3, False)])
def test_of_one_who_begins_and_one_who_removes_at_once_only_one_goes_on(tmp_path, monkeypatch, look, begins):
    """The other one begins before the second look, or after `closed.json` is written and before the third."""
    write_work(tmp_path)
    looks, began = [], []
    plain = abandoned_work._look
    with contextlib.ExitStack() as stack:

        def look_later(storage: Storage) -> dict[str, str]:
            looks.append(storage)
            if len(looks) == look:
                with contextlib.suppress(StorageError):
                    stack.enter_context(sign_of_life(str(tmp_path)))
                    began.append(storage)
            return plain(storage)

        monkeypatch.setattr(abandoned_work, "_look", look_later)
        assert remove_abandoned([str(tmp_path)], 0.0) == ([] if begins else [str(tmp_path)])
        assert bool(began) == begins
        assert open_artifacts(tmp_path).list_names() == (["join/000001"] if begins else [])
        assert LocalStorage(tmp_path).stat(CLOSED) is None


def test_unfinished_work_of_a_generator_is_removed_on_this_host_and_in_its_bucket(tmp_path, s3_url, monkeypatch):
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path))
    work = f"{s3_url}/out/shop/work"
    for plan in ("plan-1", "plan-2"):
        open_artifacts(f"{work}/{plan}").commit("join/000001", lambda _: {})
    open_storage(s3_url).write("out/shop/snapshots/000001/manifest.json", b"{}")
    alive = f"{work}/plan-2"
    with sign_of_life(alive, stale_seconds=0.2), waiting_for_signs(monkeypatch, alive):
        removed = clean_generator(f"{s3_url}/out", wait_seconds=2.0)
    assert removed == [f"{work}/plan-1"]
    names = [each.name for each in open_storage(f"{s3_url}/out/shop").list_objects()]
    assert [name for name in names if "plan-2" not in name] == ["snapshots/000001/manifest.json"]


def test_unfinished_work_of_a_local_generator_is_removed_unless_a_run_holds_it(tmp_path):
    write_work(tmp_path / "shop" / "work")
    with hold_lock(tmp_path / "shop" / ".lock", "generator 'shop'"), pytest.raises(BusyError):
        clean_generator(tmp_path)
    assert clean_generator(tmp_path) == [str(tmp_path / "shop" / "work")]
    assert clean_generator(tmp_path) == []
