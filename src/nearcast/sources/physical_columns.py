"""Columns of Delta files as the table names them: nested columns by their physical names, and values of partitions.

Knows Arrow types and the field metadata of Delta; reads nothing.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa

__all__ = ["find_physical_name", "name_nested", "parse_constant"]

PHYSICAL_NAME = b"delta.columnMapping.physicalName"
ESCAPED_BYTES = re.compile(r"(\\u00[0-9a-fA-F]{2})*")


def find_physical_name(field: pa.Field[Any]) -> str:
    """Return the name of a column in data files; its own name without column mapping."""
    known: dict[bytes, bytes] = field.metadata or {}
    return str(known[PHYSICAL_NAME], "utf-8") if PHYSICAL_NAME in known else str(field.name)


def name_nested(column: pa.Array[Any], kind: pa.DataType) -> pa.Array[Any]:
    """Return a column of a file with the names that the table has for nested columns. kind: its type in the table."""
    return column.view(_name_type(column.type, kind)) if pa.types.is_nested(column.type) else column


def _name_type(stored: pa.DataType, kind: pa.DataType) -> pa.DataType:
    """Return the type of a file's column with the names of the table's type."""
    types = pa.types
    if types.is_struct(stored) and types.is_struct(kind):
        known = {find_physical_name(field): field for field in kind}
        fields = []
        for field in stored:
            column = known.get(field.name)
            named = field if column is None else field.with_type(_name_type(field.type, column.type))
            fields.append(named if column is None else named.with_name(column.name))
        return pa.struct(fields)
    if types.is_map(stored) and types.is_map(kind):
        key = _name_type(stored.key_type, kind.key_type)
        return pa.map_(key, stored.item_field.with_type(_name_type(stored.item_type, kind.item_type)))
    for test, make in ((types.is_list, pa.list_), (types.is_large_list, pa.large_list)):
        if test(stored) and hasattr(kind, "value_type"):
            return make(stored.value_field.with_type(_name_type(stored.value_type, kind.value_type)))
    return stored


def parse_constant(value: Any, kind: pa.DataType) -> Any:
    r"""Return the value of a partition. Bytes come as the log writes them, as text of \u00.. escapes."""
    if not pa.types.is_binary(kind) or not isinstance(value, bytes):
        return value
    text = value.decode("utf-8", "replace")
    return bytes.fromhex(text.replace("\\u00", "")) if ESCAPED_BYTES.fullmatch(text) else value
