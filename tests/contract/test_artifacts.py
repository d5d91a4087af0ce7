"""The contract of artifacts, one suite for a local folder and for object storage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nearcast.errors import DamagedError, NotFoundError, StorageError
from nearcast.files import MANIFEST, file_hash, read_manifest
from nearcast.storage.artifacts import Artifacts, LocalArtifacts, open_artifacts
from nearcast.storage.host_cache import HostCache
from nearcast.storage.open_storage import open_storage

KINDS = ["local", "s3", "seaweedfs", "azurite"]
URLS = {"s3": "s3_url", "seaweedfs": "seaweed_url", "azurite": "azurite_url"}  # fixtures
WORKER = Path(__file__).with_name("artifact_worker.py")


class Place:
    """A root that several hosts open: each has a cache of its own."""

    def __init__(self, location: str, folder: Path) -> None:
        self.location = location
        self._folder = folder
        self._hosts = 0

    def open(self) -> Artifacts:
        """Open as another host does."""
        self._hosts += 1
        return open_artifacts(self.location, HostCache(self._folder / f"host{self._hosts}"))


@pytest.fixture(params=KINDS)
def place(request, tmp_path) -> Place:
    location = str(tmp_path / "root") if request.param == "local" else request.getfixturevalue(URLS[request.param])
    return Place(location, tmp_path)


def write_two(folder: Path) -> dict[str, object]:
    (folder / "part").mkdir()
    (folder / "part" / "rows.bin").write_bytes(b"rows" * 1000)
    (folder / "empty").touch()
    return {"rows": 1000, "words": ["é", 1.5, None]}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def objects(place: Place) -> list[str]:
    return [each.name for each in open_storage(place.location).list_objects()]


def test_an_artifact_is_written_once_and_read_by_every_host(place):
    calls = []

    def write(folder: Path) -> dict[str, object]:
        calls.append(folder)
        assert list(folder.iterdir()) == []
        return write_two(folder)

    first = place.open()
    written = contents(first.ensure("tables/items-1", write))
    assert contents(first.ensure("tables/items-1", write)) == written
    other = place.open()
    assert contents(other.open("tables/items-1")) == written
    assert contents(other.ensure("tables/items-1", write)) == written
    assert len(calls) == 1
    assert first.facts("tables/items-1") == other.facts("tables/items-1") == {"rows": 1000, "words": ["é", 1.5, None]}
    assert set(written) == {"part/rows.bin", "empty", MANIFEST}
    assert read_manifest(other.open("tables/items-1"))["rows"] == 1000


def test_single_files_of_an_artifact_are_listed_and_opened(place, tmp_path):
    written = contents(place.open().ensure("a", write_two))
    other, is_local = place.open(), place.location == str(tmp_path / "root")
    folder = other.open("a", ["part"])
    assert folder.name == "a"
    assert (folder / "part" / "rows.bin").read_bytes() == b"rows" * 1000
    assert read_manifest(folder)["rows"] == 1000
    assert (folder / "empty").exists() == is_local  # it was not downloaded
    assert not (other.open("a", ["missing"]) / "missing").exists()
    files = other.list_files("a")
    assert sorted(files) == ["empty", "part/rows.bin"]
    for name, file in files.items():
        data = open_storage(file.root).read(file.name)
        assert (data, len(data)) == (written[name], file.size)
        assert (file.path is not None) == is_local
    assert contents(other.open("a")) == contents(other.open("a", ["part"])) == written  # all of it is here now
    with pytest.raises(NotFoundError):
        other.list_files("b")


def test_the_manifest_of_every_place_has_the_same_bytes(tmp_path, s3_url):
    made = [
        contents(open_artifacts(root, HostCache(tmp_path / "cache")).ensure("a", write_two))
        for root in (tmp_path / "root", s3_url)
    ]
    assert made[0] == made[1]


def test_an_artifact_that_is_not_there_is_not_found(place):
    artifacts = place.open()
    assert artifacts.facts("missing") is None
    assert artifacts.list_names() == artifacts.list_names("folder") == []
    assert artifacts.sweep() == 0
    artifacts.remove("missing")
    with pytest.raises(NotFoundError, match="is not finished or does not exist; run the step that writes it"):
        artifacts.open("missing")


def test_an_error_of_the_disk_that_names_no_file_gets_the_name_of_the_artifact(tmp_path):
    def fill_the_disk(_folder):
        raise OSError(28, "Error writing bytes to file")  # as Arrow does

    with pytest.raises(OSError, match="Error writing bytes") as raised:
        LocalArtifacts(tmp_path).commit("shop/000001", fill_the_disk)
    assert raised.value.filename == str(tmp_path / "shop" / "000001")
    assert list((tmp_path / "shop").iterdir()) == []


def test_a_commit_returns_the_facts_of_the_winner_and_keeps_nothing_open(place, tmp_path):
    def write(folder: Path) -> dict[str, object]:
        assert place.open().commit("a", write_two)["rows"] == 1000  # another host is faster
        (folder / "own").touch()
        return {"rows": -1}

    artifacts = place.open()
    assert artifacts.commit("a", write) == {"rows": 1000, "words": ["é", 1.5, None]}
    assert artifacts.commit("a", write) == artifacts.facts("a")
    for host in tmp_path.glob("host*"):
        HostCache(host, limit_bytes=1).make_room(0)
        assert list((host / "entries").iterdir()) == []
    assert set(contents(place.open().open("a"))) == {"part/rows.bin", "empty", MANIFEST}


def test_artifacts_are_listed_by_folder_and_removed(place):
    artifacts = place.open()
    for name in ("join/000002", "join/000001", "table/000001", "items"):
        artifacts.ensure(name, write_two)
    assert artifacts.list_names() == ["items", "join/000001", "join/000002", "table/000001"]
    assert artifacts.list_names("join") == ["join/000001", "join/000002"]
    artifacts.remove("join/000001")
    assert artifacts.list_names("join") == ["join/000002"]
    artifacts.remove("join")
    assert place.open().list_names() == ["items", "table/000001"]
    assert not [name for name in objects(place) if name.startswith("join/")]


def test_an_artifact_that_was_removed_can_be_written_again(place):
    artifacts, other = place.open(), place.open()
    artifacts.ensure("a", write_two)
    other.open("a")
    artifacts.remove("a")

    def write(folder: Path) -> dict[str, object]:
        (folder / "new").write_bytes(b"new")
        return {"version": 2}

    artifacts.ensure("a", write)
    assert other.facts("a") == {"version": 2}
    assert set(contents(other.open("a"))) == {"new", MANIFEST}


def test_an_artifact_without_files_is_one(place):
    place.open().ensure("facts", lambda folder: {"n": 0})
    other = place.open()
    assert other.facts("facts") == {"n": 0}
    assert set(contents(other.open("facts"))) == {MANIFEST}


def test_a_write_that_fails_leaves_nothing(place):
    artifacts = place.open()

    def fail(folder: Path) -> dict[str, object]:
        (folder / "half").write_bytes(b"half")
        raise ArithmeticError("the task fails")

    with pytest.raises(ArithmeticError):
        artifacts.ensure("a/b", fail)
    assert objects(place) == []
    assert artifacts.facts("a/b") is None
    artifacts.ensure("a/b", write_two)


def test_of_many_attempts_at_once_one_wins_and_the_others_leave_nothing(place):
    barrier = threading.Barrier(6)

    def attempt(number: int) -> list[bytes]:
        artifacts = place.open()

        def write(folder: Path) -> dict[str, object]:
            (folder / "who").write_bytes(str(number).encode())
            barrier.wait(300)  # all have looked and found nothing
            return {"who": number}

        read = []
        for round_ in range(5):
            read.append((artifacts.ensure(f"race/{round_}", write) / "who").read_bytes())
            barrier.wait(300)
        return read

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(attempt, range(6)))
    other = place.open()
    for round_, read in enumerate(zip(*results, strict=True)):
        assert set(read) == {str(other.facts(f"race/{round_}")["who"]).encode()}
    per_artifact = 2 if place.location.startswith("/") else 3  # who, manifest.json, done.json
    assert len(objects(place)) == 5 * per_artifact


def test_a_process_killed_before_its_commit_leaves_what_is_swept(place, tmp_path):
    command = [sys.executable, WORKER, place.location, str(tmp_path / "killed"), "tables/a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdout.readline() == "written\n"
        finally:
            worker.kill()
    artifacts = place.open()
    assert artifacts.facts("tables/a") is None
    assert artifacts.list_names() == []
    artifacts.ensure("tables/a", write_two)
    left = [name for name in objects(place) if "rows.bin" in name]
    assert artifacts.sweep(older_than=3600) == 0
    assert [name for name in objects(place) if "rows.bin" in name] == left
    time.sleep(1.1)  # moto's clock has whole seconds
    artifacts.sweep(older_than=0.05)
    assert len([name for name in objects(place) if "rows.bin" in name]) == 1
    assert contents(place.open().open("tables/a"))["part/rows.bin"] == b"rows" * 1000


def test_a_sweep_keeps_the_files_of_winners_and_of_other_folders(place):
    artifacts = place.open()
    artifacts.ensure("join/1", write_two)
    artifacts.ensure("table/1", write_two)
    before = objects(place)
    time.sleep(1.1)
    assert artifacts.sweep(older_than=0.0) == 0
    assert objects(place) == before


def test_a_damaged_artifact_is_told_by_its_files(place):
    artifacts = place.open()
    folder = artifacts.ensure("a", write_two)
    if isinstance(artifacts, LocalArtifacts):
        (folder / MANIFEST).write_text("{")
    else:
        storage = open_storage(place.location)
        rows = next(name for name in objects(place) if name.endswith("rows.bin"))
        storage.write(rows, b"ROWS" * 1000)
    with pytest.raises(DamagedError, match="a"):
        place.open().open("a")


def test_an_unfinished_folder_of_an_earlier_release_is_replaced(tmp_path):
    artifacts = LocalArtifacts(tmp_path)
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "half").write_bytes(b"half")
    assert set(contents(artifacts.ensure("items", write_two))) == {"part/rows.bin", "empty", MANIFEST}
    (tmp_path / "empty").mkdir()
    artifacts.ensure("empty", write_two)
    assert artifacts.list_names() == ["empty", "items"]


@pytest.mark.parametrize("step", ["rename", "finish"])
def test_a_local_commit_killed_at_any_step_is_repeated(tmp_path, step):
    artifacts = LocalArtifacts(tmp_path)
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "half").write_bytes(b"half")
    code = f"""
