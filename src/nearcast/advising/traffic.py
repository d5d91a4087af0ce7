"""Read a log of requests or engagements into traffic per key and day. Streams the log and keeps only the counts.

Knows nothing of vectors and costs.
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
MERGE_ROWS = 1 << 20  # counted rows that are merged at once: some tens of megabytes
COPIES = 4  # of the merged counts while they are merged and ordered
DEFAULT_MEMORY = 2 << 30
COUNTED = "key, day and requests"


@dataclass(frozen=True, slots=True)
class Day:
    """The traffic of one day."""

    name: str  # for example 2026-11-25, or the number in the log
    keys: IntArray  # (any,) indices into the keys of the traffic
    requests: Float64Array  # the same shape


@dataclass(frozen=True, slots=True)
class Traffic:
    """The number of requests of each key; the most requested key first, equal ones by key."""

    keys: pa.Array  # (n,) int64 or large_string
    requests: Float64Array  # (n,) above 0
    days: tuple[Day, ...]  # in order; empty without a column of times
    rows: int  # of the log
    without_key: int  # rows without a key, which are ignored

    @property
    def total(self) -> float:
        """All requests."""
        return float(self.requests.sum())


def read_traffic(
    path: Path | str,
    *,
    key: str = "key",
    time: str | None = None,
    count: str | None = None,
    memory_bytes: int = DEFAULT_MEMORY,
    progress: Progress = no_progress,
    note: Callable[[str], None] | None = None,
) -> Traffic:
    """Count the requests of each key, and of each day if the log has times.

    path: a Parquet file, a folder of them, a glob, or a URL. key: column of integers or strings. time: column of
    timestamps (days are UTC), dates, ISO 8601 text, or whole numbers of days or weeks. count: column of counts;
    default: each row is one request. note: called with messages about skipped files. Memory grows with the number of
    keys per day, not with the rows. Raises BudgetError beyond `memory_bytes`, InputError for a missing column, a type
    that is no key or time, or a count below 0.
    """
    data = open_parquet(path, Path(), "the log", "check the path of the log")
    data.tell(note)
    columns = list(dict.fromkeys(name for name in (key, time, count) if name is not None))
    data.need_columns(columns)
    total, done = data.n_rows, 0
    merged: pa.Table | None = None
    waiting: list[pa.Table] = []
    without_key = 0
    for batch in data.batches(columns, BATCH_ROWS):
        rows = _read_rows(batch, key, time, count, path)
        without_key += len(batch) - len(rows)
        waiting.append(_count_rows(rows))
        done += len(batch)
        if sum(len(part) for part in waiting) >= max(MERGE_ROWS, 0 if merged is None else len(merged)):
            merged, waiting = _merge_counts(merged, waiting, memory_bytes, path), []
        progress("read log", done, total)
    merged = _merge_counts(merged, waiting, memory_bytes, path)
    if merged is None or not len(merged):
        raise InputError(
            f"{path} holds no requests: {total:,} rows, {without_key:,} without a key; check --key and the path"
        )
    format_day = None if time is None else str if pa.types.is_integer(data.schema.field(time).type) else _format_date
    return _sort_traffic(merged, format_day, total, without_key)


def _read_rows(batch: pa.RecordBatch, key: str, time: str | None, count: str | None, path: Path | str) -> pa.Table:
    """Return key, day and requests of the rows with a key."""
    days = pa.array(np.zeros(len(batch), np.int64)) if time is None else _read_days(batch.column(time), time, path)
    times = pa.array(np.ones(len(batch))) if count is None else _read_counts(batch.column(count), count, path)
    table = pa.table({"key": _read_keys(batch.column(key), key, path), "day": days, "requests": times})
    return table.filter(pc.and_(pc.is_valid(table["key"]), pc.is_valid(table["day"])))


def _read_keys(column: pa.Array, name: str, path: Path | str) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise InputError(f"{path}: keys in {name!r} do not fit int64 ({error}); store them as strings") from error
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(kind).cast(pa.large_string())
    raise InputError(f"{path}: keys in {name!r} are {kind}; keys are strings or integers, like the ids of queries")


def _read_days(column: pa.Array, name: str, path: Path | str) -> pa.Array:
    """Return days since 1970, or the whole numbers of the column."""
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
            return _read_days(column.cast(pa.timestamp("us")), name, path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: times in {name!r} cannot be read ({error}); write timestamps or dates") from error
    raise InputError(f"{path}: times in {name!r} are {kind}; they are timestamps, dates, or whole numbers of days")


def _read_counts(column: pa.Array, name: str, path: Path | str) -> pa.Array:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(f"{path}: counts in {name!r} are {column.type}; a count is a number of 0 or more")
    values = pc.fill_null(column.cast(pa.float64(), safe=False), 0.0).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(bad):
        raise InputError(f"{path}: {name!r} holds {values[bad[0]]:g}; a count is a number of 0 or more")
    return pa.array(values)


def _count_rows(rows: pa.Table) -> pa.Table:
    found = rows.group_by(["key", "day"], use_threads=False).aggregate([("requests", "sum")])
    return (
        found.rename_columns(["key", "day", "requests"]) if found.column_names[0] == "key" else _rename_columns(found)
    )


def _rename_columns(found: pa.Table) -> pa.Table:
    """Rename the columns of an older Arrow, which puts the sums first."""
    return found.select(["key", "day", "requests_sum"]).rename_columns(["key", "day", "requests"])


def _merge_counts(
    merged: pa.Table | None, waiting: list[pa.Table], memory_bytes: int, path: Path | str
) -> pa.Table | None:
    parts = [part for part in (merged, *waiting) if part is not None]
    if not parts:
        return None
    found = _count_rows(pa.concat_tables(parts))
    if COPIES * found.nbytes > memory_bytes:
        raise BudgetError(
            f"{path}: {len(found):,} counts of {COUNTED} take {COPIES * found.nbytes / 1e6:,.0f} MB, and "
            f"the budget is {memory_bytes / 1e6:,.0f} MB; give more memory, fewer days, or leave the time out"
        )
    return found


def _format_date(number: int) -> str:
    return str(datetime.date(1970, 1, 1) + datetime.timedelta(days=number))


def _sort_traffic(merged: pa.Table, format_day: Callable[[int], str] | None, rows: int, without_key: int) -> Traffic:
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
            Day(format_day(int(number)), place[codes[numbers == number]], counts[numbers == number])
            for number in np.unique(numbers)
        )
        if format_day
        else ()
    )
    return Traffic(encoded.dictionary.take(pa.array(order)), totals[order], days, rows, without_key)
