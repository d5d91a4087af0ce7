"""Artifacts: folders of files that are committed once, whichever of several attempts finishes first.

An artifact has a name (a relative path) and facts (a small JSON object). An attempt writes its files into a scratch
folder of its host and then commits. Only one attempt of a name can win; a loser removes its files, and continues with
the winner's. Readers get a local folder with the artifact's files and its `manifest.json`: the artifact itself on a
local file system, else a copy in the host's cache, downloaded once per host under a lock and verified.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nearcast.errors import NotFoundError
from nearcast.files import MANIFEST, PARTIAL, finish, is_done, read_manifest
from nearcast.storage.folder_lock import hold_folder
from nearcast.storage.host_cache import HostCache
from nearcast.storage.open_storage import is_url, open_storage

__all__ = ["ArtifactFile", "Artifacts", "LocalArtifacts", "Write", "open_artifacts"]

ATTEMPT = ".attempt-"

Write = Callable[[Path], dict[str, Any]]
"""Writes the files of an artifact into an empty folder and returns its facts."""


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A file of a committed artifact, where the storage has it."""

    root: str  # a local path or a URL
    name: str  # of the object below the root
    size: int  # bytes
    blake2b: str

    @property
    def path(self) -> Path | None:
        """The file, if it is on a local file system."""
        return None if is_url(self.root) else Path(self.root, self.name)


class Artifacts(Protocol):
    """Artifacts below one root."""

    url: str  # of the root

    def facts(self, name: str) -> dict[str, Any] | None:
        """Return the facts of a committed artifact, None if there is none. Downloads no other file."""
        ...

    def open(self, name: str, parts: Sequence[str] = ()) -> Path:
        """Return a local folder with the files of a committed artifact.

        parts: the files and folders of it that are needed; others may be missing. Default: all.
        Raises NotFoundError if there is none, DamagedError if its files do not match its manifest.
        """
        ...

    def list_files(self, name: str) -> dict[str, ArtifactFile]:
        """Return the files of a committed artifact by their names in it, without its manifest. Downloads none.

        Raises NotFoundError if there is none.
        """
        ...

    def ensure(self, name: str, write: Write) -> Path:
        """Return the local folder of an artifact; write and commit it if there is none."""
        ...

    def commit(self, name: str, write: Write) -> dict[str, Any]:
        """Write and commit an artifact if there is none; return its facts. Keeps no files open and downloads none."""
        ...

    def list_names(self, prefix: str = "") -> list[str]:
        """Return the names of the committed artifacts in the folder `prefix` and below, in order."""
        ...

    def remove(self, name: str) -> None:
        """Remove an artifact, or all artifacts in a folder, its manifests first; also unfinished attempts there."""
        ...

    def sweep(self, prefix: str = "", *, older_than: float = 86_400.0) -> int:
        """Remove attempts that were never committed and are older than so many seconds. Return their number."""
        ...


