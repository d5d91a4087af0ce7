"""Columns in folder names, as Hive and Spark write them: `country=de/`.

A column is int64 if all its values are whole numbers, else string. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath
from urllib.parse import unquote

import pyarrow as pa

__all__ = ["HIVE_NULL", "constant_column", "hive_type", "hive_values"]

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
WHOLE = re.compile(r"-?[0-9]{1,18}")  # 18 digits fit int64


def hive_values(path: PurePath, base: PurePath) -> dict[str, str | None]:
    """Parse the `name=value` folders of a path below `base`. Percent-decodes values; Hive's name of null gives None."""
    folders = (path.relative_to(base) if path.is_relative_to(base) else path).parent.parts
    values: dict[str, str | None] = {}
    for folder in folders:
        name, equals, value = folder.partition("=")
        if name and equals:
            values[_decode(name)] = None if value == HIVE_NULL else _decode(value)
    return values


def hive_type(values: Iterable[str | None]) -> pa.DataType:
    """Return int64 if all values that are not null are whole numbers, else string."""
    known = [value for value in values if value is not None]
    return pa.int64() if known and all(WHOLE.fullmatch(value) for value in known) else pa.string()


def constant_column(value: str | None, kind: pa.DataType, rows: int) -> pa.Array:
    """Return (rows,) a column that repeats the value of a folder name, of a type from `hive_type`."""
    if value is None:
        return pa.nulls(rows, kind)
    return pa.repeat(pa.scalar(int(value) if pa.types.is_integer(kind) else value, kind), rows)


def _decode(text: str) -> str:
    """Percent-decode text; write bytes that are not UTF-8 as \\xNN."""
    return unquote(text, errors="backslashreplace").encode("utf-8", "backslashreplace").decode("utf-8")
