"""From an engagement log to a table of weights: for each key, the items that were engaged with most.

Arrow tables in and out: a row of the log is one engagement, a row of the result one key with its items, the heaviest
first. Knows nothing of stores.
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

__all__ = ["LogColumns", "most_engaged", "read_log"]

TOP = 50  # items of a key: more than a request has places for keys
MOST_WEIGHT = 3e38  # what a float32 can hold
LEAST_WEIGHT = 1e-30  # a float32 below this is as good as 0, and 0 is no weight


@dataclass(frozen=True, slots=True)
class LogColumns:
    """What the columns of a log are called, and how engagements are weighed."""

    key: str
    item: str
    weight: str | None = None  # what an engagement counts; None: 1
    time: str | None = None  # when it was: a timestamp, a date, or a number of seconds
    half_life_seconds: float | None = None  # an engagement that much older counts half; None: age does not matter
    top: int = TOP  # items of a key that are kept

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        return list(dict.fromkeys(name for name in (self.key, self.item, self.weight, self.time) if name is not None))


def read_log(path: Path, columns: LogColumns, note: Callable[[str], None] | None = None) -> pa.Table:
    """These columns of a Parquet file, of a folder of them, or of a glob. `note` is told of files that were skipped.

    InputError where there is no such file or column, and where a file changes while it is read.
    """
    log = open_parquet(path, Path(), "the log", "name a Parquet file of engagements, or a folder of them")
    log.tell(note)
    if missing := [name for name in columns.names if name not in log.schema.names]:
        raise _no_column(missing[0], log.schema.names, str(path))
    log.need_columns(columns.names)
    return log.read(columns.names)


def most_engaged(log: pa.Table, columns: LogColumns, table: str) -> pa.Table:
    """The heaviest items of each key: columns key, items and weights, ascending by key as a store orders them.

    An item's weight is the sum of weight * 2 ** (-age / half life) over the engagements of key and item, where the age
    is counted from the newest engagement of the log: the same log gives the same table at any time. Of equal
    weights the smaller id is first. Keys of the table `phrases` are written as `stores.tables.table_key` has them. Rows
    without key or item are left out. Raises InputError for a log without rows, a column that there is not, or ids
    that are neither text nor whole numbers; SpecError for settings that cannot be.
    """
    _check(columns)
    if missing := [name for name in columns.names if name not in log.column_names]:
        raise _no_column(missing[0], log.column_names, "the log")
    refuse_twice(log.column_names, columns.names, "the log")
    log = pa.table({name: plain_column(log.column(name)) for name in columns.names})
    log = log.filter(pc.and_(pc.is_valid(log[columns.key]), pc.is_valid(log[columns.item])))
    if len(log) == 0:
        raise InputError("the log holds no engagement that has both a key and an item")
    keys, items = _keys(log[columns.key], table), _ids(log[columns.item], columns.item)
    weights = _weights(log, columns)
    summed = (
        pa.table({"key": keys, "item": items, "weight": weights})
        .group_by(["key", "item"])
        .aggregate([("weight", "sum")])
        .sort_by([("key", "ascending"), ("weight_sum", "descending"), ("item", "ascending")])
        .combine_chunks()
    )
    return _first_of_each(summed.filter(pc.greater(summed["weight_sum"], LEAST_WEIGHT)), columns.top)


def _check(columns: LogColumns) -> None:
    if columns.top < 1:
        raise SpecError(f"top is {columns.top}: keep one item of a key at least")
    if columns.half_life_seconds is not None and columns.time is None:
        raise SpecError("a half life needs to know when an engagement was: name the column of its time")
    if columns.half_life_seconds is not None and not columns.half_life_seconds > 0:
        raise SpecError(f"the half life is {columns.half_life_seconds} s: give a time above 0")


def _no_column(name: str, known: Sequence[str], where: str) -> InputError:
    return InputError(f"{where} has no column {name!r}; it has {', '.join(known)}")


def _ids(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Ids as int64 or string."""
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


def _keys(column: pa.ChunkedArray, table: str) -> pa.ChunkedArray:
    ids = _ids(column, "of keys")
    if table != PHRASES:
        return ids
    coded = ids.cast(pa.string()).combine_chunks().dictionary_encode()
    written = pa.array([str(normalize_table_key(table, text)) for text in coded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([written.take(coded.indices)])


def _weights(log: pa.Table, columns: LogColumns) -> npt.NDArray[np.float64]:
    weights = np.ones(len(log))
    if columns.weight is not None:
        weights = _numbers(log[columns.weight], columns.weight)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise InputError(f"the column {columns.weight} holds a weight that is no number, negative or missing")
    if columns.half_life_seconds is not None and columns.time is not None:
        seconds = _seconds(log[columns.time], columns.time)
        weights = weights * np.exp2((seconds - seconds.max()) / columns.half_life_seconds)
    return weights


def _seconds(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float64]:
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        try:
            column = to_microseconds(column).cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise InputError(f"the column {name} holds a time that cannot be one: {error}") from error
        seconds = _numbers(column, name) / 1e6
    elif pa.types.is_boolean(column.type):
        raise InputError(f"the column {name} is of type bool: a time is a timestamp, a date or a number of seconds")
    else:
        seconds = _numbers(column, name)
    if not np.isfinite(seconds).all():
        raise InputError(f"the column {name} lacks a time; a half life needs that of every engagement")
    return seconds


def _numbers(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float64]:
    if _is_text(column.type):
        raise InputError(f"the column {name} is of type {column.type}, and no numbers can be made of it; convert it")
    try:
        numbers: npt.NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    except pa.ArrowException as error:
        raise InputError(f"the column {name} is of type {column.type}, and no numbers can be made of it") from error
    return numbers


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _first_of_each(rows: pa.Table, top: int) -> pa.Table:
    """The first rows of each key, as lists. The rows are sorted by key."""
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
