"""Objects of a storage as seekable files, so that Arrow reads ranges of a Parquet file without downloading it."""

from __future__ import annotations

import io
import threading
from typing import Any

import pyarrow as pa

from nearcast.storage.base import Storage

__all__ = ["open_object"]


class ObjectFile(io.RawIOBase):
    """An object as a file for reading: each read is one ranged request.

    Every thread has its own position: Arrow reads from several threads, and each of its reads is a seek and a read.
    """

    def __init__(self, storage: Storage, name: str, size: int) -> None:
        super().__init__()
        self._storage = storage
        self._name = name
        self._size = size
        self._at = threading.local()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of this thread."""
        return int(getattr(self._at, "position", 0))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position of this thread."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._size}[whence]
        self._at.position = start + offset
        return self.tell()

    def read(self, size: int | None = -1) -> bytes:
        """Read at the position of this thread."""
        start = self.tell()
        left = max(0, self._size - start)
        count = left if size is None or size < 0 else min(size, left)
        if count == 0:
            return b""
        (data,) = self._storage.read_ranges(self._name, [(start, start + count)])
        self._at.position = start + len(data)
        return data

    def readall(self) -> bytes:
        """Read the rest."""
        return self.read(-1)


def open_object(storage: Storage, name: str, size: int) -> Any:
    """Open an object for Arrow. Nothing is read yet. size: of the object, in bytes."""
    return pa.PythonFile(ObjectFile(storage, name, size), mode="r")
