"""A change feed of Parquet files in a folder or bucket, in the order of their names; large files in parts.

A file that is still being written waits, and those after it. Knows nothing of updates.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.errors import InputError, NotFoundError, SpecError
from nearcast.storage.base import Storage, StoredObject
from nearcast.storage.open_storage import is_url, open_storage
from nearcast.storage.path_errors import LASTING, path_error
from nearcast.updating.change_feed import FeedBatch
from nearcast.updating.file_offset import FileOffset, file_key
from nearcast.updating.read_batch import BatchInputs

__all__ = ["MOST_ROWS", "FileFeed"]

MOST_ROWS = 100_000
MOST_FILES = 1_000  # per reading, the oldest ones: their order is that of their names
MAGIC = b"PAR1"
LIKE_PARQUET = ("parquet", "parq", "pq")
WRITING_SECONDS = 60.0  # a file without its end counts as being written for so long after its last change


class FileFeed:
    """Parquet files of a folder or bucket.

    `NAME.parquet` holds items, `NAME.gone.parquet` ids of removed items, `NAME.queries.parquet` queries. Files below
    folders, and names that begin with a dot or underscore, are not read. most_rows: of a part. again: names, or
    patterns of names, of files to read again. note: called once for each name that seems to be meant, and is not read.
    """

    def __init__(
        self,
        source: str,
        *,
        most_rows: int = MOST_ROWS,
        again: Sequence[str] = (),
        note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        if not is_url(source) and not Path(source).is_dir():
            raise SpecError(
                f"the source must be a folder or a location in a bucket, and {source} is no folder; create it"
            )
        self._storage: Storage = open_storage(source)
        self.name = self._storage.url
        self._most_rows = most_rows
        self._again = tuple(again)
        self._note = note
        self._noted = set[str]()
        self._asked = secrets.token_hex(4) if again else ""

    def read(self, offset: Any) -> Iterator[FeedBatch]:
        """Yield the files after an offset, up to the first that is still being written."""
        known, waiting = self._list_waiting(offset)
        oldest = sorted(waiting, key=lambda one: (one.modified, one.name))[:MOST_FILES]
        for found in sorted(oldest, key=lambda one: one.name):
            waiting.remove(found)
            after = known.add(found, waiting, time.time())
            try:
                with self._open_whole(found) as file:
                    if file is None:
                        return
                    yield from self._read_parts(found, file, known, after)
            except NotFoundError:  # removed, or replaced by a newer file, which comes next time
                continue
            except InputError as error:
                yield FeedBatch(found.name, after.to_json(), found.modified, 0, BatchInputs(), error)
            known = after

    def oldest_waiting(self, offset: Any) -> float | None:
        """Return the modification time of the oldest file that was not read."""
        return min((found.modified for found in self._list_waiting(offset)[1]), default=None)

    def _list_waiting(self, offset: Any) -> tuple[FileOffset, list[StoredObject]]:
        """Return the decoded offset, and the files that were not read."""
        listed = list(self._storage.list_objects())
        found = [
            one for one in listed if one.name.endswith(".parquet") and "/" not in one.name and one.name[0] not in "._"
        ]
        self._note_unread(listed)
        known = FileOffset.from_json(offset)
        if known.asked != self._asked and self._asked:
            chosen = [one for one in found if any(fnmatchcase(one.name, pattern) for pattern in self._again)]
            if not chosen:
                raise SpecError(f"no file in {self.name} is named {' or '.join(self._again)}; see what is there")
            known = replace(known, again=known.again | set(map(file_key, chosen)), asked=self._asked)
        return known, [one for one in found if not known.has_read(one)]

    def _note_unread(self, listed: Sequence[StoredObject]) -> None:
        """Name what looks like a file of the feed and is none: a folder as Spark writes it, or another ending."""
        for one in listed:
            name, _, inner = one.name.partition("/")
            ending = name.rpartition(".")[2]
            is_meant = ending == "parquet" if inner else ending != "parquet" and ending.lower() in LIKE_PARQUET
            if name[0] not in "._" and is_meant and name not in self._noted:
                self._noted.add(name)
                what = "a folder" if inner else "named otherwise"
                self._note(
                    f"{name} is not read, since it is {what}: write single files, NAME.parquet, into {self.name}"
                )

    @contextlib.contextmanager
    def _open_whole(self, found: StoredObject) -> Iterator[BinaryIO | None]:
        """Open a file; None if it is still being written.

        Raises NotFoundError if it was removed or replaced, InputError if it cannot be read.
        """
        is_new = abs(time.time() - found.modified) < WRITING_SECONDS
        with contextlib.ExitStack() as stack:
            if self._storage.local is not None:
                path = self._storage.local / found.name
            else:
                path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nearcast-follow-"))) / "file"
                self._require(found)
                self._storage.download(found.name, path, etag=found.etag)
            try:
                file = stack.enter_context(path.open("rb"))
            except FileNotFoundError as error:
                raise NotFoundError(f"{found.name} was removed") from error
            except OSError as error:
                if error.errno not in LASTING:
                    raise path_error("reading", path, error) from error
                if not is_new:
                    raise InputError(f"{found.name} cannot be read ({error.strerror}); write it again") from error
                yield None
                return
            self._require(found)
            head = file.read(len(MAGIC))
            file.seek(max(0, found.size - len(MAGIC)))
            is_whole = found.size > 2 * len(MAGIC) and head == file.read() == MAGIC
            yield file if is_whole or not is_new else None

    def _require(self, found: StoredObject) -> None:
        """Raise NotFoundError unless a file is still the one that was listed."""
        now = self._storage.stat(found.name)
        if now is None or now.etag != found.etag:
            raise NotFoundError(f"{found.name} was removed or replaced")

    def _read_parts(
        self, found: StoredObject, file: BinaryIO, before: FileOffset, after: FileOffset
    ) -> Iterator[FeedBatch]:
        """Yield the rows of a file that were not read, in parts.

        Raises NotFoundError if it is changed meanwhile, InputError if it is damaged.
        """
        done = start = before.rows_of(found)
        end = after.to_json()
        try:
            parquet = pq.ParquetFile(file)
            total = parquet.metadata.num_rows
            for table in _split_table(parquet, start, self._most_rows):
                self._require(found)
                done += len(table)
                name = found.name if len(table) == total else f"{found.name} up to row {done:,}"
                offset = end if done >= total else before.add_part(found, done).to_json()
                yield FeedBatch(name, offset, found.modified, len(table), _name_inputs(found.name, table), None, end)
        except (pa.ArrowException, OSError, OverflowError) as cause:
            self._require(found)
            if isinstance(cause, OSError) and cause.errno is not None:  # of the system; Arrow's have no number
                raise path_error("reading", found.name, cause) from cause
            raise InputError(f"{found.name} is no whole Parquet file ({cause}); write it again") from cause


def _split_table(parquet: pq.ParquetFile, start: int, most_rows: int) -> Iterator[pa.Table]:
    """Yield tables of at most so many rows, after the first `start` rows; an empty one for an empty file."""
    total, held = parquet.metadata.num_rows, list[pa.RecordBatch]()
    if not total:
        yield parquet.read()
    row = n_held = 0
    for batch in parquet.iter_batches(batch_size=most_rows):
        fresh = batch.slice(min(len(batch), max(0, start - row)))
        row += len(batch)
        while len(fresh):
            part = fresh.slice(0, most_rows - n_held)
            held.append(part)
            n_held += len(part)
            fresh = fresh.slice(len(part))
            if n_held == most_rows or (row == total and not len(fresh)):
                yield pa.Table.from_batches(held)
                held, n_held = [], 0


def _name_inputs(name: str, table: pa.Table) -> BatchInputs:
    """Return a table as what its name says."""
    if name.endswith(".gone.parquet"):
        return BatchInputs(gone=table)
    return BatchInputs(queries=table) if name.endswith(".queries.parquet") else BatchInputs(items=table)
