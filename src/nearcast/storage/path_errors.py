"""What an error of a local path means: whether another attempt may help, and the way out. Knows no storage."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from nearcast.errors import AccessError, BudgetError, NearcastError, StorageError

__all__ = ["FULL", "LASTING", "explain_lasting_errors", "explain_os_error", "path_error"]

IN_THE_WAY = "a file is in the way of a folder: move it away"
LASTING = {  # what every attempt meets again: the way out
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EROFS: "choose a folder that can be written",
    errno.EEXIST: IN_THE_WAY,
    errno.ENOTDIR: IN_THE_WAY,
    errno.EISDIR: "a folder is in the way of a file: move it away",
    errno.ENAMETOOLONG: "choose a shorter path or name",
    errno.ELOOP: "its symbolic links lead in a circle: correct them",
}
FULL = {errno.ENOSPC: "free some disk", errno.EDQUOT: "free some disk, or raise the quota"}
SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # of NumPy, which drops the number of the error


def path_error(action: str, path: str | os.PathLike[str], error: OSError) -> StorageError:
    """Return AccessError for an error that every attempt meets again, else StorageError."""
    number = error.errno or 0
    way = LASTING.get(number) or FULL.get(number, "see that the file system works")
    kind = AccessError if number in LASTING else StorageError
    return kind(f"{action} {os.fspath(path)} failed: {error.strerror or error}; {way}, and run again")


def explain_os_error(error: OSError) -> NearcastError:
    """Return the error of nearcast for an error of the system that nothing else has explained.

    AccessError if every attempt meets it again, BudgetError for a full disk, else NearcastError.
    """
    number, path = error.errno or 0, error.filename or "a file"
    if error.errno is None and SHORT_WRITE.search(str(error)):
        return BudgetError(f"an array was not written whole ({error}); {FULL[errno.ENOSPC]}, and run again")
    if number in FULL:
        return BudgetError(f"{path}: {error.strerror}; {FULL[number]}, and run again")
    if number in LASTING and (number != errno.EEXIST or os.path.isfile(path)):
        return path_error("using", path, error)
    return NearcastError(f"{error.strerror or error}: {error.filename or 'unknown file'}")


@contextlib.contextmanager
def explain_lasting_errors() -> Iterator[None]:
    """Raise AccessError for errors of the system that every attempt meets again; others pass."""
    try:
        yield
    except OSError as error:
        explained = explain_os_error(error)
        if isinstance(explained, AccessError):
            raise explained from error
        raise
