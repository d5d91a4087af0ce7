"""Files of the user in buckets: objects that are read in ranges, and detection of changes meanwhile.

An object is identified by its etag and size. Every read names the etag, so that the storage refuses an object that was
replaced. Knows nothing of file contents, and of no cloud: `storage` reads.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from nearcast.errors import InputError, NotFoundError, StorageError
from nearcast.files import fingerprint
from nearcast.sources.listing_rules import GLOB
from nearcast.sources.user_files import changed_error
from nearcast.storage.base import Storage, StoredObject
from nearcast.storage.open_storage import open_storage

__all__ = ["BucketFile", "BucketPath", "find_object", "open_bucket", "parse_bucket_path"]

PIECE_BYTES = 8 << 20  # of one request; larger ones are not faster
PIECES = 8  # requests side by side: one alone gets a fraction of the bandwidth
AHEAD_BYTES = 1 << 20  # least size of a request: what comes in the time that a request takes
WHOLE_BYTES = 4 << 20  # smaller objects are read in one request


@dataclass(frozen=True, slots=True)
class BucketPath:
    """A bucket and a name in it, which may be a glob; empty for the whole bucket."""

    bucket: str  # s3://bucket
    name: str

    @property
    def url(self) -> str:
        """The URL, as people write it."""
        return f"{self.bucket}/{self.name}" if self.name else self.bucket


def parse_bucket_path(url: str) -> BucketPath:
    """Split a URL into bucket and name. Nothing in it is decoded. Raises InputError if it names no bucket."""
    scheme, _, rest = url.partition("://")
    bucket, _, name = rest.partition("/")
    if "@" in bucket or ":" in bucket:  # may be a password
        raise InputError(f"{scheme}://... names no bucket: it has @ or :; credentials come from the environment")
    if not bucket or GLOB.search(bucket):
        raise InputError(f"{url} names no bucket; write it as {scheme}://BUCKET/NAME")
    if "//" in name or name.startswith("/") or any(part in (".", "..") for part in name.split("/")):
        raise InputError(
            f"{url} has an empty part, `.` or `..` in its name, which cannot be read from a bucket; rename the objects"
        )
    return BucketPath(f"{scheme}://{bucket}", name)


def open_bucket(bucket: str) -> Storage:
    """Open a bucket. Raises MissingExtraError without the library for buckets."""
    return open_storage(bucket)


def find_object(location: BucketPath, storage: Storage) -> BucketFile | None:
    """Return the object of this name, None if there is none."""
    if not location.name or location.name.endswith("/"):
        return None
    found = storage.stat(location.name)
    return None if found is None else BucketFile(storage, found, location.bucket)


class BucketFile:
    """An object and its recorded state."""

    reads_are_checked = True
    buffer_bytes = PIECES * PIECE_BYTES

    def __init__(self, storage: Storage, stored: StoredObject, bucket: str) -> None:
        self._storage = storage
        self._stored = stored
        self.name = self.shown = f"{bucket}/{stored.name}"
        self.path = PurePosixPath(stored.name)

    @property
    def key(self) -> str:
        """Name in the bucket."""
        return self._stored.name

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._stored.size

    @property
    def mtime_ns(self) -> int:
        """Time of the upload in nanoseconds since 1970."""
        return int(self._stored.modified * 1e9)

    def check(self) -> None:
        """Raise InputError if the object was replaced or deleted. Costs a request."""
        self.compare(self._storage.stat(self.key))

    def compare(self, found: StoredObject | None) -> None:
        """Raise InputError if these are not the facts that were recorded. None: the object is gone."""
        if found is None:
            raise changed_error(self.name, "it is gone")
        if (found.etag, found.size) != (self._stored.etag, self._stored.size):
            raise changed_error(self.name)

    def hash(self) -> str:
        """Hash etag and size, without reading the object.

        An upload of equal bytes may get another etag, and then counts as a change.
        """
        return fingerprint([self._stored.etag, self._stored.size])

    def identity(self) -> dict[str, str]:
        """Return the etag: the hash is that of etag and size."""
        return {"etag": self._stored.etag}

    def stamp(self) -> dict[str, Any]:
        """Return the etag and the size."""
        return {"size": self.size, **self.identity()}

    def open(self) -> pa.NativeFile:
        """Open the object for ranged reads."""
        return pa.PythonFile(_ObjectReader(self), mode="r")

    def read(self) -> bytes:
        """Read the whole object."""
        return b"".join(self.read_pieces([(0, self.size)]))

    def read_ends(self, n: int) -> tuple[bytes, bytes]:
        """Read the first and the last n bytes."""
        head, tail = self.read_ranges([(0, n), (max(0, self.size - n), self.size)])
        return head, tail

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read ranges side by side. Raises InputError if the object was changed."""
        ranges = [(start, min(stop, self.size)) for start, stop in ranges]
        pieces = self.read_pieces(ranges)
        return [b"".join(islice(pieces, len(_cut(start, stop)))) for start, stop in ranges]

    def read_pieces(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """Yield the bytes of ranges in pieces, some read side by side. Raises InputError if the object was changed."""
        pieces = [piece for start, stop in ranges for piece in _cut(start, stop)]
        for first in range(0, len(pieces), PIECES):
            some = pieces[first : first + PIECES]
            try:
                found = self._storage.read_ranges(self.key, some, etag=self._stored.etag)
            except NotFoundError:
                raise changed_error(self.name, "it is gone") from None
            except StorageError:
                self.check()  # another etag is the likely cause
                raise
            if any(len(data) != stop - start for data, (start, stop) in zip(found, some, strict=True)):
                raise changed_error(self.name)
            yield from found


def _cut(start: int, stop: int) -> list[tuple[int, int]]:
    """Return the pieces of a range; none of an empty one."""
    return [(first, min(stop, first + PIECE_BYTES)) for first in range(start, stop, PIECE_BYTES)]


class _ObjectReader(io.RawIOBase):
    """A file object over an object's ranges, for `pa.PythonFile`, which calls it from one thread at a time.

    A small object is read in one request. Of a large one, short reads are prolonged, and the last block is kept.
    """

    def __init__(self, file: BucketFile) -> None:
        self._file = file
        self._at = 0
        self._block, self._block_start = b"", 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Set the position."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def read(self, n: int | None = -1, /) -> bytes:
        """Read n bytes, or all that are left."""
        return bytes(self.read_buffer(n))

    def read_buffer(self, n: int | None = -1) -> pa.Buffer:
        """Read n bytes into a buffer of Arrow: the copy that `read` makes is left out."""
        size = self._file.size
        start = min(self._at, size)
        stop = size if n is None or n < 0 else min(start + n, size)
        self._at = stop
        if not (self._block_start <= start and stop <= self._block_start + len(self._block)):
            if size > WHOLE_BYTES and stop - start >= AHEAD_BYTES:
                return self._read_large(start, stop)
            first, last = (0, size) if size <= WHOLE_BYTES else (start, min(size, start + AHEAD_BYTES))
            self._block, self._block_start = b"".join(self._file.read_pieces([(first, last)])), first
        return pa.py_buffer(self._block).slice(start - self._block_start, stop - start)

    def _read_large(self, start: int, stop: int) -> pa.Buffer:
        buffer = pa.allocate_buffer(stop - start)
        view, filled = memoryview(buffer).cast("B"), 0
        for piece in self._file.read_pieces([(start, stop)]):
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        return buffer
