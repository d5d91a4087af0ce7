"""The journal beside an LMDB overlay: a second copy of what says that items are removed, and the overlay's lock.

    <root>/<generator>/overlay.journal      a line per entry: serial, crc32 of the entry (hexadecimal), the entry (JSON)

Only `repair` reads it: when the overlay is lost or damaged, no removed item comes back. It is written before the
overlay, is there as long as the overlay is, and so tells a lost overlay from one that was never made. Writers of the
overlay lock it; readers share the lock. Newer values of columns are not in it: they change too often.
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

__all__ = ["HeldJournal", "Journal", "Line", "checksum"]

LOCK_PATIENCE_SECONDS = 5.0  # a writer holds it for milliseconds; one that was stopped must not stop the others
READER_PATIENCE_SECONDS = 0.25
LOCK_PAUSE_SECONDS = 0.002
NO_LINES = b"\n"  # a journal that was begun and has no line yet; an empty one must be begun

Line = tuple[int, OverlayEntry]  # serial and entry


def checksum(data: bytes) -> int:
    """Return the CRC-32 of an entry's bytes."""
    return zlib.crc32(data)


@dataclass(frozen=True)
class Journal:
    """The journal at a path, whether it is there or not."""

    path: Path

    def exists(self) -> bool:
        """Return whether an overlay was ever made here."""
        return os.path.lexists(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[HeldJournal]:
        """Hold the lock of a writer; the file is made. TimeoutError where another process does not let go of it."""
        descriptor = self._lock(shared=False)
        assert descriptor is not None, "a writer waits for the lock, or fails"
        try:
            yield HeldJournal(self.path, descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def locked_by_reader(self) -> Iterator[None]:
        """Keep writers away, where that is possible without waiting for long."""
        descriptor = self._lock(shared=True)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def move_what_is_no_file(self) -> str | None:
        """Move a link or folder out of the journal's place. Returns what was done, None where there is none."""
        try:
            refuse_link(self.path)
        except DamagedError as error:
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
            self.path.rename(aside)
            return f"{str(error).partition(', which')[0].partition(';')[0]} and was moved to {aside}"
        return None

    def read(self) -> list[Line]:
        """Return the lines that are whole, in the order of writing; none where there is no file."""
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
                    return None  # a reader does without: it sees whether anything was written meanwhile
                if error.errno == errno.ELOOP:  # the link was put there a moment ago
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
        """Return whether the file was not replaced while we waited."""
        opened = os.fstat(descriptor)
        try:
            now = self.path.lstat()
        except FileNotFoundError:
            return False
        return (opened.st_dev, opened.st_ino) == (now.st_dev, now.st_ino)


@dataclass(frozen=True)
class HeldJournal:
    """The journal while its lock is held, open for writing."""

    path: Path
    descriptor: int

    def is_empty(self) -> bool:
        """Return whether it must be begun: it was lost, or the overlay is of an earlier version."""
        return os.fstat(self.descriptor).st_size == 0

    def has_lines(self) -> bool:
        """Return whether more is in it than that it was begun."""
        return os.fstat(self.descriptor).st_size > len(NO_LINES)

    def begin(self, lines: Sequence[Line]) -> None:
        """Add all lines that the overlay has; the journal is not empty afterwards, even where there are none."""
        if lines:
            self.append(lines)
        elif self.is_empty():
            self._append(NO_LINES)

    def clear(self) -> None:
        """Remove all that is in it."""
        os.ftruncate(self.descriptor, 0)

    def append(self, lines: Sequence[Line]) -> None:
        """Add lines and flush them to the disk. OSError, and nothing added, where the disk is full."""
        if lines:
            self._append(b"".join(map(_as_line, lines)))

    def _append(self, data: bytes) -> None:
        size = os.fstat(self.descriptor).st_size
        if size > 0 and os.pread(self.descriptor, 1, size - 1) != b"\n":  # a broken end
            data = b"\n" + data
        try:
            if os.write(self.descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fdatasync(self.descriptor)
        except OSError:
            os.ftruncate(self.descriptor, size)
            raise

    def replace(self, lines: Sequence[Line]) -> None:
        """Keep these lines alone."""
        write_text(self.path, (b"".join(map(_as_line, lines)) or NO_LINES).decode())


def _as_line(line: Line) -> bytes:
    serial, entry = line
    data = entry.to_bytes()
    return b"%d %08x %s\n" % (serial, checksum(data), data)
