"""Files as a source: Parquet files with values from Hive folder names, `.npy` vectors with a file of ids, and `only`.

Reads schemas and headers, not rows. Knows nothing of tables in memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.errors import InputError
from nearcast.sources.arrow_types import plain_column, plain_type
from nearcast.sources.column_roles import id_array, list_array, one_array, plain_id_type, require_columns
from nearcast.sources.duckdb_query import run_query
from nearcast.sources.hive import constant_column, hive_type, hive_values
from nearcast.sources.memory_tables import table_source
from nearcast.sources.npy import NpyFile, open_npy
from nearcast.sources.open_table import open_table
from nearcast.sources.parquet_files import Footer, ParquetFiles, open_listed, read_batches, read_footer
from nearcast.sources.parquet_listing import Listing, has_magic, list_one, list_parquet, map_files, open_user_file
from nearcast.sources.pinned_table import describe_pinned
from nearcast.sources.row_source import (
    IdFilter,
    Part,
    RowSource,
    RowSpan,
    common_type,
    describe_part,
    unify_parts,
)
from nearcast.sources.user_files import UserFile, check_between_reads, digest_file, ensure_unchanged
from nearcast.spec import SourceSpec

__all__ = ["NoRowsError", "open_source"]

WAY_OUT = "check `path` (it is relative to the spec's own folder, or a URL)"


class NoRowsError(InputError):
    """Parquet files without a row, and without the columns or types of a source."""


def open_source(spec: SourceSpec, base: Path, *, leave_out: Path | str | None = None) -> RowSource:
    """Open the files, the table or the query of a source, relative to `base`, and read their schemas.

    leave_out: a folder that is skipped below the source's path, since runs write there.
    Raises InputError if a file or column is missing, or ids or vectors have another type.
    """
    if spec.sql is not None:
        columns = list(dict.fromkeys((spec.id, spec.vector, *spec.columns)))
        return table_source(spec, run_query(spec.sql, base, columns, "sql"), "sql")
    only = None if spec.only is None else _open_id_filter(spec, base)
    if spec.table is not None:
        return unify_parts(RowSource(spec, (describe_pinned(open_table(spec.table, spec.at, base), spec),), only))
    if spec.path.endswith(".npy"):
        return unify_parts(RowSource(spec, (_open_npy_part(spec, base),), only))
    listing = list_parquet(spec.path, base, "path", WAY_OUT, leave_out=leave_out)
    parts, notes = _open_parquet_parts(listing, spec)
    return unify_parts(RowSource(spec, parts, only, listing, (*listing.notes, *notes)))


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Reads one Parquet file, and columns that its folder names hold."""

    files: tuple[UserFile, ...]  # one
    n_rows: int
    groups: tuple[int, ...]  # rows of each row group
    folder_columns: Mapping[str, tuple[str | None, pa.DataType]]  # value and type by column

    def read(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.Table]:
        """Yield tables of the columns; values of folder names are repeated in every row."""
        yield from self._read(columns, max_rows, self.n_rows, None)

    def read_span(self, columns: Sequence[str], max_rows: int, span: RowSpan) -> Iterator[pa.Table]:
        """Yield tables of the columns of some row groups."""
        starts = np.cumsum((0, *self.groups))
        numbers = np.flatnonzero((starts[:-1] >= span.start) & (starts[1:] <= span.stop)).tolist()
        yield from self._read(columns, max_rows, span.stop - span.start, numbers)

    def _read(
        self, columns: Sequence[str], max_rows: int, n_rows: int, groups: Sequence[int] | None
    ) -> Iterator[pa.Table]:
        own = [name for name in dict.fromkeys(columns) if name not in self.folder_columns]
        for batch in read_batches(self.files[0], n_rows, own, max_rows, groups=groups):
            table = pa.Table.from_batches([batch])
            for name in dict.fromkeys(columns):
                if name in self.folder_columns:
                    table = table.append_column(name, constant_column(*self.folder_columns[name], len(batch)))
            yield table

    def digest(self) -> dict[str, Any]:
        """Return name, bytes and hash of the file."""
        return digest_file(self.files[0])

    def check_contents(self) -> None:
        """Do nothing: every pass compares the file's state."""


@dataclass(frozen=True, slots=True)
class NpyReader:
    """Reads a `.npy` file of vectors, with a table of ids and attributes beside it."""

    vectors: NpyFile
    ids_file: UserFile
    rows: pa.Table  # of the ids file
    spec: SourceSpec

    @property
    def files(self) -> tuple[UserFile, ...]:
        """The vectors' file and the ids' file."""
        return self.vectors.file, self.ids_file

    def read(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.Table]:
        """Yield tables of the columns."""
        yield from self.read_span(columns, max_rows, RowSpan(0, 0, self.vectors.n))

    def read_span(self, columns: Sequence[str], max_rows: int, span: RowSpan) -> Iterator[pa.Table]:
        """Yield tables of the columns of a span."""
        for start in range(span.start, span.stop, max_rows):
            stop = min(span.stop, start + max_rows)
            table = self.rows.slice(start, stop - start)
            if self.spec.vector in columns:
                block = self.vectors.read(start, stop)
                table = table.append_column(self.spec.vector, list_array(block, self.spec.path))
            check_between_reads(self.ids_file)
            yield table.select(list(dict.fromkeys(columns)))

    def digest(self) -> dict[str, Any]:
        """Return the name of the vectors' file, and bytes and hashes of both files."""
        files = self.vectors.file, self.ids_file
        blake2b = "".join(file.hash() for file in files)
        etags = [file.identity()["etag"] for file in files if file.identity()]
        marked = {"etag": " ".join(etags)} if etags else {}
        return {"name": self.spec.path, "bytes": sum(file.size for file in files), "blake2b": blake2b, **marked}

    def check_contents(self) -> None:
        """Do nothing: every pass compares the files' states."""


