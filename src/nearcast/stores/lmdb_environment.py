"""LMDB environments: opened once per process and shared, and every error of the library translated.

LMDB forbids a process to open a file twice, while two readers of one version are quite usual. So open environments
are kept here, by the file's identity, with the number of their users.

After a fork: environments that are read only and without locks hold nothing but a map, which the child may go on
using. Those with locks belong to the process that opened them; a child opens its own. Knows nothing of versions.
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
    "translate_read_errors",
    "translate_write_errors",
]

DATA, LOCK = "data.mdb", "lock.mdb"
LOCK_BYTES = 65_664  # what LMDB takes for 1,024 readers
DAMAGE = ("CorruptedError", "PageNotFoundError", "InvalidError", "VersionMismatchError", "BadChecksumError")

Identity = tuple[int, int]  # device and inode


def load_lmdb() -> Any:
    """The module lmdb."""
    try:
        import lmdb
    except ImportError as error:
        raise MissingExtraError("an LMDB store needs the library lmdb: pip install 'nearcast' brings it") from error
    return lmdb


@contextlib.contextmanager
def translate_read_errors(path: Path) -> Iterator[None]:
    """Translate what goes wrong while a file is read."""
    try:
        yield
    except (load_lmdb().Error, OSError) as error:
        raise _translated(error, f"{path} cannot be read", "see that it is there and may be read") from error


@contextlib.contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Translate what goes wrong while a file is written."""
    try:
        yield
    except (load_lmdb().Error, OSError) as error:
        way_out = "see that the disk has room and that the folder may be written, and try again"
        raise _translated(error, f"{path} cannot be written", way_out) from error


def _translated(error: Exception, what: str, way_out: str) -> DamagedError | StoreError:
    lmdb = load_lmdb()
    if isinstance(error, tuple(getattr(lmdb, name) for name in DAMAGE if hasattr(lmdb, name))):
        return DamagedError(f"{what}: it is damaged ({error}); publish again with --repair")
    return StoreError(f"{what} ({error}); {way_out}")


@dataclass
class SharedEnvironment:
    """An open environment with its named databases, and how many use it."""

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
        """Whether it came over a fork and must not be used any more."""
        return self.locks and self.process != os.getpid()

    def lock_is_whole(self) -> bool:
        """Whether the lock file is still the one that is mapped, as long as it was. Otherwise it must be let go."""
        try:
            facts = os.lstat(f"{self.folder}/{LOCK}")
        except OSError:
            return False
        return (facts.st_dev, facts.st_ino) == self.lock_identity and facts.st_size >= self.lock_bytes


_open: dict[Identity, SharedEnvironment] = {}
_guard = threading.RLock()  # a reader may be closed by the garbage collector, at any point of ours


def _fresh_guard() -> None:
    global _guard
    _guard = threading.RLock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_fresh_guard)


def file_identity(path: Path) -> Identity | None:
    """What tells a file from another one at the same path; None where there is none."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    return facts.st_dev, facts.st_ino


def open_shared(folder: Path, *, locks: bool, databases: Sequence[str] = (), **settings: Any) -> SharedEnvironment:
    """The environment of a folder that exists, opened with these settings unless it is open already."""
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
    """Have the whole lock file on the disk before LMDB maps it: a page without a block would end the process.

    Only while this process has it not open: to close a file lets go of the locks that LMDB holds on it. OSError where
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
    """One user less; the last one closes it."""
    with _guard:
        shared.users -= 1
        if shared.users > 0 or shared.inherited:
            return
        if _open.get(shared.identity) is shared:
            del _open[shared.identity]
        shared.environment.close()
