"""Parquet files of the user as one table that is read in batches, every pass in the state of the files at the first.

For logs, ads and links; the sources of a join read their files by `read_batches` too. Knows nothing of what the columns
mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.errors import InputError
from nearcast.sources.arrow_types import plain_column, plain_type, refuse_twice
from nearcast.sources.hive import constant_column, hive_type, hive_values
from nearcast.sources.parquet_listing import Listing, list_parquet
from nearcast.sources.user_files import UserFile, changed_error, shown_path, unchanged

__all__ = ["Footer", "ParquetFiles", "open_parquet", "read_batches", "read_footer"]

BATCH_ROWS = 1 << 17
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError)


@dataclass(frozen=True, slots=True)
class Footer:
    """What the end of a Parquet file tells of it."""

    schema: pa.Schema
    n_rows: int
    values: int  # in all columns, counted as Parquet stores them
    bytes: int  # of all columns, decompressed


def read_footer(file: UserFile) -> Footer:
    """Read the footer of a Parquet file; InputError where it is none, was cut short, or is changed meanwhile."""
    try:
        with unchanged([file]), _opened(file) as parquet:
            metadata = parquet.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            values = sum(group.column(c).num_values for group in groups for c in range(group.num_columns))
            return Footer(
                parquet.schema_arrow, metadata.num_rows, values, sum(group.total_byte_size for group in groups)
            )
    except UNREADABLE as error:
        where, why = shown_path(file.path), _reason(error)
        raise InputError(f"{where} is not a readable Parquet file, or was cut short ({why}); write it again") from error


def read_batches(
    file: UserFile, n_rows: int, columns: Sequence[str], rows: int, *, threads: bool = False
) -> Iterator[pa.RecordBatch]:
    """Read some columns of a file of n_rows rows, in order, in batches of at most `rows`.

    Each batch is yielded only after a look whether the file is still as it was found. Raises InputError where it is
    not, or is damaged. With one thread the first batches come sooner, and memory is what a batch takes.
    """
    done = 0
    try:
        with unchanged([file]), _opened(file) as parquet:
            batches = parquet.iter_batches(rows, columns=list(columns), use_threads=threads)
            while (batch := next(batches, None)) is not None:
                file.check()
                done += len(batch)
                yield batch
    except UNREADABLE as error:
        raise InputError(f"{shown_path(file.path)} is damaged ({_reason(error)}); write it again") from error
    if done != n_rows:
        raise changed_error(file.name, f"{done:,} rows came where there were {n_rows:,}")


def _opened(file: UserFile) -> pq.ParquetFile:
    return pq.ParquetFile(pa.OSFile(os.fsencode(file.path)))  # bytes: a name need not be UTF-8


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@dataclass(frozen=True, slots=True)
class ParquetFiles:
    """One or more Parquet files with the columns of the first; the others may hold more."""

    what: str  # for messages
    listing: Listing
    footers: tuple[Footer, ...]  # of listing.files
    folders: tuple[dict[str, str | None], ...]  # of listing.files: what the names of their folders say
    schema: pa.Schema  # of all files, widened where that loses nothing, and of the names of their folders

    @property
    def name(self) -> str:
        """The path as messages call it."""
        return self.listing.name

    @property
    def n_rows(self) -> int:
        """Rows of all files."""
        return sum(footer.n_rows for footer in self.footers)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was skipped in the folder or glob."""
        return self.listing.notes

    def tell(self, note: Callable[[str], None] | None) -> None:
        """Pass the notes on to whoever listens."""
        if note is not None:
            for text in self.notes:
                note(text)

    def digests(self) -> list[dict[str, Any]]:
        """Return name, size and hash of every file."""
        return [{"name": f.path.name, "bytes": f.state.size, "blake2b": f.hash()} for f in self.listing.files]

    def check(self) -> None:
        """Raise InputError where a file has changed, or one was added, since the first look."""
        self.listing.check()

    def need_columns(self, names: Sequence[str]) -> None:
        """Raise InputError where one of these columns is missing in a file that has rows, or is there twice."""
        for file, footer, folders in zip(self.listing.files, self.footers, self.folders, strict=True):
            have = [*footer.schema.names, *(name for name in folders if name not in footer.schema.names)]
            for name in names if footer.n_rows or len(self.footers) == 1 else ():
                if name not in have:
                    raise InputError(f"{file.name} has no column {name!r}; its columns are {', '.join(have)}")

    def batches(self, columns: Sequence[str], rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Read these columns of all files in order; a column that a file lacks is null there."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        for file, footer, folders in zip(self.listing.files, self.footers, self.folders, strict=True):
            if not footer.n_rows:
                continue
            here = [name for name in schema.names if name in footer.schema.names]
            for batch in read_batches(file, footer.n_rows, here, rows, threads=True):
                yield _as_schema(batch, schema, folders, file)
        self.check()

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read these columns, or all, as one table."""
        wanted = self.schema.names if columns is None else columns
        schema = pa.schema([self.schema.field(name) for name in wanted])
        return pa.Table.from_batches(list(self.batches(wanted)), schema)


def open_parquet(path: Path | str, base: Path, what: str, way_out: str) -> ParquetFiles:
    """Find the Parquet files of a path (a file, a folder or a glob, relative to `base`), and read their footers.

    what: what they hold, such as "the log", for messages. Raises InputError where there is no file, or one cannot be
    read, or columns of one name have types that do not go together.
    """
    listing = list_parquet(str(path), base, what, way_out)
    footers = tuple(read_footer(file) for file in listing.files)
    full = [place for place, footer in enumerate(footers) if footer.n_rows] or [0]
    schemas = [
        pa.schema([field.with_type(plain_type(field.type)).remove_metadata() for field in footers[place].schema])
        for place in full
    ]
    for place, schema in zip(full, schemas, strict=True):
        refuse_twice(schema.names, schema.names, listing.files[place].name)
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise InputError(f"the files of {listing.name} do not go together: {_reason(error)}") from error
    folders = tuple(hive_values(file.path, listing.folder) for file in listing.files)
    for name in dict.fromkeys(name for named in folders for name in named):
        if name not in schema.names:
            schema = schema.append(pa.field(name, hive_type(named.get(name) for named in folders)))
    return ParquetFiles(what, listing, footers, folders, schema)


def _as_schema(
    batch: pa.RecordBatch, schema: pa.Schema, folders: dict[str, str | None], file: UserFile
) -> pa.RecordBatch:
    columns = []
    for field in schema:
        if field.name not in batch.schema.names and field.name in folders:
            columns.append(constant_column(folders[field.name], field.type, len(batch)))
            continue
        if field.name not in batch.schema.names:
            columns.append(pa.nulls(len(batch), field.type))
            continue
        try:
            column = plain_column(pa.chunked_array([batch.column(field.name)])).cast(field.type)
            columns.append(column.chunk(0) if column.num_chunks else pa.nulls(0, field.type))
        except pa.ArrowException as error:
            raise InputError(f"{file.name}: column {field.name!r} is no {field.type}: {_reason(error)}") from error
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))
