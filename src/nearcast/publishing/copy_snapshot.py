"""Copy a snapshot into a store's writer: lists and items, a row group at a time, under a throttle, with checksums.

Knows nothing of audits and pointers. What is written can be read back with `readback.py`.
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
    item_batches,
    list_groups,
    query_batches,
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
from nearcast.table.candidate_schema import rows_per_group
from nearcast.table.snapshot import Snapshot
from nearcast.types import IntArray, Progress

__all__ = ["CopyFigures", "NullWriter", "Throttle", "compare_sample", "copy_snapshot"]

BURST_SECONDS = 0.1  # bytes of this time may pass at once after a pause
LARGEST_PIECE = 8 << 20
SMALLEST_PIECE = 1 << 12
SAMPLED_KEYS = 1_000
SAMPLED_GROUPS = 32  # row groups that are read for them


class Throttle:
    """Lets so many bytes pass a second: `take(n)` before sending n bytes sleeps as long as it must. None: no limit."""

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
        """How much to send at a time, so that the flow is even: a tenth of a second's worth, 8 MB at most."""
        if self._rate is None:
            return LARGEST_PIECE
        return max(SMALLEST_PIECE, min(LARGEST_PIECE, int(self._rate * BURST_SECONDS)))

    def take(self, n: float) -> None:
        """Wait until n more bytes may pass."""
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
    """What was put into a store."""

    keys: int
    items: int
    query_rows: int  # columns of queries, which rules need at look-up; kept beside the items
    bytes: int  # of keys and values
    payload_bytes: int  # of keys, ids and scores alone
    checksum: Mapping[str, int]  # by space


class NullWriter:
    """A writer that keeps nothing: what a dry run copies into."""

    def put(self, space: Space, pairs: Sequence[Pair]) -> None:
        """Forget them."""

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Nothing is there to be finished."""

    def discard(self) -> None:
        """Nothing is there to be removed."""


def copy_snapshot(
    snapshot: Snapshot,
    shape: SnapshotShape,
    writer: Writer,
    throttle: Throttle,
    progress: Progress,
    *,
    still_ours: Callable[[], None] = lambda: None,
) -> CopyFigures:
    """Put every list and every item; `still_ours` is asked before each row group, and stops the copy by raising."""
    own_queries = shape.rules is not None and shape.rules["own_query_columns"]
    total = shape.keys + shape.items + (count_queries(snapshot) if own_queries else 0)
    counter = _Counter(writer, throttle, progress, total)
    payload = 0
    for group in list_groups(snapshot):
        still_ours()
        payload += count_payload(group, shape)
        counter.put(Space.LISTS, *_encoded(group, shape))
    query_rows = 0
    if shape.rules is not None and own_queries:
        for batch in query_batches(snapshot, list(shape.rules["queries"])):
            still_ours()
            keys, values = _encoded_items(batch)
            counter.put(Space.ITEMS, [encode_query_key(key) for key in keys], values)
        query_rows = counter.counts[Space.ITEMS]
    for batch in item_batches(snapshot):
        still_ours()
        counter.put(Space.ITEMS, *_encoded_items(batch))
    counts = counter.counts
    n_items = counts[Space.ITEMS] - query_rows
    return CopyFigures(counts[Space.LISTS], n_items, query_rows, counter.bytes, payload, dict(counter.sums))


def _encoded(group: pa.Table, shape: SnapshotShape) -> tuple[list[bytes], list[bytes]]:
    ids, lists, scores = (group.column(name).combine_chunks() for name in ("query_id", "candidate_ids", "scores"))
    reasons = group.column("reason")
    short = [None] * len(ids) if reasons.null_count == len(ids) else reasons.to_pylist()
    return _in_order(encode_keys(ids), encode_lists(lists, scores, short, shape.id_kind))


def _encoded_items(batch: pa.RecordBatch) -> tuple[list[bytes], list[bytes]]:
    table = pa.Table.from_batches([batch])
    columns = table.drop_columns(["id"])
    values = encode_items(columns) if columns.num_columns else [b"{}"] * len(table)
    return _in_order(encode_keys(batch.column("id")), values)


def _in_order(keys: list[bytes], values: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Ascending: rows are, but for long ids, whose keys end in a hash."""
    if max(map(len, keys), default=0) <= KEPT_OF_LONG:
        return keys, values
    pairs = sorted(zip(keys, values, strict=True), key=itemgetter(0))
    return [key for key, _ in pairs], [value for _, value in pairs]


class _Counter:
    """Puts pairs in pieces that the throttle asks for, and keeps count."""

    def __init__(self, writer: Writer, throttle: Throttle, progress: Progress, total: int) -> None:
        self.bytes = 0
        self.counts = dict.fromkeys(Space, 0)
        self.sums = {str(space): 0 for space in Space}
        self._writer, self._throttle, self._progress, self._total = writer, throttle, progress, total

    def put(self, space: Space, keys: list[bytes], values: list[bytes]) -> None:
        """Put these pairs."""
        self.sums[space] = add_checksum(self.sums[space], keys, values)
        size = sum(map(len, keys)) + sum(map(len, values))
        self.bytes += size
        for start, stop in _pieces(len(keys), size, self._throttle.piece_bytes):
            self._throttle.take(size * (stop - start) / len(keys))
            self._writer.put(space, list(zip(keys[start:stop], values[start:stop], strict=True)))
            self.counts[space] += stop - start
            self._progress("copy", sum(self.counts.values()), self._total)


def _pieces(n: int, size: int, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Stretches of n pairs of about so many bytes."""
    step = max(1, int(n * piece_bytes / size)) if size else max(1, n)
    for start in range(0, n, step):
        yield start, min(n, start + step)


def compare_sample(reader: Reader, where: str, snapshot: Snapshot) -> None:
    """DamagedError where a sampled list, decoded, differs from the snapshot's row."""
    numbers = _sample(snapshot)
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


def _sample(snapshot: Snapshot) -> IntArray:
    """Numbers of rows, ascending, drawn by the version's number."""
    n, group_rows = snapshot.n_rows, rows_per_group(snapshot.manifest.k)
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
