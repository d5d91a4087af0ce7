"""Read a log of requests or engagements into traffic per key and day. Streams: what is kept is what was counted.

Knows nothing of vectors, or of what the traffic is wanted for.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import BudgetError, InputError
from nearcast.sources.arrow_types import to_microseconds
from nearcast.sources.parquet_files import open_parquet
from nearcast.types import IntArray, Progress, no_progress

__all__ = ["Day", "Traffic", "read_traffic"]

Float64Array = npt.NDArray[np.float64]

BATCH_ROWS = 1 << 17
MERGE_ROWS = 1 << 20  # counted rows that wait to be merged: some tens of megabytes
COPIES = 4  # of the merged counts while they are merged and ordered
DEFAULT_MEMORY = 2 << 30
MEANT = "key, day and requests"


@dataclass(frozen=True, slots=True)
class Day:
    """The traffic of one day."""

    name: str  # such as 2026-11-25, or the number that the log gives
    keys: IntArray  # (any,) places among the keys of the traffic
    requests: Float64Array  # the same shape


@dataclass(frozen=True, slots=True)
class Traffic:
    """How often each key was asked for; the most asked first, equal ones by key."""

    keys: pa.Array  # (n,) int64 or large_string
    requests: Float64Array  # (n,) above 0
    days: tuple[Day, ...]  # in order; none without a column of times
    rows: int  # of the log
    without_key: int  # rows that were left out

    @property
    def total(self) -> float:
        """All requests."""
        return float(self.requests.sum())


def read_traffic(
    path: Path,
    *,
    key: str = "key",
    time: str | None = None,
    count: str | None = None,
    memory_bytes: int = DEFAULT_MEMORY,
    progress: Progress = no_progress,
    note: Callable[[str], None] | None = None,
) -> Traffic:
    """Count the requests of each key, and of each day where the log has times.

    path: a Parquet file, a folder of them or a glob. key: column of integers or strings. time: timestamps (days are
    UTC), dates, ISO 8601 text, or whole numbers of days or weeks. count: column with how often; once a row without.
    note: told of files that were skipped.
    Memory grows with the different keys of a day, not with the rows: BudgetError beyond `memory_bytes`. InputError
    for a missing column, a type that is no key or time, or a count below 0.
    """
    data = open_parquet(path, Path(), "the log", "check the path of the log")
    data.tell(note)
    columns = list(dict.fromkeys(name for name in (key, time, count) if name is not None))
    data.need_columns(columns)
    total, done = data.n_rows, 0
    merged: pa.Table | None = None
    waiting: list[pa.Table] = []
    lost = 0
    for batch in data.batches(columns, BATCH_ROWS):
        rows = _rows(batch, key, time, count, path)
        lost += len(batch) - len(rows)
        waiting.append(_counted(rows))
        done += len(batch)
        if sum(len(part) for part in waiting) >= max(MERGE_ROWS, 0 if merged is None else len(merged)):
            merged, waiting = _merged(merged, waiting, memory_bytes, path), []
        progress("read log", done, total)
    merged = _merged(merged, waiting, memory_bytes, path)
    if merged is None or not len(merged):
        raise InputError(f"{path} holds no requests: {total:,} rows, {lost:,} without a key; check --key and the path")
    named = None if time is None else str if pa.types.is_integer(data.schema.field(time).type) else _date
    return _traffic(merged, named, total, lost)


def _rows(batch: pa.RecordBatch, key: str, time: str | None, count: str | None, path: Path) -> pa.Table:
    """key, day and requests of the rows that have a key."""
    days = pa.array(np.zeros(len(batch), np.int64)) if time is None else _days(batch.column(time), time, path)
    times = pa.array(np.ones(len(batch))) if count is None else _requests(batch.column(count), count, path)
    table = pa.table({"key": _keys(batch.column(key), key, path), "day": days, "requests": times})
    return table.filter(pc.and_(pc.is_valid(table["key"]), pc.is_valid(table["day"])))


def _keys(column: pa.Array, name: str, path: Path) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise InputError(f"{path}: keys in {name!r} do not fit int64 ({error}); store them as strings") from error
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(kind).cast(pa.large_string())
    raise InputError(f"{path}: keys in {name!r} are {kind}; keys are strings or integers, as the ids of queries are")


def _days(column: pa.Array, name: str, path: Path) -> pa.Array:
    """Days since 1970, or the numbers that are there."""
    kind = column.type
    try:
        if pa.types.is_integer(kind):
            return column.cast(pa.int64())
        if pa.types.is_timestamp(kind):
            return (
                to_microseconds(column)
                .cast(pa.timestamp("us"))
                .cast(pa.date32(), safe=False)
                .cast(pa.int32())
                .cast(pa.int64())
            )
        if pa.types.is_date(kind):
            return column.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return _days(column.cast(pa.timestamp("us")), name, path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: times in {name!r} cannot be read ({error}); write timestamps or dates") from error
    raise InputError(f"{path}: times in {name!r} are {kind}; they are timestamps, dates, or whole numbers of days")


def _requests(column: pa.Array, name: str, path: Path) -> pa.Array:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(f"{path}: counts in {name!r} are {column.type}; a count is a number of 0 or more")
    values = pc.fill_null(column.cast(pa.float64(), safe=False), 0.0).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(bad):
        raise InputError(f"{path}: {name!r} holds {values[bad[0]]:g}; a count is a number of 0 or more")
    return pa.array(values)


def _counted(rows: pa.Table) -> pa.Table:
    found = rows.group_by(["key", "day"], use_threads=False).aggregate([("requests", "sum")])
    return found.rename_columns(["key", "day", "requests"]) if found.column_names[0] == "key" else _renamed(found)


def _renamed(found: pa.Table) -> pa.Table:
    """Older Arrow puts the sums first."""
    return found.select(["key", "day", "requests_sum"]).rename_columns(["key", "day", "requests"])


def _merged(merged: pa.Table | None, waiting: list[pa.Table], memory_bytes: int, path: Path) -> pa.Table | None:
    parts = [part for part in (merged, *waiting) if part is not None]
    if not parts:
        return None
    found = _counted(pa.concat_tables(parts))
    if COPIES * found.nbytes > memory_bytes:
        raise BudgetError(
            f"{path}: {len(found):,} counts of {MEANT} take {COPIES * found.nbytes / 1e6:,.0f} MB and "
            f"{memory_bytes / 1e6:,.0f} MB are given; give more memory, fewer days, or leave the time out"
        )
    return found


def _date(number: int) -> str:
    return str(datetime.date(1970, 1, 1) + datetime.timedelta(days=number))


def _traffic(merged: pa.Table, named: Callable[[int], str] | None, rows: int, lost: int) -> Traffic:
    merged = merged.filter(pc.greater(merged["requests"], 0.0)).combine_chunks()
    encoded = merged["key"].combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    counts = merged["requests"].to_numpy()
    totals = np.bincount(codes, weights=counts, minlength=len(encoded.dictionary))
    by_key = pc.sort_indices(encoded.dictionary).to_numpy()  # so that equal counts are in the order of their keys
    order = by_key[np.argsort(-totals[by_key], kind="stable")]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    numbers = merged["day"].to_numpy()
    days = (
        tuple(
            Day(named(int(number)), place[codes[numbers == number]], counts[numbers == number])
            for number in np.unique(numbers)
        )
        if named
        else ()
    )
    return Traffic(encoded.dictionary.take(pa.array(order)), totals[order], days, rows, lost)
