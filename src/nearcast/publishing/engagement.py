"""Compute a weight table from an engagement log: per key, the items with the largest weights.

Arrow tables in and out. A row of the log is one engagement; a row of the result is one key with its items, largest
weight first. Knows nothing of stores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError, SpecError
from nearcast.sources.arrow_types import plain_column, refuse_twice, to_microseconds
from nearcast.sources.parquet_files import open_parquet
from nearcast.stores.names import PHRASES, normalize_table_key

__all__ = ["LogColumns", "compute_weights", "convert_ids", "convert_seconds", "read_log"]

TOP = 50  # items per key
MOST_WEIGHT = 3e38  # largest float32
LEAST_WEIGHT = 1e-30  # smaller weights count as 0, and an item of weight 0 is left out


@dataclass(frozen=True, slots=True)
class LogColumns:
    """Columns of an engagement log, and how engagements are weighted."""

    key: str
    item: str
    weight: str | None = None  # weight of an engagement; None: 1
    time: str | None = None  # a timestamp, a date, or a number of seconds
    half_life_seconds: float | None = None  # weight is halved per this age; None: age does not matter
    top: int = TOP  # items kept per key

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return list(dict.fromkeys(name for name in (self.key, self.item, self.weight, self.time) if name is not None))


def read_log(path: Path | str, columns: LogColumns, note: Callable[[str], None] | None = None) -> pa.Table:
    """Read these columns of a Parquet file, a folder or a glob. Skipped files are reported to `note`.

    Raises InputError if a file or column is missing, or if a file changes while it is read.
    """
    log = open_parquet(path, Path(), "the log", "name a Parquet file of engagements, or a folder of them")
    log.tell(note)
    if missing := [name for name in columns.names if name not in log.schema.names]:
        raise _make_column_error(missing[0], log.schema.names, str(path))
    log.need_columns(columns.names)
    return log.read(columns.names)


def compute_weights(log: pa.Table, columns: LogColumns, table: str) -> pa.Table:
    """Return the weight table: columns key, items and weights, ascending by key; items by descending weight.

    weight(item) = sum of weight * 2 ** (-age / half life) over the engagements of key and item. Age is counted from the
    newest engagement of the log, so that the same log gives the same table at any time. Equal weights go to the smaller
    id. Keys of the table `phrases` are normalized, see `stores.names.normalize_table_key`. Rows without key or item are
    left out. Raises InputError if the log has no rows, lacks a column, or has ids that are neither text nor whole
    numbers; SpecError for invalid settings.
    """
    _validate(columns)
    if missing := [name for name in columns.names if name not in log.column_names]:
        raise _make_column_error(missing[0], log.column_names, "the log")
    refuse_twice(log.column_names, columns.names, "the log")
    log = pa.table({name: plain_column(log.column(name)) for name in columns.names})
    log = log.filter(pc.and_(pc.is_valid(log[columns.key]), pc.is_valid(log[columns.item])))
    if len(log) == 0:
        raise InputError("the log holds no engagement that has both a key and an item")
    keys, items = _convert_keys(log[columns.key], table), convert_ids(log[columns.item], columns.item)
    weights = _weight_engagements(log, columns)
    summed = (
        pa.table({"key": keys, "item": items, "weight": weights})
        .group_by(["key", "item"])
        .aggregate([("weight", "sum")])
        .sort_by([("key", "ascending"), ("weight_sum", "descending"), ("item", "ascending")])
        .combine_chunks()
    )
    return _take_top(summed.filter(pc.greater(summed["weight_sum"], LEAST_WEIGHT)), columns.top)


def _validate(columns: LogColumns) -> None:
    if columns.top < 1:
        raise SpecError(f"top is {columns.top}: keep one item of a key at least")
    if columns.half_life_seconds is not None and columns.time is None:
        raise SpecError("a half life needs to know when an engagement was: name the column of its time")
    if columns.half_life_seconds is not None and not columns.half_life_seconds > 0:
        raise SpecError(f"the half life is {columns.half_life_seconds} s: give a time above 0")


def _make_column_error(name: str, known: Sequence[str], where: str) -> InputError:
    return InputError(f"{where} has no column {name!r}; it has {', '.join(known)}")


def convert_ids(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Convert ids to int64 or string. Raises InputError for ids that are neither whole numbers nor text."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    try:
        if pa.types.is_integer(kind):
            return column.cast(kind).cast(pa.int64())
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            texts = column.cast(pa.string())
            texts.validate(full=True)
            return texts
    except pa.ArrowInvalid as error:
        raise InputError(f"the column {name} holds an id that cannot be one: {error}") from error
    raise InputError(f"the column {name} is of type {column.type}: ids are text or whole numbers")


def _convert_keys(column: pa.ChunkedArray, table: str) -> pa.ChunkedArray:
    ids = convert_ids(column, "of keys")
    if table != PHRASES:
        return ids
    coded = ids.cast(pa.string()).combine_chunks().dictionary_encode()
    written = pa.array([str(normalize_table_key(table, text)) for text in coded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([written.take(coded.indices)])


def _weight_engagements(log: pa.Table, columns: LogColumns) -> npt.NDArray[np.float64]:
    weights = np.ones(len(log))
    if columns.weight is not None:
        weights = _convert_numbers(log[columns.weight], columns.weight)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise InputError(f"the column {columns.weight} holds a weight that is no number, negative or missing")
    if columns.half_life_seconds is not None and columns.time is not None:
        seconds = convert_seconds(log[columns.time], columns.time)
        weights = weights * np.exp2((seconds - seconds.max()) / columns.half_life_seconds)
    return weights


def convert_seconds(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float64]:
    """Return the times of a column as seconds since 1970. Raises InputError."""
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        try:
            column = to_microseconds(column).cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise InputError(f"the column {name} holds a time that cannot be one: {error}") from error
        seconds = _convert_numbers(column, name) / 1e6
    elif pa.types.is_boolean(column.type):
        raise InputError(f"the column {name} is of type bool: a time is a timestamp, a date or a number of seconds")
    else:
        seconds = _convert_numbers(column, name)
    if not np.isfinite(seconds).all():
        raise InputError(f"the column {name} lacks a time; a half life needs that of every engagement")
    return seconds


def _convert_numbers(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float64]:
    if _is_text(column.type):
        raise InputError(f"the column {name} is of type {column.type}, and no numbers can be made of it; convert it")
    try:
        numbers: npt.NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    except pa.ArrowException as error:
        raise InputError(f"the column {name} is of type {column.type}, and no numbers can be made of it") from error
    return numbers


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _take_top(rows: pa.Table, top: int) -> pa.Table:
    """Return the first `top` rows of each key as lists. Rows are sorted by key."""
    if len(rows) == 0:
        raise InputError("no engagement of the log has a weight above 0")
    codes = rows["key"].combine_chunks().dictionary_encode()
    numbers = codes.indices.to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    rank = np.arange(len(numbers)) - starts[numbers]
    kept = rank < top
    counts = np.bincount(numbers[kept])
    offsets = pa.array(np.append(0, np.cumsum(counts)).astype(np.int32))
    chosen = rows.filter(pa.array(kept)).combine_chunks()
    heaviest = pc.max(chosen["weight_sum"]).as_py()
    if not heaviest <= MOST_WEIGHT:
        raise InputError(f"the weights of one key and item add up to {heaviest:g}; scale them to below {MOST_WEIGHT:g}")
    return pa.table(
        {
            "key": codes.dictionary,
            "items": pa.ListArray.from_arrays(offsets, chosen["item"].combine_chunks()),
            "weights": pa.ListArray.from_arrays(offsets, chosen["weight_sum"].combine_chunks().cast(pa.float32())),
        }
    )
