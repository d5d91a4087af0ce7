"""Where samples of looked-up keys are kept: files of a local folder, or objects of a bucket.

Every service process writes one file per generator and hour, over and over. Knows nothing of the contents.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from nearcast.errors import NearcastError, NotFoundError
from nearcast.files import write_text
from nearcast.storage.locations import Location, parse_location
from nearcast.storage.open_storage import open_storage

__all__ = ["SampleFiles", "open_sample_files"]

OWNER_ONLY = 0o600  # a sample holds keys of users
FOLDER_SECONDS = 5.0
BUCKET_SECONDS = 60.0  # every write is a request that costs


class SampleFiles(Protocol):
    """The files of all services of one location."""

    write_seconds: float  # between two writes of a file

    def write(self, name: str, text: str) -> None:
        """Write a file, or replace it. Raises OSError or NearcastError."""
        ...

    def read_all(self, prefix: str) -> Iterator[str]:
        """Yield the texts of the files with this prefix that can be read."""
        ...

    def remove_old(self, before: float) -> None:
        """Remove the files that were last written before a time, in seconds since 1970."""
        ...


class FolderFiles:
    """Files in a local folder, readable by their owner only."""

    write_seconds = FOLDER_SECONDS

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = str(os.getpid())

    def write(self, name: str, text: str) -> None:
        """Replace the file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(self._folder / f"{name}-{self._process}.json", text, mode=OWNER_ONLY)

    def read_all(self, prefix: str) -> Iterator[str]:
        """Read the files in the order of their names."""
        for path in sorted(self._folder.glob(f"{prefix}*.json")) if self._folder.is_dir() else []:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                yield path.read_text(encoding="utf-8")

    def remove_old(self, before: float) -> None:
        """Look at the times of the files."""
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < before:
                    path.unlink()


class BucketFiles:
    """Objects in a bucket; the rights of the bucket say who may read them."""

    write_seconds = BUCKET_SECONDS

    def __init__(self, url: str) -> None:
        self._storage = open_storage(url)
        self._process = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"  # hosts may be clones

    def write(self, name: str, text: str) -> None:
        """Replace the object."""
        self._storage.write(f"{name}-{self._process}.json", text.encode())

    def read_all(self, prefix: str) -> Iterator[str]:
        """Read the objects in the order of their names. Raises StorageError if the bucket cannot be listed."""
        for found in self._storage.list_objects():
            if found.name.startswith(prefix) and found.name.endswith(".json") and "/" not in found.name:
                with contextlib.suppress(NotFoundError, UnicodeDecodeError):
                    yield self._storage.read(found.name).decode()

    def remove_old(self, before: float) -> None:
        """Look at the times of the objects."""
        with contextlib.suppress(NearcastError):
            for found in list(self._storage.list_objects()):
                if found.name.endswith(".json") and found.modified < before:
                    self._storage.delete(found.name)


def open_sample_files(location: Location) -> SampleFiles:
    """Open the files of a location. Makes no request yet."""
    place = parse_location(location)
    return FolderFiles(place) if isinstance(place, Path) else BucketFiles(place)
