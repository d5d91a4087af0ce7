"""Locks that hold among the processes of a host: on a folder or a lock file, bounded in time, released by a kill.

Knows nothing of what is guarded. `files.hold_lock` refuses at once instead, and tells people who holds the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from nearcast.errors import StorageError

__all__ = ["hold_folder", "open_lock", "try_lock", "wait_for_lock"]

LOCK_FILE = ".nearcast.lock"  # where a folder itself cannot be locked, as on NFS
UNSUPPORTED = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
PAUSE = 0.005  # seconds between two tries at first; doubles up to 0.2
PATIENCE = 3600.0  # seconds


def wait_for_lock(file: int, operation: int, what: str, *, patience: float = PATIENCE) -> None:
    """Lock an open file with LOCK_SH or LOCK_EX. Raises StorageError after so many seconds."""
    deadline, pause = time.monotonic() + patience, PAUSE
    while True:
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{what} was locked by another process for {patience:.0f} s; end that process, and run again"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, 0.2)


def try_lock(file: int, operation: int) -> bool:
    """Lock an open file with LOCK_SH or LOCK_EX. Return False if another process holds it.

    Returns True without a lock where the file system has none.
    """
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    return True


def open_lock(path: Path, operation: int, *, wait: bool = True) -> int | None:
    """Open and lock a lock file, creating it if missing. Return None if it is taken and `wait` is false.

    The holder may remove the file: then the lock of a new file at the path is taken.
    """
    for _ in range(1000):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # the folder was removed a moment ago
            continue
        try:
            if wait:
                wait_for_lock(file, operation, str(path))
            else:
                fcntl.flock(file, operation | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(file).st_ino == path.stat().st_ino:
                    return file
        except BlockingIOError:
            os.close(file)
            return None
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # removed before it was locked
    raise StorageError(f"{path} is removed as often as it is made; end the process that does so")


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold an existing folder against other processes and threads that hold it. Leaves no file where possible."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            wait_for_lock(opened, fcntl.LOCK_EX, str(folder), patience=600.0)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            os.close(opened)
            opened = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            wait_for_lock(opened, fcntl.LOCK_EX, str(folder), patience=600.0)
        yield
    finally:
        os.close(opened)
