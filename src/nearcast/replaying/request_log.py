"""Request logs: a Parquet file with a row per request, its keys, time, fields, and the ids engaged with afterwards.

Reads no store, and does not know how requests are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.sources.arrow_types import plain_type, refuse_twice
from nearcast.sources.parquet_files import open_parquet
from nearcast.sources.user_files import ChangedInputError
from nearcast.table.ad_columns import to_seconds

__all__ = ["LoggedRequest", "read_log"]

KEYS, WEIGHTS, TIME, ENGAGED, ENGAGED_ADS = "key", "weight", "time", "engaged", "engaged_ad"


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request of a log."""

    keys: Sequence[str | int]
    weights: Sequence[float] | None
    seconds: float | None  # since 1970
    request: Mapping[str, Any]  # the other columns, which targeting may use
    engaged: frozenset[Any]  # item ids
    engaged_ads: frozenset[Any]


def read_log(
    source: Path | str | pa.Table,
    *,
    sample: int | None = None,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> list[LoggedRequest]:
    """Return the requests of a log in its order, or a sample of them.

    Columns: `key`, an id or a list of ids; optional `weight` (a list, one per key), `time`, `engaged` and `engaged_ad`
    (an id or a list). All other columns are fields of the request. note: called with messages about skipped files.
    Raises InputError if the log is invalid, or changes while it is read.
    """
    table = source if isinstance(source, pa.Table) else _read_parquet(source, note)
    if KEYS not in table.column_names:
        raise InputError(f"the log has no column {KEYS!r}; it has {', '.join(table.column_names) or 'none'}")
    refuse_twice(table.column_names, table.column_names, "the log")
    for name in (KEYS, ENGAGED, ENGAGED_ADS, WEIGHTS):
        if name in table.column_names:
            _check_type(table.schema.field(name).type, name)
    table = table.filter(pc.is_valid(table.column(KEYS)))
    if len(table) == 0:
        raise InputError("the log holds no request with a key")
    if sample is not None and sample < len(table):
        rows = np.sort(np.random.default_rng(seed).choice(len(table), sample, replace=False))
        table = table.take(pa.array(rows))
    columns = {name: _read_values(table.column(name), name) for name in table.column_names}
    return [_read_request(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _check_type(kind: pa.DataType, name: str) -> None:
    """Raise InputError if a column holds no ids, weights, or lists of them."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    plain = plain_type(kind.value_type) if is_list else plain_type(kind)
    if pa.types.is_null(plain) or pa.types.is_integer(plain):
        return
    if name == WEIGHTS:
        if not (pa.types.is_floating(plain) or pa.types.is_decimal(plain)):
            raise InputError(f"column {name!r} of the log is {kind}; weights are numbers, or lists of numbers")
    elif not (pa.types.is_string(plain) or pa.types.is_large_string(plain)):
        raise InputError(f"column {name!r} of the log is {kind}; ids are strings or integers, or lists of them")


def _read_values(column: pa.ChunkedArray, name: str) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise InputError(f"column {name!r} of the log holds a value that cannot be read: {error}") from error
    if name in (KEYS, WEIGHTS) and any(None in value for value in values if isinstance(value, list)):
        raise InputError(f"column {name!r} of the log has a list with null in it; leave the null out")
    return values


def _read_parquet(path: Path | str, note: Callable[[str], None] | None) -> pa.Table:
    try:
        log = open_parquet(path, Path(), "the log", "check the path of the log")
    except ChangedInputError:
        raise
    except InputError as error:
        raise InputError(f"the log cannot be read as Parquet: {error}") from error
    log.tell(note)
    return log.read()


def _read_request(row: dict[str, Any]) -> LoggedRequest:
    keys = _as_list(row.pop(KEYS))
    weights = row.pop(WEIGHTS, None)
    time = row.pop(TIME, None)
    engaged, engaged_ads = row.pop(ENGAGED, None), row.pop(ENGAGED_ADS, None)
    return LoggedRequest(
        keys=keys,
        weights=None if weights is None else [float(weight) for weight in _as_list(weights)],
        seconds=None if time is None else to_seconds(time),
        request=row,
        engaged=frozenset(_as_list(engaged)),
        engaged_ads=frozenset(_as_list(engaged_ads)),
    )


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
