"""Conversion of Arrow columns to plain types: no views, dictionaries, run-length encodings or extension types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError

__all__ = ["check_storable", "plain_column", "plain_type", "refuse_twice", "to_microseconds"]

NO_PARQUET = (pa.types.is_interval, pa.types.is_union)
YEARS = (-62_135_596_800, 253_402_300_799)  # seconds of the years 1 to 9999, which ISO 8601 has
DAY = 86_400  # seconds
PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def check_storable(name: str, column: pa.ChunkedArray[Any]) -> None:
    """Raise InputError if a snapshot or store cannot hold a column: by its type, text or times, nested ones too."""
    kind = column.type
    if any(test(kind) for test in NO_PARQUET):
        raise InputError(f"column {name!r} is of type {kind}, which snapshots cannot hold; convert it, or leave it out")
    for values in _list_nested(column):
        check_storable(name, values)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise InputError(f"column {name!r} holds text that is not UTF-8 ({error}); write it as UTF-8") from error
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        is_day = pa.types.is_date32(kind)
        ends = pc.min_max(column.cast(pa.int32() if is_day else pa.int64())).as_py()
        unit = PER_SECOND[getattr(kind, "unit", "ms")]
        bounds = [bound // DAY if is_day else bound * unit for bound in YEARS]
        if ends["min"] is not None and not bounds[0] <= ends["min"] <= ends["max"] <= bounds[1]:
            raise InputError(f"column {name!r} holds a time before the year 1 or after 9999; leave it null for none")


def _list_nested(column: pa.ChunkedArray[Any]) -> list[pa.ChunkedArray[Any]]:
    """Return the columns in a column of structs, lists or maps, plain; none in another one."""
    kind, types = column.type, pa.types
    if types.is_struct(kind):
        found = column.flatten()
    elif types.is_map(kind):
        found = [pa.chunked_array([chunk.keys for chunk in column.chunks], kind.key_type)]
        found += [pa.chunked_array([chunk.items for chunk in column.chunks], kind.item_type)]
    elif hasattr(kind, "value_type") and not types.is_dictionary(kind) and not types.is_run_end_encoded(kind):
        found = [pc.list_flatten(column)]
    else:
        return []
    return [plain_column(values) for values in found]


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the plain type of the values of a column type."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def plain_column(column: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any]:
    """Convert a column to its plain type."""
    kind = plain_type(column.type)
    if isinstance(column.type, pa.BaseExtensionType):
        return plain_column(pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type))
    if pa.types.is_run_end_encoded(column.type):
        decoded = [pc.run_end_decode(chunk) for chunk in column.chunks]
        return plain_column(pa.chunked_array(decoded, column.type.value_type))
    if pa.types.is_dictionary(column.type):
        return pa.chunked_array([c.dictionary.cast(kind).take(c.indices) for c in column.chunks], kind)
    return column.cast(kind)


def refuse_twice(names: Sequence[str], required: Sequence[str], what: str) -> None:
    """Raise InputError if a required column occurs twice."""
    for name in required:
        if names.count(name) > 1:
            raise InputError(f"{what} has {names.count(name)} columns called {name!r}; give each its own name")


def to_microseconds(column: Any) -> Any:
    """Convert timestamps or dates to timestamps in microseconds; cut off nanoseconds, as pandas does.

    Raises ArrowInvalid for a time outside 64 bits of microseconds.
    """
    kind = column.type
    has_nanoseconds = pa.types.is_timestamp(kind) and kind.unit == "ns"
    return column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=not has_nanoseconds)
