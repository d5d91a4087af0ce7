"""Rows for a table of others, with columns that say where they come from: they are in the table once, whole, or not.

Knows Parquet folders; the modules of table formats append them to their tables.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.errors import StorageError
from nearcast.files import bucket_url
from nearcast.storage.open_storage import open_storage

__all__ = ["APPEND_TRIES", "MarkedRows", "refuse_other_columns", "write_marked_file"]

APPEND_TRIES = 5  # while other writers commit
GROUP_ROWS = 1 << 16
FOOTER_BYTES = 1 << 20  # more than the footer of a file of this module


@dataclass(frozen=True, slots=True)
class MarkedRows:
    """Rows whose marks, columns with one value in all rows, tell them from all other rows of a table."""

    marks: Mapping[str, Any]  # value by column; text, numbers and times
    schema: pa.Schema
    batches: Callable[[], Iterator[pa.RecordBatch]]  # the same rows at each call

    @property
    def name(self) -> str:
        """Name of the rows in file names and transactions."""
        return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "", str(value)) for value in self.marks.values())

    def reader(self) -> pa.RecordBatchReader:
        """Return a new reader of all rows."""
        return pa.RecordBatchReader.from_batches(self.schema, self.batches())


def refuse_other_columns(name: str, known: pa.Schema, rows: MarkedRows) -> None:
    """Raise StorageError if a table with these columns lacks one of the rows, or has other values in it."""
    missing = [column for column in rows.schema.names if column not in known.names]
    if missing:
        raise StorageError(
            f"{name} cannot be written: it has no column {missing[0]!r}, it has {', '.join(known.names)}; name another "
            "table, or export the kind of rows that it has"
        )
    for field in rows.schema:
        has, given = _name_values(known.field(field.name).type), _name_values(field.type)
        if has != given:
            raise StorageError(
                f"{name} cannot be written: its column {field.name!r} has {has}, and these rows have {given}; name "
                "another table"
            )


def _name_values(kind: pa.DataType) -> str:
    """Name the values of a type, whatever their width."""
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_list_view(kind):
        return f"lists of {_name_values(kind.value_type)}"
    if types.is_dictionary(kind):
        return _name_values(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    for test, values in ((types.is_integer, "integers"), (types.is_floating, "numbers"), (types.is_timestamp, "times")):
        if test(kind):
            return values
    return str(kind)


def write_marked_file(name: str, location: str, base: Path, rows: MarkedRows) -> bool:
    """Write the rows as one Parquet file of a folder or bucket. Return False if the file is there.

    Raises StorageError if another file of the folder has other columns.
    """
    storage = open_storage(bucket_url(location, base) or base / location)
    file = f"{rows.name}.parquet"
    there = storage.stat(file)
    other = there or next((each for each in storage.list_objects() if each.name.endswith(".parquet")), None)
    if other is not None:
        [footer] = storage.read_ranges(other.name, [(max(0, other.size - FOOTER_BYTES), other.size)])
        try:
            refuse_other_columns(name, pq.read_schema(pa.BufferReader(footer)), rows)
        except pa.ArrowException as error:
            if there is not None:  # another one may be no Parquet
                raise StorageError(f"{name}: {file} is damaged ({error}); remove it, and export again") from error
    if there is not None:
        return False
    with tempfile.TemporaryDirectory(prefix="nearcast-export-") as folder:
        path = Path(folder) / file
        with pq.ParquetWriter(path, rows.schema) as writer:
            for batch in rows.batches():
                writer.write_batch(batch, GROUP_ROWS)
        storage.upload(file, path)
    return True
