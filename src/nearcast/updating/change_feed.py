"""The contract of a change feed: a source of batches with an offset, which `nearcast follow` applies.

`file_feed` follows Parquet files, `table_feed` the versions of a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from nearcast.errors import InputError
from nearcast.updating.read_batch import BatchInputs

__all__ = ["ChangeFeed", "FeedBatch"]


@dataclass(frozen=True, slots=True, eq=False)
class FeedBatch:
    """A batch of a feed, or the error that reading it raised."""

    name: str  # for messages
    offset: Any  # JSON data: where to read on after the batch
    arrived: float  # seconds since 1970
    rows: int
    inputs: BatchInputs
    error: InputError | None = None
    offset_if_refused: Any = None  # where to read on if the batch is refused; None: at `offset`


class ChangeFeed(Protocol):
    """A source of batches. Reading again from an offset yields what has not been applied yet."""

    name: str  # key of the offset in the store

    def read(self, offset: Any) -> Iterator[FeedBatch]:
        """Yield the batches that have arrived after an offset, in the order to apply them; None: from the beginning.

        Lazily: a batch is read when it is asked for. Raises StorageError or AccessError if the source fails.
        """
        ...

    def oldest_waiting(self, offset: Any) -> float | None:
        """Return when the oldest batch after an offset arrived; None if there is none."""
        ...
