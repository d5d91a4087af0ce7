"""The cache of a host: filled once, shared by processes, evicted where nobody looks, repaired where damaged."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nearcast.errors import AccessError, BudgetError, SpecError
from nearcast.storage import host_cache
from nearcast.storage.host_cache import CacheSession, HostCache

SIZE = 10_000

PROCESS = """
import sys, time
from pathlib import Path
from nearcast.storage.host_cache import HostCache

root, key, log, pause = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])

def fill(folder):
    with log.open("a") as file:
        file.write(f"filled by {id(folder)}\\n")
    (folder / "data").write_bytes(bytes(10_000))
    print("filling", flush=True)
    time.sleep(pause)

HostCache(root).open_entry(key, lambda folder: (folder / "data").is_file(), fill, 10_000)
print("open", flush=True)
sys.stdin.readline()
"""


def is_whole(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return (folder / "data").stat().st_size == SIZE
    return False


def fill(folder: Path) -> None:
    (folder / "data").write_bytes(bytes(SIZE))


def open_entry(cache: HostCache, key: str) -> Path:
    return cache.open_entry(key, is_whole, fill, SIZE)


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "entries").iterdir())


@contextlib.contextmanager
def other_process(root: Path, key: str, log: Path, pause: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROCESS, str(root), key, str(log), str(pause)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_least_recently_used_entries_are_evicted(tmp_path):
    cache = HostCache(tmp_path, limit_bytes=3 * SIZE)
    for key in ("a", "b", "c"):
        with cache.session():
            open_entry(cache, key)
        time.sleep(0.02)
    with cache.session():
        open_entry(cache, "a")
    time.sleep(0.02)
    open_entry(cache, "d")
    assert entries(tmp_path) == ["a", "c", "d"]
    assert sorted(path.stem for path in (tmp_path / "locks").glob("*.use")) == ["a", "c", "d"]


def test_what_this_process_has_open_is_kept_until_its_session_ends(tmp_path):
    cache = HostCache(tmp_path, limit_bytes=2 * SIZE)
    kept = open_entry(cache, "kept")
    with cache.session():
        for key in ("a", "b"):
            assert is_whole(open_entry(cache, key))
        assert entries(tmp_path) == ["a", "b", "kept"]  # over the limit rather than broken
    open_entry(cache, "c")
    assert is_whole(kept)
    assert entries(tmp_path) == ["c", "kept"]


def entries_in_use(folder):
    return [path for path in host_cache._in_use if path.is_relative_to(folder)]


def test_a_session_is_entered_again_and_holds_the_latest_entries_only(tmp_path):
    cache = HostCache(tmp_path)
    kept, task = CacheSession(), CacheSession(most=2)
    for number in range(20):
        with task:
            open_entry(cache, f"task{number}")
            with kept:
                open_entry(cache, "shared")
            open_entry(cache, f"task{number}")
        assert len(entries_in_use(tmp_path)) <= 3
    HostCache(tmp_path, limit_bytes=1).make_room(0)
    assert entries(tmp_path) == ["shared", "task18", "task19"]
    task.close()
    HostCache(tmp_path, limit_bytes=1).make_room(0)
    assert entries(tmp_path) == ["shared"]
    kept.close()
    assert entries_in_use(tmp_path) == []


def test_an_entry_opened_outside_a_session_outlives_it_and_the_cache_object(tmp_path):
    with HostCache(tmp_path).session():
        open_entry(HostCache(tmp_path), "in")
        with HostCache(tmp_path).session():
            open_entry(HostCache(tmp_path), "in")
            with ThreadPoolExecutor(1) as pool:
                pool.submit(open_entry, HostCache(tmp_path), "out").result()
        HostCache(tmp_path, limit_bytes=1).make_room(0)
        assert entries(tmp_path) == ["in", "out"]
    HostCache(tmp_path, limit_bytes=1).make_room(0)
    assert entries(tmp_path) == ["out"]
    HostCache(tmp_path).release({"out", "never opened"})
    HostCache(tmp_path, limit_bytes=1).make_room(0)
    assert entries(tmp_path) == []


def test_what_another_process_has_open_is_kept_until_it_dies(tmp_path):
    with other_process(tmp_path, "theirs", tmp_path / "log") as process:
        assert [process.stdout.readline() for _ in range(2)] == ["filling\n", "open\n"]
        cache = HostCache(tmp_path, limit_bytes=SIZE)
        with cache.session():
            open_entry(cache, "mine")
        assert entries(tmp_path) == ["mine", "theirs"]
        process.kill()
        process.wait()
    open_entry(cache, "other")
    assert entries(tmp_path) == ["other"]


def test_of_several_processes_one_fills_an_entry(tmp_path):
    log = tmp_path / "log"
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(other_process(tmp_path, "a", log, 0.5)) for _ in range(4)]
        for process in processes:
            assert "open\n" in iter(process.stdout.readline, "")
            process.stdin.write("end\n")
            process.stdin.flush()
    assert len(log.read_text().splitlines()) == 1


def test_an_entry_whose_filler_was_killed_is_filled_by_the_next(tmp_path):
    log = tmp_path / "log"
    with other_process(tmp_path, "a", log, 60) as process:
        assert process.stdout.readline() == "filling\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len(list((tmp_path / "scratch").iterdir())) == 2  # its folder and its lock
    assert is_whole(open_entry(HostCache(tmp_path), "a"))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_threads_of_a_process_share_entries(tmp_path):
    cache, filled = HostCache(tmp_path, limit_bytes=3 * SIZE), []

    def fill_slowly(folder: Path) -> None:
        filled.append(threading.get_ident())
        time.sleep(0.05)
        fill(folder)

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda i: cache.open_entry(f"key{i % 2}", is_whole, fill_slowly, SIZE), range(16)))
    assert all(is_whole(folder) for folder in folders)
    assert len(filled) == 2


def test_a_fill_that_fails_leaves_nothing(tmp_path):
    cache = HostCache(tmp_path)

    def fail(folder: Path) -> None:
        fill(folder)
        raise ArithmeticError("broken off")

    with pytest.raises(ArithmeticError):
        cache.open_entry("a", is_whole, fail, SIZE)
    assert entries(tmp_path) == list((tmp_path / "scratch").iterdir()) == []
    assert is_whole(open_entry(cache, "a"))


def test_a_damaged_entry_that_others_have_open_is_replaced(tmp_path):
    one, two = HostCache(tmp_path), HostCache(tmp_path)
    folder = open_entry(one, "a")
    with (folder / "data").open("rb") as opened:
        os.truncate(folder / "data", 5)
        assert is_whole(open_entry(two, "a"))
        assert len(opened.read()) == 5  # what was open stays open
    assert is_whole(open_entry(one, "a"))


def test_eight_processes_with_room_for_two_entries_never_lose_one_that_they_use(tmp_path):
    code = """