import os, signal, sys
from pathlib import Path
from nearcast.storage import artifacts
calls = []
def rename(source, target, rename=os.rename):
    calls.append(target)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
def finish(folder, facts):
    os.kill(os.getpid(), signal.SIGKILL)
if {step!r} == "rename":
    os.rename = rename  # the unfinished folder is away, the attempt not yet in its place
else:
    artifacts.finish = finish
artifacts.LocalArtifacts(Path(sys.argv[1])).ensure("items", lambda folder: {{"n": (folder / "x").write_bytes(b"")}})
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    assert artifacts.list_names() == []
    assert set(contents(artifacts.ensure("items", write_two))) == {"part/rows.bin", "empty", MANIFEST}
    time.sleep(0.02)
    assert artifacts.sweep(older_than=0.01) >= 1
    assert [path.name for path in tmp_path.iterdir()] == ["items"]


def test_a_full_disk_leaves_no_half_of_an_artifact(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here (it takes root): {made.stderr.strip()}")
    try:
        artifacts, storage = LocalArtifacts(disk), open_storage(disk / "objects")

        def write(folder: Path) -> dict[str, object]:
            (folder / "rows").write_bytes(bytes(1 << 20))
            return {}

        with pytest.raises(OSError, match="No space left"):
            artifacts.ensure("a", write)
        for put in (storage.write, storage.create):
            with pytest.raises(StorageError, match="No space left on device; free some disk, and run again"):
                put("object", bytes(1 << 20))
        assert artifacts.list_names() == list(storage.list_objects()) == []
        assert not [path for path in disk.rglob("*") if path.is_file()]
        artifacts.ensure("a", write_two)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_the_folder_of_a_living_attempt_is_not_swept(tmp_path):
    artifacts = LocalArtifacts(tmp_path)

    def write(folder: Path) -> dict[str, object]:
        old = time.time() - 1e6
        os.utime(folder, (old, old))
        assert LocalArtifacts(tmp_path).sweep(older_than=10) == 0
        (folder / "file").touch()
        return {}

    assert set(contents(artifacts.ensure("a", write))) == {"file", MANIFEST}


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest", "all"])
def test_a_damaged_copy_in_the_cache_is_downloaded_again(tmp_path, s3_url, damage):
    cache = tmp_path / "cache"
    folder = open_artifacts(s3_url, HostCache(cache)).ensure("a", write_two)
    whole = contents(folder)
    if damage == "truncated":
        os.truncate(folder / "part" / "rows.bin", 10)
    elif damage == "all":
        shutil.rmtree(folder)
    else:
        (folder / ("empty" if damage == "missing" else MANIFEST)).unlink()
    assert contents(open_artifacts(s3_url, HostCache(cache)).open("a")) == whole


def test_a_file_that_is_gone_from_the_bucket_is_damage(tmp_path, s3_url):
    open_artifacts(s3_url, HostCache(tmp_path / "one")).ensure("a", write_two)
    storage = open_storage(s3_url)
    storage.delete(next(each.name for each in storage.list_objects() if each.name.endswith("empty")))
    with pytest.raises(DamagedError, match=r"done.json names it; remove .*/a and run again"):
        open_artifacts(s3_url, HostCache(tmp_path / "two")).open("a")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"attempt": "../..", "facts": {}, "files": {}}',
        '{"attempt": "x", "facts": {}, "files": {"../y": {"bytes": 1, "blake2b": ""}}}',
    ],
)
def test_a_done_file_that_makes_no_sense_is_damage(tmp_path, s3_url, text):
    open_storage(s3_url).write("a/done.json", text.encode())
    artifacts = open_artifacts(s3_url, HostCache(tmp_path))
    for use in (lambda: artifacts.facts("a"), lambda: artifacts.open("a"), lambda: artifacts.ensure("a", write_two)):
        with pytest.raises(DamagedError, match=r"done\.json cannot be read"):
            use()


def test_done_lists_every_file_with_size_and_hash(tmp_path, s3_url):
    folder = open_artifacts(s3_url, HostCache(tmp_path)).ensure("a", write_two)
    done = json.loads(open_storage(s3_url).read("a/done.json"))
    assert {name: (facts["bytes"], facts["blake2b"]) for name, facts in done["files"].items()} == {
        name: (len(data), file_hash(folder / name)) for name, data in contents(folder).items()
    }
