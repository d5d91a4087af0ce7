"""The contract of a storage: whole objects by name, below one root, in a local folder or in a bucket.

A name is a relative path with `/`, without `.` and `..`. An object appears whole or not at all. `create` and `replace`
are the only conditional steps; everything that must happen once goes through them. Knows nothing of contents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nearcast.errors import AccessError

__all__ = ["Storage", "StoredObject", "check_name"]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Facts about an object."""

    name: str
    size: int  # bytes
    etag: str  # changes when the content changes; may be the same for equal bytes
    modified: float  # seconds since 1970, by the storage's clock


class Storage(Protocol):
    """Objects below one root. Safe to use from several threads."""

    url: str  # of the root: "s3://bucket/prefix", or an absolute local path
    local: Path | None  # the root folder of a local storage: its objects are plain files there

    def read(self, name: str, *, etag: str | None = None) -> bytes:
        """Return an object. Raises NotFoundError if it is missing, StorageError if its etag is another one."""
        ...

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]], *, etag: str | None = None) -> list[bytes]:
        """Return the bytes start..stop-1 of each (start, stop), read side by side."""
        ...

    def stat(self, name: str) -> StoredObject | None:
        """Return facts about an object, None if it is missing."""
        ...

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the objects in the folder `prefix` and below, in the order of their names."""
        ...

    def list_folders(self, prefix: str = "") -> list[str]:
        """Return the last parts of the names of the folders directly in the folder `prefix`, in order.

        A folder is there while an object is in it or below it; a few servers also keep empty folders.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write an object, or replace it, atomically."""
        ...

    def upload(self, name: str, path: Path) -> None:
        """Write a file of this machine as an object, in parts if it is large."""
        ...

    def download(self, name: str, path: Path, *, etag: str | None = None) -> None:
        """Write an object into a file of this machine. Raises the errors of `read`."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless the name is taken, atomically among all writers. Return whether this call wrote it.

        `data` should hold something that no other writer has, such as the id of an attempt: after a lost reply, the
        object is read back, and equal bytes count as written by this call.
        """
        ...

    def replace(self, name: str, data: bytes, etag: str) -> bool:
        """Replace an object if its etag is still this one, atomically. Return whether this call wrote it."""
        ...

    def copy_from(self, other: Storage, source: str, name: str) -> bool:
        """Copy an object of another root into `name` without reading it here. Return False where that cannot be done.

        It can be done within a bucket, and within local file systems. Raises NotFoundError if the object is missing.
        """
        ...

    def probe(self) -> None:
        """Check that `create` and `replace` are conditional here. Raises StorageError if they are not.

        Both do so before their first call. Costs six small requests once per process and root.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete an object; nothing happens if it is missing."""
        ...


def check_name(name: str, *, folder: bool = False) -> str:
    """Return a valid name. Raises AccessError for another one, such as an absolute path. "" is the root folder."""
    if folder and name == "":
        return name
    parts = name.split("/")
    if (
        any(part in ("", ".", "..") for part in parts)
        or "\0" in name
        or "\\" in name
        or parts[-1].startswith(".partial-")
    ):
        raise AccessError(
            f"{name!r} cannot be the name of an object; write a relative path with / and without . and .."
        )
    return name
