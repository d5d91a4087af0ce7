"""Read the ids of removed items: from a text or Parquet file, a bucket, a table with versions, or memory.

Ids come out sorted and distinct, in the type of the served version's. Knows nothing of vectors.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.errors import InputError
from nearcast.settings.spec_tables import TABLE_LOCATION
from nearcast.sources.arrow_types import plain_column
from nearcast.sources.column_roles import id_array, plain_id_type
from nearcast.sources.ids import are_distinct, argsort_ids
from nearcast.sources.memory_tables import is_table
from nearcast.sources.open_table import open_table
from nearcast.sources.parquet_listing import open_user_file
from nearcast.sources.pinned_table import PinnedReader
from nearcast.sources.row_source import MAX_BATCH_ROWS
from nearcast.sources.user_files import ensure_unchanged
from nearcast.spec import SourceSpec

__all__ = ["read_removed_ids"]

INTEGER = re.compile("[+-]?[0-9]{1,40}")
PARQUET = b"PAR1"
IN_MEMORY = "the removed ids"


def read_removed_ids(source: SourceSpec, kind: pa.DataType, data: object | None) -> pa.Array:
    """Return sorted, distinct ids. Raises InputError that names the line for a text that is no id.

    data: a path, a URL, a table in memory, a column or an iterable of ids; None for no ids. kind: type of the ids.
    """
    if data is None:
        return pa.array([], kind)
    where = str(data) if isinstance(data, str | Path) else IN_MEMORY
    column = _read_ids(where, source.id, kind) if where is not IN_MEMORY else _list_ids(data, source)
    ids = plain_column(pa.chunked_array([column]) if isinstance(column, pa.Array) else column).combine_chunks()
    if len(ids) and plain_id_type(ids.type, where, source.id) not in (kind, pa.null()):
        raise InputError(f"{where} are {ids.type}, and the ids of the served version are {kind}; write one type")
    if ids.null_count:
        raise InputError(f"{where}: {ids.null_count:,} ids are null; leave them out")
    ids = ids.cast(kind) if len(ids) else pa.array([], kind)
    ids = ids.take(pa.array(argsort_ids(ids)))
    return ids if are_distinct(ids) else ids.unique()


def _list_ids(data: object, source: SourceSpec) -> pa.Array | pa.ChunkedArray:
    """Return the ids of a table, a column or an iterable in memory."""
    if isinstance(data, pa.Array | pa.ChunkedArray):
        return data
    try:
        if is_table(data) and hasattr(data, "columns"):  # a column of a frame has none
            return _pick_column(_to_arrow(data), source.id, IN_MEMORY)
        if isinstance(data, bytes | Mapping) or not isinstance(data, Iterable):
            raise InputError(f"{IN_MEMORY} must be ids or a file of them, got {data!r}; give one id as a list")
        values = [value.item() if isinstance(value, np.generic) else value for value in data]
        is_nested = any(isinstance(value, list | tuple | np.ndarray) for value in values)
        return id_array(np.asarray(values), IN_MEMORY) if is_nested else pa.array(values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{IN_MEMORY} are not of one type ({error}); give strings or integers") from error


def _to_arrow(data: Any) -> pa.Table:
    if type(data).__module__.startswith("pandas"):
        return pa.Table.from_pandas(data, preserve_index=False)
    return pa.table(data)


def _read_ids(where: str, column: str, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if TABLE_LOCATION.fullmatch(where):
        opened = open_table(where, None, Path())
        if column not in opened.schema.names:
            raise _make_column_error(opened.name, column, opened.schema.names)
        tables = list(PinnedReader(opened).read([column], MAX_BATCH_ROWS))
        return pa.concat_tables([pa.schema([opened.schema.field(column)]).empty_table(), *tables]).column(column)
    file = open_user_file(where, Path(), "gone", "check the path of the removed ids")
    try:
        with ensure_unchanged([file]):
            data = file.read()
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}; check the path") from error
    if data[: len(PARQUET)] != PARQUET:
        return _parse_lines(data, where, kind)
    try:
        return _pick_column(pq.read_table(pa.BufferReader(data)), column, where)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where} is no whole Parquet file ({error}); write it again") from error


def _parse_lines(data: bytes, where: str, kind: pa.DataType) -> pa.Array:
    """Return the ids of a text, one per line; empty lines are skipped."""
    try:
        text = io.StringIO(data.decode("utf-8-sig"), newline=None)  # an id may hold a separator that is no line end
        lines = [line.strip() for line in text]
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is neither Parquet nor text in UTF-8 ({error}); write one id per line") from error
    if not pa.types.is_integer(kind):
        return pa.array([line for line in lines if line], kind)
    numbers = []
    for row, line in enumerate(lines):
        if line and not INTEGER.fullmatch(line):  # `int` takes 1_000 too
            raise InputError(f"{where} line {row + 1} is {line[:40]!r}, and ids are integers")
        numbers += [int(line)] if line else []
    try:
        return pa.array(numbers, kind)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise InputError(f"{where}: an id does not fit int64 ({error})") from error


def _pick_column(table: pa.Table, column: str, where: str) -> pa.ChunkedArray:
    if column in table.column_names:
        return table.column(column)
    if not len(table):
        return pa.chunked_array([], pa.null())
    raise _make_column_error(where, column, table.column_names)


def _make_column_error(where: str, column: str, names: Sequence[str]) -> InputError:
    return InputError(f"{where}: there is no column {column!r}; the columns are {', '.join(names)}")
