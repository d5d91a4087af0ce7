"""Bring the attributes of a batch to the types of the served version, as long as no value changes.

Text stays text and numbers stay numbers: a value of another kind is a mistake of the writer, which no cast hides.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from nearcast.errors import InputError

__all__ = ["fit_types"]


def fit_types(attributes: pa.Table, kinds: pa.Schema, name: str) -> pa.Table:
    """Return the columns in these types. name: of the rows, for messages.

    Raises InputError that names the column if its type is of another kind, or a value does not fit.
    """
    columns = {field.name: _fit(attributes.column(field.name), field, name) for field in kinds}
    return pa.table(columns, schema=kinds) if columns else attributes


def _fit(column: pa.ChunkedArray, field: pa.Field, name: str) -> pa.ChunkedArray:
    expected, got = field.type, column.type
    way = f"{field.name!r} of the {name} is {got}, and {expected} in the served version; write it as {expected}"
    if column.null_count < len(column) and _find_kind(got) != _find_kind(expected):
        raise InputError(way)
    try:
        cast = column.cast(expected)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise InputError(f"{way} ({error})") from error
    if pa.types.is_floating(got) and pa.types.is_floating(expected) and not _are_equal(column, cast):
        raise InputError(f"{way}: some values differ then")
    return cast


def _find_kind(kind: pa.DataType) -> str:
    """Return what values of a type are: those of one kind may be cast to each other."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return "bytes"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return "time"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"list of {_find_kind(kind.value_type)}"
    return str(kind)


def _are_equal(before: pa.ChunkedArray, after: pa.ChunkedArray) -> bool:
    """Return whether floating numbers are the same in both precisions."""
    old, new = (side.cast(pa.float64()).to_numpy(zero_copy_only=False) for side in (before, after))
    return bool(np.array_equal(old, new, equal_nan=True))
