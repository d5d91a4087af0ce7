"""The cache of a host: folders of artifacts from object storage, shared by all processes of the host.

An entry is filled by one process at a time, verified, and renamed into place. A process that uses an entry holds a
shared lock on it, so that the least recently used entries can be evicted without pulling a folder from under anyone.

    <root>/entries/<key>/...     the files of an artifact
    <root>/locks/<key>.use       shared: in use; exclusive: being evicted; its modification time: last use
    <root>/locks/<key>.fill      exclusive: being downloaded
    <root>/scratch/<id>/...      downloads and attempts that are under way; <id>.lock is held by their process
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from nearcast.errors import BudgetError, SpecError
from nearcast.files import fingerprint
from nearcast.storage.folder_lock import open_lock

__all__ = ["HostCache", "entry_key"]

FREE_SHARE = 0.2  # of the free disk, which the cache leaves alone unless NEARCAST_CACHE_BYTES gives its size


class HostCache:
    """Entries in one folder. Entries that a process opened stay in place until it ends or `release` is called."""

    def __init__(self, root: Path | None = None, *, limit_bytes: int | None = None) -> None:
        self.root = root or _default_root()
        self._limit = limit_bytes if limit_bytes is not None else _given_limit()
        self._in_use: dict[str, int] = {}  # key: open lock file
        self._threads = threading.Lock()

    def open_entry(self, key: str, is_whole: Callable[[Path], bool], fill: Callable[[Path], None], size: int) -> Path:
        """Return the folder of an entry; fill it if it is missing or `is_whole` finds it damaged."""
        folder = self.root / "entries" / key
        self._use(key)
        if is_whole(folder):
            return folder
        filling = open_lock(self.root / "locks" / f"{key}.fill", fcntl.LOCK_EX)
        try:
            if is_whole(folder):  # by another process, while this one waited
                return folder
            self.make_room(size)
            with self.scratch() as made:
                with _disk_full_explained(self.root):
                    fill(made)
                self._put_in_place(made, folder)
        finally:
            if filling is not None:
                os.close(filling)
        return folder

    def adopt(self, key: str, made: Path, is_whole: Callable[[Path], bool]) -> Path:
        """Make a folder of `scratch` the folder of an entry."""
        folder = self.root / "entries" / key
        self._use(key)
        filling = open_lock(self.root / "locks" / f"{key}.fill", fcntl.LOCK_EX)
        try:
            if not is_whole(folder):
                self._put_in_place(made, folder)
        finally:
            if filling is not None:
                os.close(filling)
        self.make_room(0)
        return folder

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield an empty folder on the disk of the cache, and remove it at the end."""
        made = self.root / "scratch" / secrets.token_hex(8)
        lock = made.with_suffix(".lock")
        held = open_lock(lock, fcntl.LOCK_EX)
        try:
            self._remove_abandoned()
            made.mkdir()
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
            lock.unlink(missing_ok=True)
            if held is not None:
                os.close(held)

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Release at the end the entries that were opened inside, so that they can be evicted."""
        before = set(self._in_use)
        try:
            yield
        finally:
            self.release(set(self._in_use) - before)

    def release(self, keys: set[str] | None = None) -> None:
        """Let entries of this process be evicted; default: all."""
        with self._threads:
            for key in list(self._in_use) if keys is None else keys:
                if (held := self._in_use.pop(key, None)) is not None:
                    os.close(held)

    def make_room(self, size: int) -> None:
        """Evict the least recently used entries that no process uses, until so many bytes fit the limit."""
        entries = self.root / "entries"
        entries.mkdir(parents=True, exist_ok=True)
        sizes = {folder.name: _folder_size(folder) for folder in entries.iterdir()}
        used = sum(sizes.values())
        limit = self._limit
        if limit is None:
            limit = int((1 - FREE_SHARE) * (used + shutil.disk_usage(entries).free))
        for key in sorted(sizes, key=self._last_use):
            if used + size <= limit:
                return
            if key not in self._in_use and self._evict(key):
                used -= sizes[key]

    def _use(self, key: str) -> None:
        lock = self.root / "locks" / f"{key}.use"
        with self._threads:
            if key not in self._in_use and (held := open_lock(lock, fcntl.LOCK_SH)) is not None:
                self._in_use[key] = held
        with contextlib.suppress(OSError):  # a full disk does not keep anyone from reading
            os.utime(lock)

    def _evict(self, key: str) -> bool:
        lock = self.root / "locks" / f"{key}.use"
        held = open_lock(lock, fcntl.LOCK_EX, wait=False)
        if held is None:
            return False
        try:
            with self.scratch() as trash, contextlib.suppress(FileNotFoundError):
                os.rename(self.root / "entries" / key, trash / key)
            lock.with_suffix(".fill").unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
        finally:
            os.close(held)
        return True

    def _put_in_place(self, made: Path, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with self.scratch() as trash:
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, trash / "damaged")  # who has it open keeps the open files
            os.rename(made, folder)

    def _last_use(self, key: str) -> float:
        try:
            return (self.root / "locks" / f"{key}.use").stat().st_mtime
        except OSError:
            return 0.0

    def _remove_abandoned(self) -> None:
        """Remove what killed processes left: their locks are free."""
        for lock in (self.root / "scratch").glob("*.lock"):
            held = open_lock(lock, fcntl.LOCK_EX, wait=False)
            if held is not None:
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
                os.close(held)


def entry_key(url: str, name: str, attempt: str) -> str:
    """Name an entry by everything that decides its files."""
    return f"{name.rpartition('/')[2][:60]}-{fingerprint([url, name, attempt])}"


def _default_root() -> Path:
    if given := os.environ.get("NEARCAST_CACHE"):
        return Path(given).absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache") / "nearcast"


def _given_limit() -> int | None:
    text = os.environ.get("NEARCAST_CACHE_BYTES", "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise SpecError(
            f"NEARCAST_CACHE_BYTES must be a positive number of bytes, got {text}; write 50000000000 for 50 GB"
        )
    return int(text)


def _folder_size(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(place, file)).st_size
    return total


@contextlib.contextmanager
def _disk_full_explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BudgetError(
            f"the disk of the cache {root} is full; free some, or set NEARCAST_CACHE to a folder on a larger disk"
        ) from error
