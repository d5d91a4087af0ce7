"""A log of requests: what was asked, when, what was known of the request, and what was engaged with afterwards.

A Parquet file with a row per request. Knows nothing of stores or of how requests are answered.
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
from nearcast.expansion.columns import seconds_of_time
from nearcast.sources.parquet_files import open_parquet
from nearcast.sources.user_files import ChangedInputError

__all__ = ["Logged", "read_log"]

KEYS, WEIGHTS, TIME, ENGAGED, ENGAGED_ADS = "key", "weight", "time", "engaged", "engaged_ad"


@dataclass(frozen=True, slots=True)
class Logged:
    """One request."""

    keys: Sequence[str | int]
    weights: Sequence[float] | None
    seconds: float | None  # since 1970
    request: Mapping[str, Any]  # the other columns: what targeting may ask
    engaged: frozenset[Any]  # items that were engaged with afterwards
    engaged_ads: frozenset[Any]


def read_log(
    source: Path | pa.Table,
    *,
    sample: int | None = None,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> list[Logged]:
    """The requests of a log, in its order, or a sample of them.

    Columns: `key`, an id or a list of ids; and where they are there `weight` (a list, one per key), `time`, `engaged`
    and `engaged_ad` (an id or a list). All others are fields of the request. note: told of files
    that were skipped. InputError for a log that is none, or changes while it is read.
    """
    table = source if isinstance(source, pa.Table) else _read(source, note)
    if KEYS not in table.column_names:
        raise InputError(f"the log has no column {KEYS!r}; it has {', '.join(table.column_names) or 'none'}")
    table = table.filter(pc.is_valid(table.column(KEYS)))
    if len(table) == 0:
        raise InputError("the log holds no request with a key")
    if sample is not None and sample < len(table):
        rows = np.sort(np.random.default_rng(seed).choice(len(table), sample, replace=False))
        table = table.take(pa.array(rows))
    return [_logged(row) for row in table.to_pylist()]


def _read(path: Path, note: Callable[[str], None] | None) -> pa.Table:
    try:
        log = open_parquet(path, Path(), "the log", "check the path of the log")
    except ChangedInputError:
        raise
    except InputError as error:
        raise InputError(f"the log cannot be read as Parquet: {error}") from error
    log.tell(note)
    return log.read()


def _logged(row: dict[str, Any]) -> Logged:
    keys = _several(row.pop(KEYS))
    weights = row.pop(WEIGHTS, None)
    time = row.pop(TIME, None)
    engaged, engaged_ads = row.pop(ENGAGED, None), row.pop(ENGAGED_ADS, None)
    return Logged(
        keys=keys,
        weights=None if weights is None else [float(weight) for weight in _several(weights)],
        seconds=None if time is None else seconds_of_time(time),
        request=row,
        engaged=frozenset(_several(engaged)),
        engaged_ads=frozenset(_several(engaged_ads)),
    )


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