class LocalArtifacts:
    """Artifacts in folders of a local file system. The commit is a rename under a lock of the folder above."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root.absolute())

    def facts(self, name: str) -> dict[str, Any] | None:
        """Read the manifest, without the list of files."""
        folder = self.root / name
        if not is_done(folder):
            return None
        return {key: value for key, value in read_manifest(folder).items() if key != "files"}

    def list_files(self, name: str) -> dict[str, ArtifactFile]:
        """Read the manifest."""
        listed = read_manifest(self.open(name))["files"]
        return {
            file: ArtifactFile(self.url, f"{name}/{file}", facts["bytes"], facts["blake2b"])
            for file, facts in listed.items()
        }

    def open(self, name: str, parts: Sequence[str] = ()) -> Path:  # noqa: ARG002
        """Return the folder."""
        folder = self.root / name
        if not is_done(folder):
            raise NotFoundError(f"{folder} is not finished or does not exist; run the step that writes it")
        read_manifest(folder)
        return folder

    def ensure(self, name: str, write: Write) -> Path:
        """Return the folder; write it if it is missing."""
        target = self.root / name
        if is_done(target):
            return target
        with self._attempt(target) as folder:
            finish(folder, write(folder))
            _commit(folder, target)
        return target

    def commit(self, name: str, write: Write) -> dict[str, Any]:
        """Write the folder if it is missing, and read its manifest."""
        self.ensure(name, write)
        facts = self.facts(name)
        if facts is None:
            raise NotFoundError(f"{self.root / name} was removed by another process; run again")
        return facts

    @contextlib.contextmanager
    def _attempt(self, target: Path) -> Iterator[Path]:
        """Yield a folder beside the target, locked while this process lives, and remove it unless it was renamed."""
        folder = target.with_name(f"{ATTEMPT}{target.name}-{secrets.token_hex(4)}")
        folder.mkdir(parents=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # NFS cannot lock folders: there the age alone decides
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
        except OSError as error:
            if error.errno is not None and error.filename is None:  # Arrow's errors name no file
                error.filename = os.fspath(target)
            raise
        finally:
            os.close(lock)
            if folder.exists():
                shutil.rmtree(folder)

    def list_names(self, prefix: str = "") -> list[str]:
        """List the folders with a manifest."""
        names = []
        for folder, folders, files in os.walk(self.root / prefix):  # a folder that goes away meanwhile is left out
            folders[:] = [name for name in folders if not name.startswith(ATTEMPT)]
            if MANIFEST in files:
                names.append(Path(folder).relative_to(self.root).as_posix())
        return sorted(names)

    def remove(self, name: str) -> None:
        """Remove a folder, manifests first, and its attempts."""
        folder = self.root / name
        for path in sorted(folder.rglob(MANIFEST)):
            path.unlink(missing_ok=True)
        for path in (folder, *folder.parent.glob(f"{ATTEMPT}{folder.name}-*")):
            shutil.rmtree(path, ignore_errors=True)

    def sweep(self, prefix: str = "", *, older_than: float = 86_400.0) -> int:
        """Remove folders of attempts by the newest modification time in them, unless a process of this host holds one.

        Times are those of the file system, which may be another host's.
        """
        home = self.root / prefix
        found = [
            Path(place) / name for place, folders, _ in os.walk(home) for name in folders if name.startswith(ATTEMPT)
        ]
        if not found:
            return 0
        now = _file_system_time(home)
        old = [path for path in found if now - _newest(path) > older_than and not _is_held(path)]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
        return len(old)


def open_artifacts(location: str | os.PathLike[str], cache: HostCache | None = None) -> Artifacts:
    """Open the artifacts at a local path or a URL. `cache` holds local copies of those at a URL."""
    if is_url(location):
        from nearcast.storage.bucket_artifacts import BucketArtifacts

        return BucketArtifacts(open_storage(location), cache or HostCache())
    return LocalArtifacts(Path(location))


def _commit(folder: Path, target: Path) -> None:
    """Rename an attempt to its artifact unless another attempt was first."""
    with hold_folder(target.parent):
        if is_done(target):
            return
        if target.exists():  # unfinished, of an earlier release
            os.rename(target, target.with_name(f"{ATTEMPT}{target.name}-{secrets.token_hex(4)}"))
        os.rename(folder, target)


def _file_system_time(folder: Path) -> float:
    path = folder / f"{PARTIAL}{secrets.token_hex(8)}"
    path.touch()
    try:
        return path.stat().st_mtime
    finally:
        path.unlink(missing_ok=True)


def _newest(folder: Path) -> float:
    times = [0.0]
    for place, _, files in os.walk(folder):
        for path in (place, *(os.path.join(place, file) for file in files)):
            with contextlib.suppress(OSError):
                times.append(os.stat(path).st_mtime)
    return max(times)


def _is_held(folder: Path) -> bool:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
    return False
