"""Objects in a local folder: file systems without hard links or locks of folders, kills, files in the way."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nearcast.errors import AccessError
from nearcast.storage import folder_lock
from nearcast.storage.local_storage import LocalStorage
from nearcast.storage.path_errors import explain_lasting_errors
from storage_races import race_to_create


def refuse(number: int):
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def test_without_hard_links_one_writer_creates(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    race_to_create(LocalStorage(tmp_path), writers=6, rounds=50)


def test_where_a_folder_cannot_be_locked_a_file_is(tmp_path, monkeypatch):
    lock = folder_lock.fcntl.flock

    def lock_no_folder(file: int, operation: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{file}"):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(file, operation)

    monkeypatch.setattr(folder_lock.fcntl, "flock", lock_no_folder)
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    storage = LocalStorage(tmp_path)
    race_to_create(storage, writers=6, rounds=50)
    storage.write("pointer", b"1")
    assert storage.replace("pointer", b"2", storage.stat("pointer").etag)
    assert [each.name for each in storage.list_objects() if "race" not in each.name] == ["pointer"]


def test_a_process_killed_while_it_writes_leaves_no_object(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from nearcast.storage.local_storage import LocalStorage
def fsync(file):
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
getattr(LocalStorage(Path(sys.argv[1])), sys.argv[2])("folder/object", b"bytes")
"""
    for step in ("write", "create"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), step], timeout=60)
        assert done.returncode == -9
    storage = LocalStorage(tmp_path)
    assert list(storage.list_objects()) == storage.list_folders() == []
    assert storage.create("folder/object", b"whole")


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.write("a", b"")
    with pytest.raises(AccessError, match=r"writing .*/a/b failed: .*; a file is in the way of a folder: move it away"):
        storage.write("a/b", b"")
    storage.write("c/d", b"")
    with pytest.raises(AccessError, match=r"writing .*/c failed: .*; a folder is in the way of a file"):
        storage.write("c", b"")
    with pytest.raises(AccessError, match="a folder is in the way of a file"):
        storage.read("c")
    assert storage.stat("c") is storage.stat("a/b") is None


def test_the_root_may_be_a_link_and_need_not_exist(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    storage = LocalStorage(tmp_path / "root" / "new")
    assert list(storage.list_objects()) == []
    storage.write("a/b", b"bytes")
    assert (tmp_path / "disk" / "new" / "a" / "b").read_bytes() == b"bytes"
    assert storage.local == Path(storage.url) == tmp_path / "root" / "new"


def test_what_every_attempt_meets_again_is_no_fault_that_may_pass(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(AccessError, match="its symbolic links lead in a circle: correct them, and run again"):
        LocalStorage(tmp_path).read("circle")
    with pytest.raises(AccessError, match="File name too long; choose a shorter path or name"):
        LocalStorage(tmp_path).write("n" * 300, b"")
    with pytest.raises(AccessError, match="cannot be the name of an object"):
        LocalStorage(tmp_path).write("../a", b"")


@pytest.mark.parametrize(
    ("number", "raised"), [(errno.EROFS, AccessError), (errno.EIO, OSError), (errno.EEXIST, OSError)]
)
def test_of_the_errors_of_a_task_those_that_last_are_told_apart(tmp_path, number, raised):
    with pytest.raises(raised, match=str(tmp_path)), explain_lasting_errors():
        raise OSError(number, os.strerror(number), str(tmp_path))