def _open_id_filter(spec: SourceSpec, base: Path) -> IdFilter:
    """Read the ids of the file that `only` names."""
    file = open_user_file(str(spec.only), base, "only", "check `only` (it is relative to the spec's own folder)")
    table = _read_ids_file(file, spec.model_copy(update={"attributes": (), "display": (), "weight": None}))
    id_type = plain_id_type(table.schema.field(spec.id).type, file.name, spec.id)
    return IdFilter(file, id_type, one_array(plain_column(table.column(0))))


def _open_parquet_parts(listing: Listing, spec: SourceSpec) -> tuple[tuple[Part, ...], list[str]]:
    """Open a part per file. Return the parts, and notes on skipped files: without rows, and of other types."""
    footers = map_files(read_footer, listing.files)
    folders = [hive_values(file.path, listing.base) for file in listing.files]
    types = {name: _folder_column_type(name, footers, folders) for name in spec.columns}
    parts: list[Part] = []
    skipped: list[str] = []
    first: Part | None = None
    for with_rows in (True, False):  # files with rows decide the types; files without rows must agree
        for file, footer, values in zip(listing.files, footers, folders, strict=True):
            if (footer.n_rows > 0) != with_rows:
                continue
            columns = {
                name: (values[name], types[name]) for name in spec.columns if _is_folder_column(name, footer, values)
            }
            try:
                part = _open_parquet_part(ParquetReader((file,), footer.n_rows, footer.groups, columns), footer, spec)
            except InputError:
                if with_rows or len(listing.files) == 1:
                    raise
                skipped.append(file.name)
                continue
            first = first or part
            if with_rows or _has_types_of(part, first):
                parts.append(part)
            else:
                skipped.append(file.name)
    if not parts:
        raise NoRowsError(f"{listing.name} has no rows in any of its {len(listing.files):,} files; {WAY_OUT}")
    number = {file.name: number for number, file in enumerate(listing.files)}
    notes = [f"{name} has no rows and columns of other types, and was skipped" for name in sorted(skipped)]
    return tuple(sorted(parts, key=lambda part: number[part.name])), notes


def _open_parquet_part(reader: ParquetReader, footer: Footer, spec: SourceSpec) -> Part:
    schema = footer.schema
    for name, (_, kind) in reader.folder_columns.items():
        schema = schema.append(pa.field(name, kind))
    part = describe_part(reader.files[0].name, footer.n_rows, schema, footer.decoded_bytes, spec, reader)
    return replace(part, groups=footer.groups)


def _has_types_of(part: Part, first: Part) -> bool:
    """Return whether a part without rows has the types of a part with rows."""
    if pa.types.is_null(part.id_type) or pa.types.is_null(part.vector_type) or part.id_type != first.id_type:
        return False
    try:
        for name in part.attribute_types:
            common_type(name, (first, part))
    except InputError:
        return False
    return True


def _is_folder_column(name: str, footer: Footer, folders: Mapping[str, str | None]) -> bool:
    return name not in footer.schema.names and name in folders


def _folder_column_type(
    name: str, footers: Sequence[Footer], folders: Sequence[Mapping[str, str | None]]
) -> pa.DataType:
    """Return the type of a column of folder names: string if another file holds the column as strings."""
    for footer in footers:
        if footer.n_rows and footer.schema.names.count(name) == 1:
            kind = plain_type(footer.schema.field(name).type)
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                return pa.string()
    pairs = zip(footers, folders, strict=True)
    return hive_type(values[name] for footer, values in pairs if _is_folder_column(name, footer, values))


def _open_npy_part(spec: SourceSpec, base: Path) -> Part:
    vectors = open_npy(open_user_file(spec.path, base, "path", WAY_OUT))
    ids_file = open_user_file(str(spec.ids), base, "ids", "check `ids` (it is relative to the spec's own folder)")
    rows = _read_ids_file(ids_file, spec)
    if len(rows) != vectors.n:
        raise InputError(f"{ids_file.shown} has {len(rows)} ids for the {vectors.n} vectors of {spec.path}")
    vector_type = list_array(np.empty((0, vectors.dim), vectors.dtype), spec.path).type
    schema = rows.schema.append(pa.field(spec.vector, vector_type))
    reader = NpyReader(vectors, ids_file, rows, spec)
    return describe_part(spec.path, vectors.n, schema, vectors.nbytes + rows.nbytes, spec, reader)


def _read_ids_file(file: UserFile, spec: SourceSpec) -> pa.Table:
    """Read the ids, and from Parquet the attributes, of the file that `ids` or `only` names: .npy, text or Parquet."""
    suffix = file.path.suffix
    try:
        with ensure_unchanged([file]):
            if suffix == ".npy":
                opened = io.BytesIO(file.read()) if file.reads_are_checked else file.open()
                return pa.table({spec.id: id_array(np.load(opened, allow_pickle=False), file.name)})
            if not has_magic(file) and suffix != ".parquet":
                return pa.table({spec.id: pa.array(file.read().decode("utf-8").splitlines())})
        parquet = _open_one_parquet(file)
    except PermissionError as error:
        raise InputError(f"{file.shown} may not be read: permission denied") from error
    except (OSError, ValueError, EOFError, pa.ArrowInvalid) as error:
        raise InputError(f"{file.shown} is not a readable file of ids: {error}") from error
    require_columns(file.name, parquet.schema.names, {"id": spec.id}, spec.columns)
    return parquet.read(list(dict.fromkeys((spec.id, *spec.columns))))


def _open_one_parquet(file: UserFile) -> ParquetFiles:
    folder = file.path.parent
    parquet = open_listed(list_one(file, folder, folder), file.name)
    file.check()
    return parquet
