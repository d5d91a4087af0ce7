"""The home of snapshots: everything that differs between an `out` in a local folder and one in a bucket.

    <out>/<generator>/snapshots/000001/   manifest.json   candidates/   items/   queries/   sketch/

A snapshot is complete if it contains a manifest, which is written last and once. Versions are numbers, since clocks can
go backwards. Callers pass a location to the functions of `snapshot.py`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from nearcast.errors import DamagedError, NotFoundError
from nearcast.files import MANIFEST, file_hash, finish, is_done, read_manifest, write_text
from nearcast.storage.artifacts import ArtifactFile
from nearcast.storage.folder_lock import try_lock
from nearcast.storage.locations import Location
from nearcast.storage.open_storage import open_storage
from nearcast.table.manifest import Manifest
from nearcast.table.snapshot_reader import Snapshot

__all__ = ["NOTHING", "LocalHome", "SnapshotHome", "hold_folder_of", "open_snapshot", "parse_manifest"]

NOTHING: Mapping[str, ArtifactFile] = {}
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
MOST_REMOVALS = 100  # tries, while other processes remove the same folder


class SnapshotHome(Protocol):
    """The snapshots and small files of all generators below one location."""

    out: Location

    def list_generators(self) -> list[str]:
        """List the generators that have a snapshot, finished or not."""
        ...

    def list_versions(self, generator: str) -> list[int]:
        """List the versions of the finished snapshots, in order."""
        ...

    def list_snapshots(self, generator: str) -> list[Snapshot]:
        """Open all finished snapshots, oldest first."""
        ...

    def next_version(self, generator: str) -> int:
        """Return the number after the highest snapshot, finished or not."""
        ...

    def open(self, generator: str, version: int) -> Snapshot:
        """Open a snapshot. Raises DamagedError if its manifest is missing, unreadable or incomplete."""
        ...

    def commit(
        self,
        generator: str,
        folder: Path,
        facts: Mapping[str, Any],
        seen: int | None = None,
        elsewhere: Mapping[str, ArtifactFile] = NOTHING,
    ) -> Snapshot:
        """Commit the files of a folder, and files elsewhere, as the next version, with these facts as its manifest.

        Any number of processes may commit at once: each gets a version of its own, or the snapshot of its fingerprint
        that another process has committed meanwhile. seen: the newest version when the run began; a newer one with its
        fingerprint is returned. The folder may be moved. elsewhere: files in a bucket, by their names in the snapshot.
        """
        ...

    def hold(self, generator: str, version: int) -> contextlib.AbstractContextManager[None]:
        """Keep a snapshot from being removed, by any process, inside `with`. Raises NotFoundError if it is gone."""
        ...

    def hide(self, generator: str, version: int) -> bool:
        """Remove the manifest of a snapshot: it is gone for everyone, whole. Return False if somebody holds it."""
        ...

    def remove_hidden(self, generator: str, version: int) -> None:
        """Remove the files of a snapshot that `hide` has hidden; `sweep` does it after a kill."""
        ...

    def is_held(self, generator: str, version: int) -> bool:
        """Return whether somebody holds a snapshot at this moment."""
        ...

    def list_left(self, generator: str) -> list[int]:
        """List the versions of folders that killed commits and removals left, in order."""
        ...

    def sweep(self, generator: str) -> int:
        """Remove what killed commits and removals left. Return the number of removed folders."""
        ...

    def exists(self) -> bool:
        """Return whether the location exists; True for a bucket, where folders are only names."""
        ...

    def check_writable(self) -> None:
        """Raise StorageError if nothing can be committed here."""
        ...

    def read_file(self, name: str) -> bytes | None:
        """Return a small file, for example "tuning/frontier.json" of a generator; None if it is missing."""
        ...

    def write_file(self, name: str, data: bytes) -> Location:
        """Write a small file atomically; return where it is."""
        ...

    def describe_file(self, name: str) -> tuple[float, int]:
        """Return when a small file was written, in seconds since 1970, and its bytes; zeros if it is missing."""
        ...


class LocalHome:
    """Snapshots in a local folder. The committing step is a rename."""

    def __init__(self, out: Path) -> None:
        self.out: Location = out
        self._root = out

    def _folder(self, generator: str) -> Path:
        return self._root / generator / "snapshots"

    def list_generators(self) -> list[str]:
        """List the folders with a folder of snapshots that is not empty."""
        return sorted(path.parent.name for path in self._root.glob("*/snapshots") if any(path.iterdir()))

    def list_versions(self, generator: str) -> list[int]:
        """List the folders that hold a manifest."""
        folder = self._folder(generator)
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and is_done(path))

    def list_snapshots(self, generator: str) -> list[Snapshot]:
        """Read the manifests."""
        return [self.open(generator, version) for version in self.list_versions(generator)]

    def next_version(self, generator: str) -> int:
        """Look at the names of the folders."""
        folder = self._folder(generator)
        taken = [int(name) for name in os.listdir(folder) if name.isdigit()] if folder.is_dir() else []
        return max(taken, default=0) + 1

    def open(self, generator: str, version: int) -> Snapshot:
        """Read the manifest."""
        return open_snapshot(self._folder(generator) / f"{version:06d}")

    def commit(
        self,
        generator: str,
        folder: Path,
        facts: Mapping[str, Any],
        seen: int | None = None,
        elsewhere: Mapping[str, ArtifactFile] = NOTHING,
    ) -> Snapshot:
        """Download what is elsewhere, write the manifest into the folder, and rename the folder."""
        if seen is not None and (made := find_made(self, generator, facts, seen)) is not None:
            return made
        for name, file in elsewhere.items():
            download_file(file, folder / name)
        home = self._folder(generator)
        version = self.next_version(generator)
        manifest = {**facts, "version": version}
        finish(folder, manifest)
        home.mkdir(exist_ok=True, parents=True)
        while True:
            target = home / f"{version:06d}"
            try:
                os.rename(folder, target)
                return Snapshot(target, Manifest(manifest))
            except OSError as error:  # another process was first: the folder exists and is not empty
                if error.errno not in TAKEN:
                    raise
            version = self.next_version(generator)
            manifest = {**facts, "version": version}
            listed = read_manifest(folder)["files"]
            write_text(folder / MANIFEST, manifest_text({**manifest, "files": listed}))

    def hold(self, generator: str, version: int) -> contextlib.AbstractContextManager[None]:
        """Hold a shared lock on the manifest. A killed process releases it."""
        return hold_folder_of(self._folder(generator) / f"{version:06d}")

    def hide(self, generator: str, version: int) -> bool:
        """Remove the manifest, under an exclusive lock on it."""
        folder = self._folder(generator) / f"{version:06d}"
        with contextlib.suppress(FileNotFoundError), _open_manifest(folder) as file:
            if not try_lock(file, fcntl.LOCK_EX):
                return False
            (folder / MANIFEST).unlink(missing_ok=True)
        return True

    def remove_hidden(self, generator: str, version: int) -> None:
        """Remove the folder."""
        _remove_folder(self._folder(generator) / f"{version:06d}")

    def is_held(self, generator: str, version: int) -> bool:
        """Try the lock on the manifest."""
        with contextlib.suppress(FileNotFoundError), _open_manifest(self._folder(generator) / f"{version:06d}") as file:
            return not try_lock(file, fcntl.LOCK_EX)
        return False

    def list_left(self, generator: str) -> list[int]:
        """List the folders without a manifest that are older than the newest snapshot: a commit renames a whole one."""
        home, newest = self._folder(generator), max(self.list_versions(generator), default=0)
        names = os.listdir(home) if home.is_dir() else []
        return sorted(int(name) for name in names if name.isdigit() and int(name) < newest and not is_done(home / name))

    def sweep(self, generator: str) -> int:
        """Remove these folders."""
        left = self.list_left(generator)
        for version in left:
            _remove_folder(self._folder(generator) / f"{version:06d}")
        return len(left)

    def exists(self) -> bool:
        """Return whether the folder exists."""
        return self._root.is_dir()

    def check_writable(self) -> None:
        """Do nothing: the first write of a run raises an error before any work."""

    def read_file(self, name: str) -> bytes | None:
        """Read the file."""
        try:
            return (self._root / name).read_bytes()
        except OSError:
            return None

    def write_file(self, name: str, data: bytes) -> Location:
        """Replace the file."""
        write_text(self._root / name, data.decode())
        return self._root / name

    def describe_file(self, name: str) -> tuple[float, int]:
        """Read the status of the file."""
        path = self._root / name
        return (path.stat().st_mtime, path.stat().st_size) if path.is_file() else (0.0, 0)


@contextlib.contextmanager
def hold_folder_of(folder: Path) -> Iterator[None]:
    """Keep the snapshot in a local folder from being removed. Raises NotFoundError if it is gone, or about to be."""
    gone = NotFoundError(f"{folder} was removed a moment ago, as one of the old snapshots; name another one")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_open_manifest(folder))
        except FileNotFoundError:
            raise gone from None
        if not try_lock(file, fcntl.LOCK_SH) or not is_done(folder):
            raise gone
        yield


@contextlib.contextmanager
def _open_manifest(folder: Path) -> Iterator[int]:
    file = os.open(folder / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def _remove_folder(folder: Path) -> None:
    """Remove a folder, which another process may remove at the same time."""
    for _ in range(MOST_REMOVALS):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            if folder.exists():
                continue
        return


def download_file(file: ArtifactFile, path: Path) -> None:
    """Download a file and compare it with its hash. Raises DamagedError if it differs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    open_storage(file.root).download(file.name, path)
    if path.stat().st_size != file.size or file_hash(path) != file.blake2b:
        raise DamagedError(f"{file.root}/{file.name} was changed after it was written; remove it and run again")


def find_made(home: SnapshotHome, generator: str, facts: Mapping[str, Any], seen: int) -> Snapshot | None:
    """Return the newest snapshot with the fingerprint of these facts and a version above `seen`."""
    for version in reversed(home.list_versions(generator)):
        if version <= seen:
            return None
        snapshot = home.open(generator, version)
        if snapshot.manifest.fingerprint == facts["fingerprint"]:
            return snapshot
    return None


def open_snapshot(folder: Path) -> Snapshot:
    """Open the snapshot in a folder. Raises DamagedError if its manifest is missing, unreadable or incomplete."""
    manifest = parse_manifest(read_manifest(folder), str(folder / MANIFEST))
    return Snapshot(folder.resolve(), manifest)


def parse_manifest(facts: Mapping[str, Any], where: str) -> Manifest:
    """Return the manifest. Raises DamagedError if keys are missing."""
    manifest = Manifest(facts)
    missing = manifest.missing_keys()
    if missing:
        raise DamagedError(f"{where} lacks {', '.join(missing)}; restore it, or run again")
    return manifest


def manifest_text(facts: Mapping[str, Any]) -> str:
    """Return the text of a manifest, as `files.finish` writes it."""
    return json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
