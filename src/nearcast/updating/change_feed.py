"""Change feeds: where `nearcast follow` reads batches from. One implementation: Parquet files in a folder or bucket.

A feed yields batches after an offset, oldest first, each with the offset after it. Offsets are JSON, and are stored
with the patch that a batch became. Change feeds of Delta, Iceberg or Lance tables would be further implementations.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.errors import InputError, NotFoundError, SpecError
from nearcast.storage.base import Storage, StoredObject
from nearcast.storage.open_storage import is_url, open_storage
from nearcast.updating.read_batch import BatchInputs

__all__ = ["ChangeFeed", "FeedBatch", "FileFeed"]

MAGIC = b"PAR1"
WRITING_SECONDS = 60.0  # a file without its end counts as being written for so long after its last change


@dataclass(frozen=True, slots=True, eq=False)
class FeedBatch:
    """A batch of a feed, or the error that reading it raised."""

    name: str  # for messages
    offset: Any  # after the batch
    arrived: float  # seconds since 1970
    rows: int
    inputs: BatchInputs
    error: InputError | None = None


class ChangeFeed(Protocol):
    """A source of batches. Reading again from an offset yields the same batches."""

    name: str  # key of the offset in the patches

    def read(self, offset: Any) -> Iterator[FeedBatch]:
        """Yield the batches after an offset, oldest first; None: from the beginning."""
        ...

    def oldest_waiting(self, offset: Any) -> float | None:
        """Return when the oldest batch after an offset arrived; None if there is none."""
        ...


class FileFeed:
    """Parquet files of a folder or bucket, in the order of their names, each one batch.

    `NAME.parquet` holds items, `NAME.gone.parquet` ids of removed items, `NAME.queries.parquet` queries. The offset is
    the last name. A name must sort after all earlier ones. Names that begin with a dot or underscore are not read.
    """

    def __init__(self, source: str) -> None:
        if not is_url(source) and not Path(source).is_dir():
            raise SpecError(
                f"the source must be a folder or a location in a bucket, and {source} is no folder; create it"
            )
        self._storage: Storage = open_storage(source)
        self.name = self._storage.url

    def read(self, offset: Any) -> Iterator[FeedBatch]:
        """Yield the files after an offset, up to the first that is still being written."""
        for found in self._list_after(offset):
            batch = self._read_file(found)
            if batch is None:
                return
            yield batch

    def oldest_waiting(self, offset: Any) -> float | None:
        """Return the modification time of the next file."""
        waiting = self._list_after(offset)
        return waiting[0].modified if waiting else None

    def _list_after(self, offset: Any) -> list[StoredObject]:
        found = [
            one
            for one in self._storage.list_objects()
            if one.name.endswith(".parquet")
            and "/" not in one.name
            and PurePosixPath(one.name).name[0] not in "._"
            and (offset is None or one.name > offset)
        ]
        return sorted(found, key=lambda one: one.name)

    def _read_file(self, found: StoredObject) -> FeedBatch | None:
        """Return the batch of a file; None if it is still being written."""
        try:
            data = self._storage.read(found.name)
        except NotFoundError:
            return None
        whole = len(data) > 2 * len(MAGIC) and data[: len(MAGIC)] == MAGIC and data[-len(MAGIC) :] == MAGIC
        if not whole and time.time() - found.modified < WRITING_SECONDS:
            return None
        rows, inputs, error = 0, BatchInputs(), None
        try:
            table = pq.read_table(pa.BufferReader(data))
            rows, inputs = len(table), _name_inputs(found.name, table)
        except (pa.ArrowException, OSError) as cause:
            error = InputError(f"{found.name} is no whole Parquet file ({cause}); write it again under a later name")
        return FeedBatch(found.name, found.name, found.modified, rows, inputs, error)


def _name_inputs(name: str, table: pa.Table) -> BatchInputs:
    """Return a table as what its name says."""
    if name.endswith(".gone.parquet"):
        return BatchInputs(gone=table)
    return BatchInputs(queries=table) if name.endswith(".queries.parquet") else BatchInputs(items=table)
