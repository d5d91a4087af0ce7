"""Copy a snapshot into a store: lists and items, one row group at a time, throttled, with checksums.

`compare_sample` compares the copy with rows of the snapshot. Knows nothing of audits and pointers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.errors import DamagedError
from nearcast.publishing.snapshot_rows import (
    SnapshotShape,
    count_payload,
    count_queries,
    iterate_items,
    iterate_lists,
    iterate_queries,
)
from nearcast.publishing.write_version import add_checksum
from nearcast.stores.base import Pair, Reader, Space, Writer
from nearcast.stores.value_format import (
    KEPT_OF_LONG,
    REASONS,
    decode_lists,
    encode_items,
    encode_keys,
    encode_lists,
    encode_query_key,
)
from nearcast.stores.version_facts import read_facts
from nearcast.table.snapshot import Snapshot
from nearcast.types import IntArray, Progress

__all__ = ["CopyFigures", "NullWriter", "Throttle", "compare_sample", "copy_snapshot"]

BURST_SECONDS = 0.1  # bytes of this time may pass at once after a pause
LARGEST_PIECE = 8 << 20
SMALLEST_PIECE = 1 << 12
SAMPLED_KEYS = 1_000
SAMPLED_GROUPS = 32  # row groups that are read for them


class Throttle:
    """A limit of bytes per second, as a token bucket. Call `take(n)` before sending n bytes. None: no limit."""

    def __init__(
        self,
        bytes_per_second: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._tokens = 0.0
        self._last: float | None = None

    @property
    def piece_bytes(self) -> int:
        """Bytes to send at a time for an even flow: those of a tenth of a second, at most 8 MB."""
        if self._rate is None:
            return LARGEST_PIECE
        return max(SMALLEST_PIECE, min(LARGEST_PIECE, int(self._rate * BURST_SECONDS)))

    def take(self, n: float) -> None:
        """Sleep until n more bytes may be sent."""
        if self._rate is None:
            return
        now = self._clock()
        if self._last is not None:
            self._tokens = min(self._rate * BURST_SECONDS, self._tokens + (now - self._last) * self._rate)
        self._last = now
        self._tokens -= n
        if self._tokens < 0:
            self._sleep(-self._tokens / self._rate)


@dataclass(frozen=True, slots=True)
class CopyFigures:
    """Counts, sizes and checksums of a copy."""

    keys: int
    items: int
    query_rows: int  # queries whose columns are stored beside the items, for rules at look-up
    bytes: int  # of keys and values
    payload_bytes: int  # of keys, ids and scores alone
    checksum: Mapping[str, int]  # by space


class NullWriter:
    """A writer that discards everything, for dry runs."""

    def put(self, space: Space, pairs: Sequence[Pair]) -> None:
        """Discard the pairs."""

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Do nothing."""

    def discard(self) -> None:
        """Do nothing."""


def copy_snapshot(
    snapshot: Snapshot,
    shape: SnapshotShape,
    writer: Writer,
    throttle: Throttle,
    progress: Progress,
    *,
    check_lock: Callable[[], None] = lambda: None,
) -> CopyFigures:
    """Write every list and every item. `check_lock` is called before each row group; its error ends the copy."""
    own_queries = shape.rules is not None and shape.rules["own_query_columns"]
    total = shape.keys + shape.items + (count_queries(snapshot) if own_queries else 0)
    counter = _CountingWriter(writer, throttle, progress, total)
    payload = 0
    for group in iterate_lists(snapshot):
        check_lock()
        payload += count_payload(group, shape)
        counter.put(Space.LISTS, *_encode_lists(group, shape))
    query_rows = 0
    if shape.rules is not None and own_queries:
        for batch in iterate_queries(snapshot, list(shape.rules["queries"])):
            check_lock()
            keys, values = _encode_items(batch)
            counter.put(Space.ITEMS, [encode_query_key(key) for key in keys], values)
        query_rows = counter.counts[Space.ITEMS]
    for batch in iterate_items(snapshot):
        check_lock()
        counter.put(Space.ITEMS, *_encode_items(batch))
    counts = counter.counts
    n_items = counts[Space.ITEMS] - query_rows
    return CopyFigures(counts[Space.LISTS], n_items, query_rows, counter.bytes, payload, dict(counter.sums))


