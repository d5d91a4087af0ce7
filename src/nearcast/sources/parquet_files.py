"""Parquet files of the user as one table, read in batches. Every pass checks that the files have not changed.

For logs, ads and links; the sources of a join use `read_batches` too. Knows nothing of the columns' meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.errors import InputError
from nearcast.sources.arrow_types import plain_column, plain_type, refuse_twice
from nearcast.sources.hive import constant_column, hive_type, hive_values
from nearcast.sources.parquet_listing import Listing, list_parquet, map_files
from nearcast.sources.user_files import (
    UserFile,
    changed_error,
    check_between_reads,
    describe_error,
    digest_file,
    ensure_unchanged,
)

__all__ = ["Footer", "ParquetFiles", "open_listed", "open_parquet", "read_batches", "read_footer"]

BATCH_ROWS = 1 << 17
MOST_BUFFERS = 16  # of whole size: more columns are read through smaller ones
LIST_DECODE_BYTES = 24  # of a value; measured: reading 65,536 lists of 128 float16 takes 226 MB at its peak
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError)


@dataclass(frozen=True, slots=True)
class Footer:
    """Facts from the footer of a Parquet file."""

    schema: pa.Schema
    n_rows: int
    values: int  # in all columns, counted as Parquet stores them
    bytes: int  # of all columns, decompressed
    groups: tuple[int, ...] = ()  # rows of each row group

    @property
    def decoded_bytes(self) -> int:
        """Estimated bytes of all columns in memory: Arrow decodes a list with two levels, a flag and a copy."""
        return self.bytes + LIST_DECODE_BYTES * self.values // 3


def read_footer(file: UserFile) -> Footer:
    """Read the footer of a Parquet file. Raises InputError if it is not Parquet, is truncated, or changes meanwhile."""
    try:
        with ensure_unchanged([file]), _open_parquet(file) as parquet:
            metadata = parquet.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            values = sum(group.column(c).num_values for group in groups for c in range(group.num_columns))
            return Footer(
                parquet.schema_arrow,
                metadata.num_rows,
                values,
                sum(group.total_byte_size for group in groups),
                tuple(group.num_rows for group in groups),
            )
    except UNREADABLE as error:
        raise InputError(
            f"{file.shown} is not a readable Parquet file, or was cut short ({describe_error(error)}); write it again"
        ) from error


def read_batches(
    file: UserFile,
    n_rows: int,
    columns: Sequence[str],
    rows: int,
    *,
    groups: Sequence[int] | None = None,
    threads: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Yield columns of a file of n_rows rows, in order, in batches of at most `rows`.

    groups: numbers of the row groups that are read, of n_rows rows together. Default: all.
    Checks before each batch that the file has not changed. Raises InputError if it has, or is damaged. With one thread
    the first batch comes sooner, and memory stays at one batch.
    """
    done = 0
    try:
        with ensure_unchanged([file]), _open_parquet(file, len(columns)) as parquet:
            batches = parquet.iter_batches(rows, row_groups=groups, columns=list(columns), use_threads=threads)
            while (batch := next(batches, None)) is not None:
                check_between_reads(file)
                done += len(batch)
                yield batch
    except UNREADABLE as error:
        raise InputError(f"{file.shown} is damaged ({describe_error(error)}); write it again") from error
    if done != n_rows:
        raise changed_error(file.name, f"{done:,} rows came where there were {n_rows:,}")


def _open_parquet(file: UserFile, columns: int = 1) -> pq.ParquetFile:
    # `pre_buffer` would keep the buffers of all row groups until the end; without a size of buffers, whole columns of a
    # row group would be read at once, however large. Times of 96 bits, as of Spark, overflow in
    # nanoseconds: the year 9999 would be 1816
    buffer_size = file.buffer_bytes * MOST_BUFFERS // max(MOST_BUFFERS, columns)
    return pq.ParquetFile(file.open(), pre_buffer=False, buffer_size=buffer_size, coerce_int96_timestamp_unit="us")


@dataclass(frozen=True, slots=True)
class ParquetFiles:
    """One or more Parquet files as one table."""

    what: str  # for messages
    listing: Listing
    footers: tuple[Footer, ...]  # of listing.files
    folders: tuple[dict[str, str | None], ...]  # of listing.files: columns in folder names
    schema: pa.Schema  # of all files, widened without loss, and columns in folder names

    @property
    def name(self) -> str:
        """Path for messages."""
        return self.listing.name

    @property
    def n_rows(self) -> int:
        """Rows in all files."""
        return sum(footer.n_rows for footer in self.footers)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on skipped files."""
        return self.listing.notes

    def tell(self, note: Callable[[str], None] | None) -> None:
        """Call `note` with each note."""
        if note is not None:
            for text in self.notes:
                note(text)

    def digests(self) -> list[dict[str, Any]]:
        """Return name, size and hash of every file."""
        return [digest_file(file, file.path.name) for file in self.listing.files]

    def check(self) -> None:
        """Raise InputError if a file was changed or added since the files were listed."""
        self.listing.check()

    def need_columns(self, names: Sequence[str]) -> None:
        """Raise InputError if a column is missing in a file that has rows."""
        for file, footer, folders in zip(self.listing.files, self.footers, self.folders, strict=True):
            have = [*footer.schema.names, *(name for name in folders if name not in footer.schema.names)]
            for name in names if footer.n_rows or len(self.footers) == 1 else ():
                if name not in have:
                    raise InputError(f"{file.name} has no column {name!r}; its columns are {', '.join(have)}")

    def batches(self, columns: Sequence[str], rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield these columns of all files in order. A column that a file lacks is null there."""
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
        names = self.schema.names if columns is None else columns
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.Table.from_batches(list(self.batches(names)), schema)


def open_parquet(path: Path | str, base: Path, what: str, way_out: str) -> ParquetFiles:
    """List the Parquet files of a path (a file, folder or glob, relative to `base`, or a URL); read their footers.

    what: name of the contents for messages, for example "the log". Raises InputError if there is no file, a file cannot
    be read, or files have incompatible types in one column.
    """
    return open_listed(list_parquet(str(path), base, what, way_out), what)


def open_listed(listing: Listing, what: str) -> ParquetFiles:
    """Read the footers of listed files. Raises InputError as `open_parquet` does."""
    footers = tuple(map_files(read_footer, listing.files))
    with_rows = [number for number, footer in enumerate(footers) if footer.n_rows] or [0]
    schemas = [
        pa.schema([field.with_type(plain_type(field.type)).remove_metadata() for field in footers[number].schema])
        for number in with_rows
    ]
    for number, schema in zip(with_rows, schemas, strict=True):
        refuse_twice(schema.names, schema.names, listing.files[number].name)
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise InputError(f"the files of {listing.name} have incompatible columns: {describe_error(error)}") from error
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
            raise InputError(
                f"{file.name}: column {field.name!r} is no {field.type}: {describe_error(error)}"
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))
