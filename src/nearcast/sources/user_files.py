"""Files of the user, and detection of changes while a command reads them.

A file may be replaced, overwritten, truncated or removed meanwhile, and a command reads most files more than once.
`UserFile.check` compares the file with its recorded state; `ensure_unchanged` does so before and after a pass. Knows
nothing of file contents.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nearcast.errors import InputError
from nearcast.files import file_hash

__all__ = ["ChangedInputError", "FileState", "UserFile", "changed_error", "ensure_unchanged", "shown_path"]


@dataclass(frozen=True, slots=True)
class FileState:
    """Identity of a file's state, without its contents."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Build the state from a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class UserFile:
    """A file and its recorded state. Messages and fingerprints use `name`."""

    def __init__(self, path: Path, name: str) -> None:
        status = _stat(path)
        self.path = path
        self.name = name
        self.state = FileState.of(status)
        self._ctime_ns = status.st_ctime_ns
        self._hash: str | None = None

    def check(self) -> None:
        """Raise InputError if the file differs from its recorded state.

        A writer can reset the modification time, but not the time of the last status change. Links and changed rights
        move that time too; then the hash of the contents decides, if it is known.
        """
        try:
            status = _stat(self.path)
        except InputError:
            raise changed_error(self.name) from None
        if FileState.of(status) != self.state:
            raise changed_error(self.name)
        if status.st_ctime_ns != self._ctime_ns:
            if self._hash is None or self._read_hash() != self._hash:
                raise changed_error(self.name)
            self._ctime_ns = status.st_ctime_ns

    def hash(self) -> str:
        """Hash the contents. Raises InputError if the file changes meanwhile."""
        if self._hash is None:
            with ensure_unchanged([self]):
                contents = self._read_hash()
            self._hash = contents
        return self._hash

    def _read_hash(self) -> str:
        try:
            return file_hash(self.path)
        except FileNotFoundError:
            raise changed_error(self.name) from None
        except OSError as error:
            raise InputError(f"{shown_path(self.path)} cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def ensure_unchanged(files: Sequence[UserFile]) -> Iterator[None]:
    """Compare files with their recorded states before and after the block. Raises InputError if one was changed.

    An error in the block is replaced by that one, since the change is its likely cause.
    """
    for file in files:
        file.check()
    try:
        yield
    except Exception:
        for file in files:
            file.check()
        raise
    for file in files:
        file.check()


class ChangedInputError(InputError):
    """An input was changed while it was read."""


def changed_error(name: str, why: str = "") -> ChangedInputError:
    """Return the error for an input that was changed while it was read."""
    return ChangedInputError(f"{name} changed while it was read; run again{f' ({why})' if why else ''}")


def shown_path(path: Path | str, base: Path | None = None) -> str:
    """Format a path as UTF-8 text, relative to `base` if it is below it."""
    path = Path(path)
    if base is not None and path.is_relative_to(base):
        path = path.relative_to(base)
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError as error:  # the file was listed before
        raise changed_error(shown_path(path), "it is gone") from error
    except PermissionError as error:
        raise InputError(
            f"{shown_path(path)} may not be read: permission denied; give this user the right to"
        ) from error
    except OSError as error:
        raise InputError(f"{shown_path(path)} cannot be read: {error.strerror or error}") from error