import random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_host_cache import HostCache, SIZE, is_whole, open_entry
draws = random.Random(int(sys.argv[2]))
cache = HostCache(Path(sys.argv[1]), limit_bytes=2 * SIZE)
for _ in range(60):
    with cache.session():
        folder = open_entry(cache, f"key{draws.randrange(5)}")
        for _ in range(3):
            assert is_whole(folder)
"""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen([*command, str(seed), here], stderr=subprocess.PIPE, text=True) for seed in range(8)]
    for process in running:
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == 0
    open_entry(HostCache(tmp_path, limit_bytes=2 * SIZE), "last")
    assert len(entries(tmp_path)) <= 2
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_full_disk_names_the_folder_and_the_way_out(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here (it takes root): {made.stderr.strip()}")
    try:
        cache = HostCache(disk)
        with pytest.raises(BudgetError, match=r"the disk of the cache .* is full; free some, or set NEARCAST_CACHE"):
            cache.open_entry(
                "a", is_whole, lambda folder: (folder / "data").write_bytes(bytes(1 << 20)) and None, 1 << 20
            )
        with cache.session():
            assert is_whole(open_entry(cache, "a"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_the_environment_gives_place_and_size(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("NEARCAST_CACHE", raising=False)
    assert HostCache().root == tmp_path / "xdg" / "nearcast"
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "own"))
    assert HostCache().root == tmp_path / "own"
    monkeypatch.setenv("NEARCAST_CACHE_BYTES", str(SIZE))
    cache = HostCache()
    for key in ("a", "b"):
        with cache.session():
            open_entry(cache, key)
    assert entries(tmp_path / "own") == ["b"]
    for text in ("0", "-1", "lots", "1.5"):
        monkeypatch.setenv("NEARCAST_CACHE_BYTES", text)
        with pytest.raises(SpecError, match=f"NEARCAST_CACHE_BYTES must be a positive number of bytes, got {text}"):
            HostCache()


def no_folders_here(*_args: object, **_options: object) -> None:
    """`mkdir` of a read-only file system, which root cannot write, either."""
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("use", [HostCache.check_writable, lambda cache: open_entry(cache, "a")])
def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path, monkeypatch, use):
    (tmp_path / "file").write_bytes(b"")
    unwritable = {
        tmp_path / "file": "Not a directory",
        Path("/proc/cache"): "No such file",
        tmp_path / "new": "Read-only",
    }
    for root, why in unwritable.items():
        if root.name == "new":
            monkeypatch.setattr(Path, "mkdir", no_folders_here)
        with pytest.raises(
            AccessError, match=f"cache {root} cannot be written .{why}.*; set NEARCAST_CACHE to a local"
        ):
            use(HostCache(root))


def test_a_full_disk_is_no_matter_of_rights(tmp_path, monkeypatch):
    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(BudgetError, match=r"the disk of the cache .* is full"):
        HostCache(tmp_path / "new").check_writable()
