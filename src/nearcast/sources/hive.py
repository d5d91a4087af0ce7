"""Columns that are not in the files but in the names of their folders, as Hive and Spark write them: `country=de/`.

Whole numbers where all values are whole numbers, text otherwise. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

__all__ = ["HIVE_NULL", "constant_column", "hive_type", "hive_values"]

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
WHOLE = re.compile(r"-?[0-9]{1,18}")  # 18 digits fit int64


def hive_values(path: Path, base: Path) -> dict[str, str | None]:
    """Return the `name=value` folders of a path below `base`: percent-decoded, None for Hive's name of null."""
    folders = (path.relative_to(base) if path.is_relative_to(base) else path).parent.parts
    found: dict[str, str | None] = {}
    for folder in folders:
        name, equals, value = folder.partition("=")
        if name and equals:
            found[_decoded(name)] = None if value == HIVE_NULL else _decoded(value)
    return found


def hive_type(values: Iterable[str | None]) -> pa.DataType:
    """Return int64 where all values that are not null are whole numbers, and string otherwise."""
    known = [value for value in values if value is not None]
    return pa.int64() if known and all(WHOLE.fullmatch(value) for value in known) else pa.string()


def constant_column(value: str | None, kind: pa.DataType, rows: int) -> pa.Array:
    """Return (rows,) the value of a folder's name as a column of a type from `hive_type`."""
    if value is None:
        return pa.nulls(rows, kind)
    return pa.repeat(pa.scalar(int(value) if pa.types.is_integer(kind) else value, kind), rows)


def _decoded(text: str) -> str:
    """The text with its percent signs decoded; bytes that are no UTF-8 are written as \\xNN."""
    return unquote(text, errors="backslashreplace").encode("utf-8", "backslashreplace").decode("utf-8")
