"""Files of the user, and detection of changes while a command reads them. `bucket_files` has those in buckets.

A file may be replaced, overwritten, truncated or removed meanwhile, and a command reads most files more than once.
`UserFile.check` compares the file with its recorded state; `ensure_unchanged` does so before and after a pass. Knows
nothing of file contents.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePath
from typing import Any, Protocol, Self

import pyarrow as pa

from nearcast.errors import InputError
from nearcast.files import file_hash

__all__ = [
    "ChangedInputError",
    "FileState",
    "LocalFile",
    "UserFile",
    "changed_error",
    "check_between_reads",
    "describe_error",
    "digest_file",
    "ensure_unchanged",
    "file_error",
    "shown_path",
]

MOST_TEXT = 500  # characters of a library's error


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


class UserFile(Protocol):
    """A file and its recorded state, on this machine or in a bucket."""

    @property
    def name(self) -> str:
        """Name for messages and fingerprints."""
        ...

    @property
    def path(self) -> PurePath:
        """Path on this machine, or name in the bucket: for its parts, not to open it."""
        ...

    @property
    def shown(self) -> str:
        """Whole path or URL for messages."""
        ...

    @property
    def size(self) -> int:
        """Size in bytes."""
        ...

    @property
    def mtime_ns(self) -> int:
        """Time of the last change by the clock of its writer, in nanoseconds since 1970."""
        ...

    @property
    def buffer_bytes(self) -> int:
        """Bytes to ask for at a time where a column of a file is read from its beginning to its end."""
        ...

    @property
    def reads_are_checked(self) -> bool:
        """Whether every read fails if the file differs from its recorded state."""
        ...

    def check(self) -> None:
        """Raise InputError if the file differs from its recorded state."""
        ...

    def hash(self) -> str:
        """Return a hash: files of equal hashes have equal contents."""
        ...

    def identity(self) -> dict[str, str]:
        """Return what `hash` is computed from, for a digest; empty if it is computed from the contents."""
        ...

    def stamp(self) -> dict[str, Any]:
        """Return the recorded state as plain data: an equal stamp on another host means an unchanged file."""
        ...

    def open(self) -> pa.NativeFile:
        """Open the file for reading at any position. Raises OSError or InputError."""
        ...

    def read(self) -> bytes:
        """Read the whole file. Raises OSError or InputError."""
        ...

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read the bytes start..stop-1 of each (start, stop); fewer at the end. Raises OSError or InputError."""
        ...

    def read_ends(self, n: int) -> tuple[bytes, bytes]:
        """Read the first and the last n bytes. Raises InputError."""
        ...


class LocalFile:
    """A file of this machine and its recorded state."""

    reads_are_checked = False
    buffer_bytes = 1 << 20

    def __init__(self, path: Path, name: str) -> None:
        status = _stat(path)
        self.path = path
        self.name = name
        self.state = FileState.of(status)
        self._ctime_ns = status.st_ctime_ns
        self._hash: str | None = None

    @property
    def shown(self) -> str:
        """Whole path for messages."""
        return shown_path(self.path)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.state.size

    @property
    def mtime_ns(self) -> int:
        """Time of the last change in nanoseconds since 1970."""
        return self.state.mtime_ns

    def open(self) -> pa.NativeFile:
        """Open the file."""
        return pa.OSFile(os.fsencode(self.path))  # bytes: a name need not be UTF-8

    def read(self) -> bytes:
        """Read the whole file."""
        return self.path.read_bytes()

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read ranges of the file."""
        found = []
        with self.path.open("rb", buffering=0) as file:
            for start, stop in ranges:
                file.seek(start)
                found.append(_read_fully(file, stop - start))
        return found

    def read_ends(self, n: int) -> tuple[bytes, bytes]:
        """Read the first and the last n bytes."""
        try:
            with self.path.open("rb") as file:
                head = file.read(n)
                file.seek(max(0, file.seek(0, os.SEEK_END) - n))
                return head, file.read(n)
        except OSError as error:
            raise file_error(self.path, error) from error

    def identity(self) -> dict[str, str]:
        """Return nothing: the hash is that of the contents."""
        return {}

    def stamp(self) -> dict[str, Any]:
        """Return size and times. A writer can reset the first time, but not the second."""
        return {"size": self.state.size, "mtime_ns": self.state.mtime_ns, "ctime_ns": self._ctime_ns}

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

    An error in the block is replaced by that one, since the change is its likely cause. Files whose reads are checked
    need no more than that.
    """
    check_between_reads(*files)
    try:
        yield
    except Exception:
        for file in files:
            file.check()
        raise
    check_between_reads(*files)


def check_between_reads(*files: UserFile) -> None:
    """Raise InputError if a file differs from its recorded state, unless its reads find that."""
    for file in files:
        if not file.reads_are_checked:
            file.check()


def digest_file(file: UserFile, name: str | None = None) -> dict[str, Any]:
    """Return name, bytes and hash of a file. For an object also `etag`, which its hash is computed from."""
    return {"name": name or file.name, "bytes": file.size, "blake2b": file.hash(), **file.identity()}


class ChangedInputError(InputError):
    """An input was changed while it was read."""


def changed_error(name: str, why: str = "") -> ChangedInputError:
    """Return the error for an input that was changed while it was read."""
    return ChangedInputError(f"{name} changed while it was read; run again{f' ({why})' if why else ''}")


def describe_error(error: Exception) -> str:
    """Return the first line of a library's error, cut off after `MOST_TEXT`, or its class."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return line if len(line) <= MOST_TEXT else f"{line[:MOST_TEXT]}..."


def shown_path(path: Path | str, base: Path | None = None) -> str:
    """Format a path as UTF-8 text, relative to `base` if it is below it."""
    path = Path(path)
    if base is not None and path.is_relative_to(base):
        path = path.relative_to(base)
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def file_error(path: Path, error: OSError) -> InputError:
    """Return the error for a file that cannot be opened."""
    if isinstance(error, FileNotFoundError):  # it was listed a moment ago
        return changed_error(shown_path(path), "it is gone")
    if isinstance(error, PermissionError):
        return InputError(f"{shown_path(path)} may not be read: permission denied; give this user the right to")
    return InputError(f"{shown_path(path)} cannot be read: {error.strerror or error}")


def _read_fully(file: FileIO, size: int) -> bytes:
    """Read so many bytes, fewer at the end. One call reads 2 GiB at most."""
    data = file.read(size)
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise file_error(path, error) from error