def _encode_lists(group: pa.Table, shape: SnapshotShape) -> tuple[list[bytes], list[bytes]]:
    ids, lists, scores = (group.column(name).combine_chunks() for name in ("query_id", "candidate_ids", "scores"))
    reasons = group.column("reason")
    short = [None] * len(ids) if reasons.null_count == len(ids) else reasons.to_pylist()
    return _sort_pairs(encode_keys(ids), encode_lists(lists, scores, short, shape.id_kind))


def _encode_items(batch: pa.RecordBatch) -> tuple[list[bytes], list[bytes]]:
    table = pa.Table.from_batches([batch])
    columns = table.drop_columns(["id"])
    values = encode_items(columns) if columns.num_columns else [b"{}"] * len(table)
    return _sort_pairs(encode_keys(batch.column("id")), values)


def _sort_pairs(keys: list[bytes], values: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Sort by key. Rows are in order already, except long ids: their keys end in a hash."""
    if max(map(len, keys), default=0) <= KEPT_OF_LONG:
        return keys, values
    pairs = sorted(zip(keys, values, strict=True), key=itemgetter(0))
    return [key for key, _ in pairs], [value for _, value in pairs]


class _CountingWriter:
    """Writes pairs in pieces of the throttle's size; counts pairs, bytes and checksums."""

    def __init__(self, writer: Writer, throttle: Throttle, progress: Progress, total: int) -> None:
        self.bytes = 0
        self.counts = dict.fromkeys(Space, 0)
        self.sums = {str(space): 0 for space in Space}
        self._writer, self._throttle, self._progress, self._total = writer, throttle, progress, total

    def put(self, space: Space, keys: list[bytes], values: list[bytes]) -> None:
        """Write these pairs."""
        self.sums[space] = add_checksum(self.sums[space], keys, values)
        size = sum(map(len, keys)) + sum(map(len, values))
        self.bytes += size
        for start, stop in _split(len(keys), size, self._throttle.piece_bytes):
            self._throttle.take(size * (stop - start) / len(keys))
            self._writer.put(space, list(zip(keys[start:stop], values[start:stop], strict=True)))
            self.counts[space] += stop - start
            self._progress("copy", sum(self.counts.values()), self._total)


def _split(n: int, size: int, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of pieces of n pairs with about `piece_bytes` each."""
    step = max(1, int(n * piece_bytes / size)) if size else max(1, n)
    for start in range(0, n, step):
        yield start, min(n, start + step)


def compare_sample(reader: Reader, where: str, snapshot: Snapshot) -> None:
    """Raise DamagedError if a sampled list, decoded, differs from the snapshot's row."""
    numbers = _sample_rows(snapshot)
    if len(numbers) == 0:
        return
    rows = snapshot.rows(numbers)
    queries = rows.column("query_id").combine_chunks()
    lists = decode_lists(
        reader.get_many(Space.LISTS, encode_keys(queries)),
        read_facts(reader, snapshot.generator, snapshot.version).item_ids,
    )
    ids, scores, ends = lists.ids.to_pylist(), lists.scores.tolist(), lists.offsets.tolist()
    for at, row in enumerate(rows.to_pylist()):
        first, end = ends[at], ends[at + 1]
        held = (ids[first:end], scores[first:end], REASONS[lists.reasons[at]])
        if not lists.found[at] or held != (row["candidate_ids"], row[snapshot.score_column], row["reason"]):
            raise DamagedError(f"{where}: the list of {row['query_id']!r} is not that of snapshot {snapshot.name}")


def _sample_rows(snapshot: Snapshot) -> IntArray:
    """Return row numbers, ascending. The version is the random seed."""
    n, group_rows = snapshot.n_rows, snapshot.manifest.group_rows
    if n <= SAMPLED_KEYS:
        return np.arange(n)
    rng = np.random.default_rng([snapshot.version, n])
    groups = -(-n // group_rows)
    chosen = rng.choice(groups, size=min(groups, SAMPLED_GROUPS), replace=False)
    each = -(-SAMPLED_KEYS // len(chosen))
    sizes = [min(group_rows, n - int(group) * group_rows) for group in chosen]
    drawn = [
        int(group) * group_rows + rng.choice(size, size=min(size, each), replace=False)
        for group, size in zip(chosen, sizes, strict=True)
    ]
    return np.sort(np.concatenate(drawn))
