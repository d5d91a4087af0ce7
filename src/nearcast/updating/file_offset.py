"""How far a feed of files is read: which files of a folder or bucket, of any names, have been applied.

A file counts as read if its name and etag are among those remembered, or if it is older than a bound. The bound rises
so that a day of files is remembered, and not more than some thousands. Pure values.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nearcast.storage.base import StoredObject

__all__ = ["FileOffset", "file_key"]

KEPT_SECONDS = 86_400.0  # a file that appears so long after its modification time may be taken for a read one
MOST_KEPT = 4_000
KEY_BYTES = 8


def file_key(found: StoredObject) -> str:
    """Return a short key of a file's name and content."""
    digest = hashlib.blake2b(f"{found.name}\0{found.etag}".encode(), digest_size=KEY_BYTES).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class FileOffset:
    """The files that have been read."""

    until: float = -math.inf  # files that were not modified after this time count as read
    read: Mapping[str, float] = field(default_factory=dict)  # later ones: key to modification time
    again: frozenset[str] = frozenset()  # keys of files to read again
    asked: str = ""  # the request that named them
    part: tuple[str, int] | None = None  # key of a file that is read in parts, and its rows so far

    @staticmethod
    def from_json(data: Mapping[str, Any] | None) -> FileOffset:
        """Decode what `to_json` returned; None: no file is read."""
        if data is None:
            return FileOffset()
        until, part = data["until"], data.get("part")
        return FileOffset(
            -math.inf if until is None else until,
            data["read"],
            frozenset(data.get("again", ())),
            data.get("asked", ""),
            None if part is None else (part[0], part[1]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        data: dict[str, Any] = {"until": None if self.until == -math.inf else self.until, "read": dict(self.read)}
        more = {"again": sorted(self.again), "asked": self.asked, "part": self.part and list(self.part)}
        return data | {name: value for name, value in more.items() if value}

    def has_read(self, found: StoredObject) -> bool:
        """Return whether a file was read."""
        key = file_key(found)
        return key not in self.again and (found.modified <= self.until or key in self.read)

    def rows_of(self, found: StoredObject) -> int:
        """Return how many rows of a file were read."""
        return self.part[1] if self.part is not None and self.part[0] == file_key(found) else 0

    def add_part(self, found: StoredObject, rows: int) -> FileOffset:
        """Return the offset after so many rows of a file."""
        return replace(self, part=(file_key(found), rows))

    def add(self, found: StoredObject, waiting: Collection[StoredObject], now: float) -> FileOffset:
        """Return the offset after a file. waiting: the other files that were not read. now: seconds since 1970."""
        key = file_key(found)
        read = {**self.read, key: found.modified}
        times = sorted(read.values())
        bounds = [min(times[-1], now) - KEPT_SECONDS]  # a file from the future must not end the feed
        bounds += [times[-1 - MOST_KEPT]] if len(times) > MOST_KEPT else []
        until = min([max(bounds), *(math.nextafter(other.modified, -math.inf) for other in waiting)])
        kept = {name: modified for name, modified in read.items() if modified > until}
        until = max(until, self.until) if len(kept) < len(read) else self.until
        return replace(self, until=until, read=kept, again=self.again - {key}, part=None)
