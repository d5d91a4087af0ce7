"""Files of the user, each in the one state in which a command found it.

A file may be replaced, overwritten, cut short or removed while it is read, and a command reads most files more than
once. `UserFile.check` compares the file with the state that was recorded; `unchanged` does so around a pass. Knows
nothing of what is in a file.
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

__all__ = ["ChangedInputError", "FileState", "UserFile", "changed_error", "shown_path", "unchanged"]


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells one state of a file from another, without a look at its contents."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Self:
        """Return the state that a stat has found."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class UserFile:
    """A file in the state in which it was found. `name` is what messages and fingerprints call it."""

    def __init__(self, path: Path, name: str) -> None:
        found = _stat(path)
        self.path = path
        self.name = name
        self.state = FileState.of(found)
        self._ctime_ns = found.st_ctime_ns
        self._hash: str | None = None

    def check(self) -> None:
        """Raise InputError where the file is no longer in the state in which it was found.

        A writer can set the time of modification back, but not the time of the last status change. That one also moves
        when a file is linked or its rights change, so there the contents decide, where their hash is known.
        """
        try:
            found = _stat(self.path)
        except InputError:
            raise changed_error(self.name) from None
        if FileState.of(found) != self.state:
            raise changed_error(self.name)
        if found.st_ctime_ns != self._ctime_ns:
            if self._hash is None or self._read_hash() != self._hash:
                raise changed_error(self.name)
            self._ctime_ns = found.st_ctime_ns

    def hash(self) -> str:
        """Return a hash of the contents in the state recorded; InputError where they change meanwhile."""
        if self._hash is None:
            with unchanged([self]):
                found = self._read_hash()
            self._hash = found
        return self._hash

    def _read_hash(self) -> str:
        try:
            return file_hash(self.path)
        except FileNotFoundError:
            raise changed_error(self.name) from None
        except OSError as error:
            raise InputError(f"{shown_path(self.path)} cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def unchanged(files: Sequence[UserFile]) -> Iterator[None]:
    """Compare files with their recorded states before and after a pass; InputError where one has changed.

    An error inside is put down to the change where there was one.
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
    """An input did not stay as it was while it was read."""


def changed_error(name: str, why: str = "") -> ChangedInputError:
    """Return the error for an input that did not stay as it was."""
    return ChangedInputError(f"{name} changed while it was read; run again{f' ({why})' if why else ''}")


def shown_path(path: Path | str, base: Path | None = None) -> str:
    """Return a path as text that can be printed and written as UTF-8, relative to `base` where it is below it."""
    path = Path(path)
    if base is not None and path.is_relative_to(base):
        path = path.relative_to(base)
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError as error:  # whoever asks has seen it before
        raise changed_error(shown_path(path), "it is gone") from error
    except PermissionError as error:
        raise InputError(
            f"{shown_path(path)} may not be read: permission denied; give this user the right to"
        ) from error
    except OSError as error:
        raise InputError(f"{shown_path(path)} cannot be read: {error.strerror or error}") from error
