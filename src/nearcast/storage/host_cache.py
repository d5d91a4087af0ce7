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
import fcntl
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nearcast.errors import AccessError, BudgetError, SpecError
from nearcast.files import fingerprint
from nearcast.storage.folder_lock import open_lock
from nearcast.storage.path_errors import FULL

__all__ = ["CacheSession", "HostCache", "entry_key", "explain_full_disk"]

FREE_SHARE = 0.2  # of the free disk, which the cache leaves alone unless NEARCAST_CACHE_BYTES gives its size


@dataclass
class _OpenEntry:
    """The shared lock of this process on an entry."""

    file: int
    sessions: int = 0  # that have it open
    kept: bool = False  # opened outside a session: until `release`, or the end of the process


_in_use: dict[Path, _OpenEntry] = {}  # by lock file
_guard = threading.Lock()
_thread = threading.local()  # `session`: the innermost one of this thread


class CacheSession:
    """The entries that a thread opens inside `with`. They stay in place until `close`, then they may be evicted.

    May be entered several times. An entry that another session or no session opened, too, stays.
    """

    def __init__(self, most: int | None = None) -> None:
        """most: number of entries that stay in place, the latest ones. Default: all."""
        self._most = most
        self._locks: OrderedDict[Path, None] = OrderedDict()
        self._outer: list[CacheSession | None] = []

    def __enter__(self) -> Self:
        self._outer.append(getattr(_thread, "session", None))
        _thread.session = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _thread.session = self._outer.pop()

    def close(self) -> None:
        """Let the entries be evicted."""
        while self._locks:
            _release(self._locks.popitem()[0], sessions=1)

    def hold(self, lock: Path) -> bool:
        """Note an entry. Return whether it is new here."""
        is_new = lock not in self._locks
        self._locks[lock] = None
        self._locks.move_to_end(lock)
        return is_new

    def drop_oldest(self) -> None:
        """Let the least recently opened entries above `most` be evicted."""
        while self._most is not None and len(self._locks) > self._most:
            _release(self._locks.popitem(last=False)[0], sessions=1)


class HostCache:
    """Entries in one folder.

    An entry that a process opened stays in place until the process ends, its session ends, or `release` is called.
    """

    def __init__(self, root: Path | None = None, *, limit_bytes: int | None = None) -> None:
        self.root = root or _default_root()
        self._limit = limit_bytes if limit_bytes is not None else _given_limit()

    def open_entry(self, key: str, is_whole: Callable[[Path], bool], fill: Callable[[Path], None], size: int) -> Path:
        """Return the folder of an entry; fill it if it is missing or `is_whole` finds it damaged."""
        folder = self.root / "entries" / key
        self._use(key)
        if is_whole(folder):
            return folder
        filling = self._lock(self.root / "locks" / f"{key}.fill", fcntl.LOCK_EX)
        try:
            if is_whole(folder):  # by another process, while this one waited
                return folder
            self.make_room(size)
            with self.scratch() as made:
                with explain_full_disk(self.root):
                    fill(made)
                self._put_in_place(made, folder)
        finally:
            os.close(filling)
        return folder

    def check_writable(self) -> None:
        """Raise AccessError if the folder of the cache cannot be written, BudgetError if its disk is full."""
        with self.scratch():
            pass

    def has_entry(self, key: str, is_whole: Callable[[Path], bool]) -> bool:
        """Return whether an entry is there and whole. It may be evicted at any moment: `open_entry` holds it."""
        return is_whole(self.root / "entries" / key)

    def adopt(self, key: str, made: Path, is_whole: Callable[[Path], bool]) -> Path:
        """Make a folder of `scratch` the folder of an entry."""
        folder = self.root / "entries" / key
        self._use(key)
        filling = self._lock(self.root / "locks" / f"{key}.fill", fcntl.LOCK_EX)
        try:
            if not is_whole(folder):
                self._put_in_place(made, folder)
        finally:
            os.close(filling)
        self.make_room(0)
        return folder

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield an empty folder on the disk of the cache, and remove it at the end."""
        made = self.root / "scratch" / secrets.token_hex(8)
        lock = made.with_suffix(".lock")
        held = self._lock(lock, fcntl.LOCK_EX)
        try:
            self._remove_abandoned()
            with explain_full_disk(self.root):
                made.mkdir()
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
            lock.unlink(missing_ok=True)
            os.close(held)

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Let entries be evicted again that this thread opens inside. An entry opened elsewhere, too, stays."""
        with contextlib.closing(CacheSession()) as session, session:
            yield

    def release(self, keys: Iterable[str]) -> None:
        """Let entries be evicted that this process opened outside a session and no longer needs."""
        for key in keys:
            _release(self.root / "locks" / f"{key}.use", kept=True)

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
            if self._evict(key):
                used -= sizes[key]

    def _use(self, key: str) -> None:
        lock = self.root / "locks" / f"{key}.use"
        with _guard:
            if lock not in _in_use:
                _in_use[lock] = _OpenEntry(self._lock(lock, fcntl.LOCK_SH))
            session: CacheSession | None = getattr(_thread, "session", None)
            if session is None:
                _in_use[lock].kept = True
            elif session.hold(lock):
                _in_use[lock].sessions += 1
        if session is not None:
            session.drop_oldest()
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

    def _lock(self, path: Path, operation: int) -> int:
        """Wait for a lock. Raises AccessError if the folder of the cache cannot be written."""
        with explain_full_disk(self.root):
            try:
                held = open_lock(path, operation)
            except OSError as error:
                if error.errno in FULL:
                    raise
                raise AccessError(
                    f"the cache {self.root} cannot be written ({error.strerror or error}); set NEARCAST_CACHE to a "
                    "local folder that this user can write"
                ) from error
        assert held is not None  # it was waited for
        return held

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


def _release(lock: Path, *, sessions: int = 0, kept: bool = False) -> None:
    """Take away uses of an entry, and its lock with the last one."""
    with _guard:
        if (entry := _in_use.get(lock)) is None:
            return
        entry.sessions -= sessions
        entry.kept = entry.kept and not kept
        if not entry.kept and entry.sessions == 0:
            os.close(_in_use.pop(lock).file)


def entry_key(url: str, name: str, attempt: str, parts: Sequence[str] = ()) -> str:
    """Name an entry by everything that decides its files. parts: of the artifact that it has; default: all."""
    return f"{name.rpartition('/')[2][:60]}-{fingerprint([url, name, attempt, *parts])}"


def _default_root() -> Path:
    if given := os.environ.get("NEARCAST_CACHE"):
        return Path(given).absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache") / "nearcast"
    except RuntimeError as error:
        raise SpecError("this user has no home folder for the cache; set NEARCAST_CACHE to a local folder") from error


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
def explain_full_disk(root: Path) -> Iterator[None]:
    """Raise BudgetError where the disk of the cache is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise BudgetError(
            f"the disk of the cache {root} is full; free some, or set NEARCAST_CACHE to a folder on a larger disk"
        ) from error
