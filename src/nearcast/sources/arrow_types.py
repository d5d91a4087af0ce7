"""Arrow columns as all of Arrow's functions know them: no views, dictionaries, runs or extensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError

__all__ = ["plain_column", "plain_type", "refuse_twice", "to_microseconds"]


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values that a column of this type stands for."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def plain_column(column: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any]:
    """Return the column in the type of `plain_type`."""
    kind = plain_type(column.type)
    if isinstance(column.type, pa.BaseExtensionType):
        return plain_column(pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type))
    if pa.types.is_run_end_encoded(column.type):
        decoded = [pc.run_end_decode(chunk) for chunk in column.chunks]
        return plain_column(pa.chunked_array(decoded, column.type.value_type))
    if pa.types.is_dictionary(column.type):
        return pa.chunked_array([c.dictionary.cast(kind).take(c.indices) for c in column.chunks], kind)
    return column.cast(kind)


def refuse_twice(names: Sequence[str], wanted: Sequence[str], what: str) -> None:
    """Raise InputError where one of the wanted columns is there twice."""
    for name in wanted:
        if names.count(name) > 1:
            raise InputError(f"{what} has {names.count(name)} columns called {name!r}; give each its own name")


def to_microseconds(column: Any) -> Any:
    """Return timestamps, or dates, as timestamps in microseconds: what is below is cut off, as pandas writes it.

    Raises ArrowInvalid for a time that microseconds in 64 bits do not reach.
    """
    kind = column.type
    below = pa.types.is_timestamp(kind) and kind.unit == "ns"
    return column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=not below)
