"""The journal beside an LMDB overlay: a second copy of the entries that remove items, and the overlay's lock.

    <root>/<generator>/overlay.journal      a line per entry: serial, crc32 of the entry (hexadecimal), the entry (JSON)

Only `repair` reads it, so that no removed item comes back when the overlay is lost or damaged. It is written before the
overlay and exists as long as the overlay: a missing overlay with a journal was lost. Writers of the overlay lock it;
readers share the lock. Newer values of columns are not in it: they change too often.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nearcast.errors import DamagedError
from nearcast.files import refuse_link, write_text
from nearcast.stores.base import OverlayEntry

__all__ = ["Journal", "Line", "LockedJournal", "checksum"]

LOCK_PATIENCE_SECONDS = 5.0  # writers hold it for milliseconds; a suspended one must not block the others
READER_PATIENCE_SECONDS = 0.25
LOCK_PAUSE_SECONDS = 0.002
NO_LINES = b"\n"  # a started journal without lines; an empty file is not started

Line = tuple[int, OverlayEntry]  # serial and entry


def checksum(data: bytes) -> int:
    """Return the CRC-32 of an entry's bytes."""
    return zlib.crc32(data)


@dataclass(frozen=True)
class Journal:
    """The journal at a path, existing or not."""

    path: Path

    def exists(self) -> bool:
        """Return whether an overlay was ever created here."""
        return os.path.lexists(self.path)

    @contextlib.contextmanager
    def hold_lock(self) -> Iterator[LockedJournal]:
        """Hold the writer's lock; create the file. Raises TimeoutError if another process keeps the lock."""
        descriptor = self._lock(shared=False)
        assert descriptor is not None, "a writer waits for the lock, or fails"
        try:
            yield LockedJournal(self.path, descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def locked_by_reader(self) -> Iterator[None]:
        """Hold the readers' lock if it is free soon; continue without it otherwise."""
        descriptor = self._lock(shared=True)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def move_irregular_file(self) -> str | None:
        """Move a link or folder away from the journal's path. Return a description; None if there is none."""
        try:
            refuse_link(self.path)
        except DamagedError as error:
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
            self.path.rename(aside)
            return f"{str(error).partition(', which')[0].partition(';')[0]} and was moved to {aside}"
        return None

    def read(self) -> list[Line]:
        """Return the undamaged lines in the order of writing; none if there is no file."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return []
        found = []
        for line in data.split(b"\n"):
            serial, _, rest = line.partition(b" ")
            check, _, entry = rest.partition(b" ")
            with contextlib.suppress(ValueError, DamagedError):
                if int(check, 16) == checksum(entry):
                    found.append((int(serial), OverlayEntry.from_bytes(entry)))
        return found

    def _lock(self, *, shared: bool) -> int | None:
        flags = (os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT | os.O_APPEND) | os.O_NOFOLLOW | os.O_CLOEXEC
        end = time.monotonic() + (READER_PATIENCE_SECONDS if shared else LOCK_PATIENCE_SECONDS)
        while True:
            if not shared:
                refuse_link(self.path)
            try:
                descriptor = os.open(self.path, flags | os.O_NONBLOCK, 0o666)
            except OSError as error:
                if shared:
                    return None  # a reader continues without it and checks for writes afterwards
                if error.errno == errno.ELOOP:  # a link was created a moment ago
                    refuse_link(self.path)
                raise
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                if self._is_at_path(descriptor):
                    return descriptor
            except BlockingIOError:
                if time.monotonic() > end:
                    os.close(descriptor)
                    if shared:
                        return None
                    raise TimeoutError(
                        errno.ETIMEDOUT, f"another process has held {self.path} for {LOCK_PATIENCE_SECONDS:g} s"
                    ) from None
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)
            time.sleep(LOCK_PAUSE_SECONDS)

    def _is_at_path(self, descriptor: int) -> bool:
        """Return whether the file was not replaced during the wait."""
        opened = os.fstat(descriptor)
        try:
            now = self.path.lstat()
        except FileNotFoundError:
            return False
        return (opened.st_dev, opened.st_ino) == (now.st_dev, now.st_ino)


@dataclass(frozen=True)
class LockedJournal:
    """The journal, locked and open for writing."""

    path: Path
    descriptor: int

    def is_empty(self) -> bool:
        """Return whether it is not started: it was lost, or the overlay is from an earlier version."""
        return os.fstat(self.descriptor).st_size == 0

    def has_lines(self) -> bool:
        """Return whether it has lines."""
        return os.fstat(self.descriptor).st_size > len(NO_LINES)

    def begin(self, lines: Sequence[Line]) -> None:
        """Start the journal with all removals of the overlay, or with an empty line if there are none."""
        if lines:
            self.append(lines)
        elif self.is_empty():
            self._append(NO_LINES)

    def clear(self) -> None:
        """Delete all lines."""
        os.ftruncate(self.descriptor, 0)

    def append(self, lines: Sequence[Line]) -> None:
        """Add lines and flush them to disk. Raises OSError, and adds nothing, if the disk is full."""
        if lines:
            self._append(b"".join(map(_format_line, lines)))

    def _append(self, data: bytes) -> None:
        size = os.fstat(self.descriptor).st_size
        if size > 0 and os.pread(self.descriptor, 1, size - 1) != b"\n":  # the last line is incomplete
            data = b"\n" + data
        try:
            if os.write(self.descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fdatasync(self.descriptor)
        except OSError:
            os.ftruncate(self.descriptor, size)
            raise

    def replace(self, lines: Sequence[Line]) -> None:
        """Replace all lines by these."""
        write_text(self.path, (b"".join(map(_format_line, lines)) or NO_LINES).decode())


def _format_line(line: Line) -> bytes:
    serial, entry = line
    data = entry.to_bytes()
    return b"%d %08x %s\n" % (serial, checksum(data), data)
