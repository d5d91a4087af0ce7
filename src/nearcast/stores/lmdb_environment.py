"""LMDB environments: opened once per process and shared, and every error of the library translated.

A process must not open an LMDB file twice, and two readers of one version are common. So this
module holds open environments by the identity of their file, with a count of users.

After a fork: a read-only environment without locks is only a map, and the child may continue to use it. An environment
with locks belongs to the process that opened it; a child opens another. Knows nothing of versions.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearcast.errors import DamagedError, MissingExtraError, StoreError
from nearcast.files import refuse_link

__all__ = [
    "DATA",
    "LOCK",
    "SharedEnvironment",
    "file_identity",
    "load_lmdb",
    "open_shared",
    "release_environment",
    "translate_read_error",
    "translate_read_errors",
    "translate_write_errors",
]

DATA, LOCK = "data.mdb", "lock.mdb"
LOCK_BYTES = 65_664  # size of the lock file for 1,024 readers
DAMAGE = ("CorruptedError", "PageNotFoundError", "InvalidError", "VersionMismatchError", "BadChecksumError")

Identity = tuple[int, int]  # device and inode


def load_lmdb() -> Any:
    """Import and return the module lmdb. Raises MissingExtraError."""
    try:
        import lmdb
    except ImportError as error:
        raise MissingExtraError("an LMDB store needs the library lmdb: pip install 'nearcast' brings it") from error
    return lmdb


@contextlib.contextmanager
def translate_read_errors(path: Path) -> Iterator[None]:
    """Translate errors of reading a file into StoreError and DamagedError."""
    try:
        yield
    except (load_lmdb().Error, OSError) as error:
        raise translate_read_error(path, error) from error


def translate_read_error(path: Path, error: Exception) -> DamagedError | StoreError:
    """Return the error to raise for an error of LMDB or of the file system while a file is read."""
    return _translate(error, f"{path} cannot be read", "see that it is there and may be read")


@contextlib.contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Translate errors of writing a file into StoreError and DamagedError."""
    try:
        yield
    except (load_lmdb().Error, OSError) as error:
        way_out = "see that the disk has room and that the folder may be written, and try again"
        raise _translate(error, f"{path} cannot be written", way_out) from error


def _translate(error: Exception, what: str, way_out: str) -> DamagedError | StoreError:
    lmdb = load_lmdb()
    if isinstance(error, tuple(getattr(lmdb, name) for name in DAMAGE if hasattr(lmdb, name))):
        return DamagedError(f"{what}: it is damaged ({error}); publish again with --repair")
    return StoreError(f"{what} ({error}); {way_out}")


@dataclass
class SharedEnvironment:
    """An open environment with its named databases and the number of its users."""

    folder: Path
    environment: Any
    databases: Mapping[str, Any]
    identity: Identity
    locks: bool
    process: int = field(default_factory=os.getpid)
    users: int = 1
    lock_identity: Identity | None = None
    lock_bytes: int = 0

    @property
    def inherited(self) -> bool:
        """Whether it was inherited by a fork and must not be used."""
        return self.locks and self.process != os.getpid()

    def lock_is_whole(self) -> bool:
        """Return whether the mapped lock file is unchanged; otherwise the environment must be closed."""
        try:
            facts = os.lstat(f"{self.folder}/{LOCK}")
        except OSError:
            return False
        return (facts.st_dev, facts.st_ino) == self.lock_identity and facts.st_size >= self.lock_bytes


_open: dict[Identity, SharedEnvironment] = {}
_guard = threading.RLock()  # the garbage collector may close a reader at any point of this code


def _reset_guard() -> None:
    global _guard
    _guard = threading.RLock()  # a thread of the parent may have held it


os.register_at_fork(after_in_child=_reset_guard)


def file_identity(path: Path) -> Identity | None:
    """Return device and inode of a file; None if it does not exist."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    return facts.st_dev, facts.st_ino


def open_shared(folder: Path, *, locks: bool, databases: Sequence[str] = (), **settings: Any) -> SharedEnvironment:
    """Return the environment of an existing folder; open it with these settings unless it is open."""
    lmdb = load_lmdb()
    with _guard:
        identity = file_identity(folder / DATA)
        known = _open.get(identity) if identity else None
        if known is not None and not known.inherited:
            known.users += 1
            return known
        if known is not None:
            known.environment.close()
        if locks:
            allocate_lock(folder / LOCK)
        environment = lmdb.open(str(folder), lock=locks, max_dbs=len(databases), **settings)
        identity = identity or file_identity(folder / DATA)
        assert identity is not None, "LMDB has made its file"
        try:
            handles = {name: environment.open_db(name.encode(), create=False) for name in databases}
        except lmdb.Error:
            environment.close()
            raise
        _open[identity] = shared = SharedEnvironment(folder, environment, handles, identity, locks)
        if locks:
            shared.lock_identity = file_identity(folder / LOCK)
            shared.lock_bytes = (folder / LOCK).stat().st_size
        return shared


def allocate_lock(path: Path) -> None:
    """Allocate the whole lock file on disk before LMDB maps it: a page without a disk block would kill the process.

    Call it only while this process does not have it open: closing a file releases LMDB's locks on it. Raises OSError if
    the disk is full.
    """
    refuse_link(path)
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        facts = os.fstat(opened)
        size = max(facts.st_size, LOCK_BYTES)
        if facts.st_size < size or facts.st_blocks * 512 < size:
            os.posix_fallocate(opened, 0, size)
    finally:
        os.close(opened)


def release_environment(shared: SharedEnvironment) -> None:
    """Decrease the number of users; the last one closes the environment."""
    with _guard:
        shared.users -= 1
        if shared.users > 0 or shared.inherited:
            return
        if _open.get(shared.identity) is shared:
            del _open[shared.identity]
        shared.environment.close()
