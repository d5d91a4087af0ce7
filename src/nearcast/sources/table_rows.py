"""Rows of one side of the join, in batches, from wherever they are kept.

A `RowSource` hides the difference between Parquet files, `.npy` files and tables in memory. Ids come out
as int64 or large_string; vectors as Arrow lists, as they are. Judges nothing: see `check.py`.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError, SpecError
from nearcast.sources.arrow_types import check_storable, plain_column, plain_type, refuse_twice
from nearcast.sources.hive import constant_column, hive_type, hive_values
from nearcast.sources.matrix import refuse_masked
from nearcast.sources.npy import open_npy
from nearcast.sources.parquet_files import Footer, ParquetFiles, open_parquet, read_batches, read_footer
from nearcast.sources.parquet_listing import Listing, has_magic, list_parquet, local_file
from nearcast.sources.user_files import UserFile, changed_error, shown_path, unchanged
from nearcast.spec import SourceSpec

__all__ = ["BATCH_BYTES", "RowBatch", "RowSource", "as_arrow", "is_table", "open_source", "table_source"]

BATCH_BYTES = 64 << 20  # larger batches are not read any faster
WAY_OUT = "check `path` (it is relative to the spec's own folder)"
LIST_DECODE_BYTES = 24  # measured: reading 65,536 lists of 128 float16 takes 226 MB at its peak
ELEMENT_TYPES = {pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint8()}


class MissingColumnError(SpecError, InputError):
    """The spec names an attribute, display or weight column that the data does not have: a fault of the spec."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Some rows, in the order of their file."""

    ids: pa.Array  # int64 or large_string, nulls allowed
    vectors: pa.Array | None  # lists; None when they were not asked for
    attributes: pa.Table  # the attribute and display columns that were asked for


@dataclass(frozen=True, slots=True)
class Part:
    """One file, or one table in memory, of a source."""

    name: str
    n_rows: int
    id_type: pa.DataType  # int64 or large_string
    vector_type: pa.DataType
    row_bytes: int  # a guess at the memory that one row takes when read
    attribute_types: Mapping[str, pa.DataType]  # of the attribute and display columns, as they come out
    read: Callable[[Sequence[str], int], Iterator[pa.Table]]  # (columns, rows) -> tables of at most rows
    digest: Callable[[], dict[str, Any]]  # name, bytes and hash of the contents
    files: tuple[UserFile, ...] = ()  # that it is read from
    columns: tuple[str, ...] = ()  # all that are there, also those that the spec does not name
    check_contents: Callable[[], None] | None = None  # of a table in memory: an error where they are others by now


@dataclass(frozen=True, slots=True)
class RowSource:
    """All rows of one side. Cheap to make: the schemas are read, the rows are not."""

    spec: SourceSpec
    parts: tuple[Part, ...]
    only: Part | None = None  # of ids: rows with another are left out, as if they were not there
    listing: Listing | None = None  # of the files, where they are those of a path
    notes: tuple[str, ...] = ()  # what was skipped, and why

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.parts[0].name if self.listing is None else self.listing.name

    @property
    def n_rows(self) -> int:
        """Rows in all parts, good and bad."""
        return sum(part.n_rows for part in self.parts)

    @property
    def id_type(self) -> pa.DataType:
        """int64 or large_string: all parts agree."""
        return self.parts[0].id_type

    @property
    def unlisted(self) -> tuple[str, ...]:
        """Columns that all parts have and the spec does not name."""
        named = {self.spec.id, self.spec.vector, *self.spec.columns}
        return tuple(name for name in self.parts[0].columns if name not in named)

    @property
    def row_bytes(self) -> int:
        """A guess at the memory that one row takes when it is read with its attributes."""
        return max(part.row_bytes for part in self.parts)

    @property
    def attribute_types(self) -> dict[str, pa.DataType]:
        """The type of each attribute column that holds the values of all parts."""
        return {name: _common_type(name, self.parts) for name in self.spec.columns}

    def digests(self) -> list[dict[str, Any]]:
        """Name, size and hash of every part: equal digests mean equal rows."""
        found = [part.digest() for part in self._all_parts]
        self.check()
        return found

    def check(self) -> None:
        """Raise InputError where a file has changed, or one was added or removed, since the source was opened."""
        if self.listing is not None:
            self.listing.check()
        for part in self._all_parts:
            for file in part.files:
                file.check()

    def check_contents(self) -> None:
        """Raise InputError where a table in memory is no longer as it was hashed: arrays can be written to.

        Files are not read again, since their states are compared around every pass.
        """
        for part in self.parts:
            if part.check_contents is not None:
                part.check_contents()

    @property
    def _all_parts(self) -> tuple[Part, ...]:
        return (*self.parts, *((self.only,) if self.only else ()))

    def batches(self, *, vectors: bool, attributes: bool, memory_bytes: int) -> Iterator[RowBatch]:
        """All rows in order, in batches that take about `memory_bytes` at most.

        Raises InputError where a file is no longer as it was when the source was opened.
        """
        columns = [self.spec.id]
        columns += [self.spec.vector] if vectors else []
        columns += self.spec.columns if attributes else []
        kept = _kept_ids(self.only, self.id_type)
        for part in self.parts:
            rows = max(1, min(65_536, min(BATCH_BYTES, memory_bytes) // part.row_bytes))
            for table in part.read(columns, rows):
                batch = self._batch(table.combine_chunks(), part, vectors, attributes)
                yield batch if kept is None else _only(batch, kept)
        self.check()

    def where(self, row: int) -> str:
        """The part and the row in it (counted from 0) of a row of the whole; with `only`, among the rows kept."""
        if self.only is not None:
            return f"row {row} of those that {self.only.name} keeps"
        for part in self.parts:
            if row < part.n_rows:
                return f"{part.name} row {row}"
            row -= part.n_rows
        raise IndexError(row)

    def _batch(self, table: pa.Table, part: Part, vectors: bool, attributes: bool) -> RowBatch:
        ids = _one_array(plain_column(table.column(self.spec.id)))
        try:  # integers, strings, or nulls without a type
            ids = ids.cast(part.id_type)
        except pa.ArrowInvalid as error:
            raise InputError(f"{part.name}: ids do not fit int64 ({error}); store them as strings") from error
        found = _vectors(table.column(self.spec.vector), part.vector_type) if vectors else None
        columns = {name: plain_column(table.column(name)) for name in (self.spec.columns if attributes else ())}
        for name, column in columns.items():
            check_storable(name, column)
        return RowBatch(ids, found, pa.table(columns))


def open_source(spec: SourceSpec, base: Path, *, leave_out: Path | None = None) -> RowSource:
    """Find the files of a source, relative to `base`, and read their schemas.

    leave_out: a folder that is not read, should it be below the source's: what runs write is no input.
    Raises InputError where a file or column is missing, or the types are not ids and vectors.
    """
    only = None if spec.only is None else _id_part(spec, base)
    if spec.path.endswith(".npy"):
        return _checked(RowSource(spec, (_npy_part(spec, base),), only))
    listing = list_parquet(spec.path, base, "path", WAY_OUT, leave_out=leave_out)
    parts, notes = _parquet_parts(listing, spec)
    return _checked(RowSource(spec, parts, only, listing, (*listing.notes, *notes)))


def table_source(spec: SourceSpec, data: object, name: str) -> RowSource:
    """A source over a table in memory: Arrow, pandas, polars, or a pair (ids, vectors) of NumPy arrays."""
    if spec.only is not None:
        raise InputError(f"only = {spec.only!r} goes with files; leave the rows out of the table that is given")
    try:
        table = as_arrow(data, spec, name)
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
        raise InputError(
            f"{name} cannot be read as a table ({error}); give ids of one type, and vectors of one length, a row each"
        ) from error
    return _checked(RowSource(spec, (_table_part(table, spec, name),)))


def _id_part(spec: SourceSpec, base: Path) -> Part:
    """The file that `only` names, as a part that has ids and no vectors."""
    way_out = "check `only` (it is relative to the spec's own folder)"
    file = local_file(str(spec.only), base, "only", way_out)
    beside = _read_ids_file(file, spec.model_copy(update={"attributes": (), "display": (), "weight": None}))

    def read(_columns: Sequence[str], _rows: int) -> Iterator[pa.Table]:
        yield beside

    kind = _id_type(beside.schema.field(spec.id).type, file.name, spec.id)
    return Part(file.name, len(beside), kind, pa.null(), 1, {}, read, lambda: _digest_of(file), (file,))


def _digest_of(file: UserFile) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.state.size, "blake2b": file.hash()}


def _kept_ids(only: Part | None, id_type: pa.DataType) -> pa.Array | None:
    """The ids to keep, of the type of the source's."""
    if only is None:
        return None
    if only.id_type != id_type:
        raise InputError(
            f"{only.name} lists {_plain(only.id_type)} an id, and the source has {_plain(id_type)}; write one type"
        )
    (table,) = only.read((), 0)
    return _one_array(plain_column(table.column(0))).cast(id_type)


def _only(batch: RowBatch, kept: pa.Array) -> RowBatch:
    there = pc.is_in(batch.ids, value_set=kept)
    vectors = None if batch.vectors is None else batch.vectors.filter(there)
    columns = batch.attributes.filter(there) if batch.attributes.num_columns else batch.attributes
    return RowBatch(batch.ids.filter(there), vectors, columns)


def is_table(data: object) -> bool:
    """Whether this is a table in memory rather than a path."""
    return isinstance(data, tuple) or hasattr(data, "__arrow_c_stream__") or hasattr(data, "__dataframe__")


def as_arrow(data: object, spec: SourceSpec, name: str) -> pa.Table:
    """Turn a table of any of the supported kinds into an Arrow table."""
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        for what, part in zip(("ids", "vectors"), data, strict=True):
            refuse_masked(part, f"{name}: the {what}")
        ids, vectors = (np.asarray(part) for part in data)
        if len(ids) != len(vectors):
            raise InputError(f"{name} have {len(ids)} ids for {len(vectors)} vectors")
        return pa.table({spec.id: _id_array(ids, name), spec.vector: _list_array(vectors, name)})
    if hasattr(data, "iteritems") or type(data).__module__.startswith("pandas"):
        return _from_pandas(data, spec, name)
    if hasattr(data, "__arrow_c_stream__"):
        return pa.table(data)
    kind = type(data).__name__
    raise InputError(f"{name} is a {kind}; give an Arrow, pandas or polars table, or a pair (ids, vectors)")


def _from_pandas(frame: Any, spec: SourceSpec, name: str) -> pa.Table:
    names = [str(column) for column in frame.columns]
    _need_columns(name, names, {"id": spec.id, "vector": spec.vector}, spec.columns)
    wanted = list(dict.fromkeys((spec.id, spec.vector, *spec.columns)))
    refuse_masked(list(frame[spec.vector]), f"{name}: the vectors")
    return pa.Table.from_pandas(frame[wanted], preserve_index=False)


def _checked(source: RowSource) -> RowSource:
    """All parts must hold vectors, and ids of one type; a part in which all are null takes the type of the others."""
    parts = _with_types(source)
    source = replace(source, parts=parts)
    first = parts[0]
    for name in source.spec.columns:
        _common_type(name, parts)
    for part in parts:
        if part.id_type != first.id_type:
            raise InputError(
                f"id types differ: {source.spec.id!r} is {_plain(first.id_type)} in {first.name} "
                f"but {_plain(part.id_type)} in {part.name}; write all ids as one type"
            )
    return source


def _with_types(source: RowSource) -> tuple[Part, ...]:
    """The parts, with a type of ids and of vectors where a column holds nulls alone."""
    spec, parts = source.spec, source.parts
    ids = next((part.id_type for part in parts if not pa.types.is_null(part.id_type)), None)
    vectors = next((part.vector_type for part in parts if not pa.types.is_null(part.vector_type)), None)
    if ids is None:
        raise InputError(f"{parts[0].name}: ids in {spec.id!r} are null, all of them; ids are strings or integers")
    if vectors is None:
        raise InputError(f"{parts[0].name}: {spec.vector!r} is null, in all rows; vectors are lists of numbers")
    return tuple(
        replace(
            part,
            id_type=ids if pa.types.is_null(part.id_type) else part.id_type,
            vector_type=vectors if pa.types.is_null(part.vector_type) else part.vector_type,
        )
        for part in parts
    )


def _common_type(name: str, parts: tuple[Part, ...]) -> pa.DataType:
    """The type that an attribute has in all parts, widened where that loses nothing."""
    fields = [pa.schema([pa.field(name, part.attribute_types[name])]) for part in parts]
    try:
        return pa.unify_schemas(fields, promote_options="permissive").field(name).type
    except pa.ArrowTypeError:
        first = parts[0]
        other = next(p for p in parts if p.attribute_types[name] != first.attribute_types[name])
        raise InputError(
            f"{name!r} is {first.attribute_types[name]} in {first.name} but {other.attribute_types[name]} in "
            f"{other.name}; write the attribute as one type"
        ) from None


def _vectors(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """The lists of a column as one array; nulls of a type where it has none."""
    found = _one_array(plain_column(column))
    return pa.nulls(len(found), kind) if pa.types.is_null(found.type) else found


def _plain(id_type: pa.DataType) -> str:
    return "an integer" if id_type == pa.int64() else "a string"


def _parquet_parts(listing: Listing, spec: SourceSpec) -> tuple[tuple[Part, ...], list[str]]:
    """A part for each file, and notes on files without rows that were skipped since their columns do not fit."""
    footers = [read_footer(file) for file in listing.files]
    folders = [hive_values(file.path, listing.base) for file in listing.files]
    named = {name: _folder_type(name, footers, folders) for name in spec.columns}
    parts: list[Part] = []
    odd: list[str] = []
    first: Part | None = None
    for with_rows in (True, False):  # what has rows says what a file without any has to look like
        for file, footer, values in zip(listing.files, footers, folders, strict=True):
            if (footer.n_rows > 0) != with_rows:
                continue
            here = {name: (values[name], named[name]) for name in spec.columns if _is_of_folder(name, footer, values)}
            try:
                part = _parquet_part(file, footer, here, spec)
            except InputError:
                if with_rows or len(listing.files) == 1:
                    raise
                odd.append(file.name)
                continue
            first = first or part
            if with_rows or _goes_with(part, first):
                parts.append(part)
            else:
                odd.append(file.name)
    if not parts:
        raise InputError(f"{listing.name} has no rows in any of its {len(listing.files):,} files; {WAY_OUT}")
    place = {file.name: number for number, file in enumerate(listing.files)}
    notes = [f"{name} has no rows and columns of other types, and was skipped" for name in sorted(odd)]
    return tuple(sorted(parts, key=lambda part: place[part.name])), notes


def _goes_with(part: Part, first: Part) -> bool:
    """Whether a part without rows has the types of one with rows."""
    if pa.types.is_null(part.id_type) or pa.types.is_null(part.vector_type) or part.id_type != first.id_type:
        return False
    try:
        for name in part.attribute_types:
            _common_type(name, (first, part))
    except InputError:
        return False
    return True


def _is_of_folder(name: str, footer: Footer, folders: Mapping[str, str | None]) -> bool:
    return name not in footer.schema.names and name in folders


def _folder_type(name: str, footers: Sequence[Footer], folders: Sequence[Mapping[str, str | None]]) -> pa.DataType:
    """The type of a column where it is taken from the names of folders: string where a file holds strings."""
    for footer in footers:
        if footer.n_rows and footer.schema.names.count(name) == 1:
            kind = plain_type(footer.schema.field(name).type)
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                return pa.string()
    pairs = zip(footers, folders, strict=True)
    return hive_type(values[name] for footer, values in pairs if _is_of_folder(name, footer, values))


def _parquet_part(
    file: UserFile, footer: Footer, folder: Mapping[str, tuple[str | None, pa.DataType]], spec: SourceSpec
) -> Part:
    """folder: value and type of each column that is taken from the names of the file's folders."""
    # Arrow decodes a list with two levels, a flag and a copy per component: far more than it stores
    stored = footer.bytes + LIST_DECODE_BYTES * footer.values // 3

    def read(columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        own = [name for name in dict.fromkeys(columns) if name not in folder]
        for batch in read_batches(file, footer.n_rows, own, rows):
            table = pa.Table.from_batches([batch])
            for name in dict.fromkeys(columns):
                if name in folder:
                    table = table.append_column(name, constant_column(*folder[name], len(batch)))
            yield table

    schema = footer.schema
    for name, (_, kind) in folder.items():
        schema = schema.append(pa.field(name, kind))
    return _part(file.name, footer.n_rows, schema, spec, stored, read, lambda: _digest_of(file), (file,))


def _npy_part(spec: SourceSpec, base: Path) -> Part:
    vectors = open_npy(local_file(spec.path, base, "path", WAY_OUT))
    ids_file = local_file(str(spec.ids), base, "ids", "check `ids` (it is relative to the spec's own folder)")
    beside = _read_ids_file(ids_file, spec)
    if len(beside) != vectors.n:
        raise InputError(
            f"{shown_path(ids_file.path)} has {len(beside)} ids for the {vectors.n} vectors of {spec.path}"
        )

    def read(columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        for start in range(0, vectors.n, rows):
            table = beside.slice(start, rows)
            if spec.vector in columns:
                block = vectors.read(start, min(vectors.n, start + rows))
                table = table.append_column(spec.vector, _list_array(block, spec.path))
            ids_file.check()
            yield table.select(list(dict.fromkeys(columns)))

    def digest() -> dict[str, Any]:
        size = vectors.file.state.size + ids_file.state.size
        return {"name": spec.path, "bytes": size, "blake2b": vectors.file.hash() + ids_file.hash()}

    vector_type = _list_array(np.empty((0, vectors.dim), vectors.dtype), spec.path).type
    schema = beside.schema.append(pa.field(spec.vector, vector_type))
    stored = vectors.nbytes + beside.nbytes
    return _part(spec.path, vectors.n, schema, spec, stored, read, digest, (vectors.file, ids_file))


def _read_ids_file(file: UserFile, spec: SourceSpec) -> pa.Table:
    """The ids, and with a Parquet file the other columns, of a file beside the vectors, or of `only`."""
    path = file.path
    try:
        with unchanged([file]):
            if path.suffix == ".npy":
                return pa.table({spec.id: _id_array(np.load(path, allow_pickle=False), file.name)})
            if not has_magic(path) and path.suffix != ".parquet":
                return pa.table({spec.id: pa.array(path.read_text(encoding="utf-8").splitlines())})
        found = _one_parquet(file)
    except PermissionError as error:
        raise InputError(f"{shown_path(file.path)} may not be read: permission denied") from error
    except (OSError, ValueError, EOFError, pa.ArrowInvalid) as error:
        raise InputError(f"{shown_path(file.path)} is not a readable file of ids: {error}") from error
    _need_columns(file.name, found.schema.names, {"id": spec.id}, spec.columns)
    return found.read(list(dict.fromkeys((spec.id, *spec.columns))))


def _one_parquet(file: UserFile) -> ParquetFiles:
    found = open_parquet(file.path.name, file.path.parent, file.name, WAY_OUT)
    file.check()
    return replace(found, listing=replace(found.listing, files=(file,)))


def _table_part(table: pa.Table, spec: SourceSpec, name: str) -> Part:
    def read(columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        for start in range(0, len(table), rows):
            yield table.select(list(columns)).slice(start, rows)

    first: list[str] = []  # the hash of the contents when they were first asked for

    def content_hash() -> str:
        hashed = hashlib.blake2b(digest_size=16)
        columns = [c for c in dict.fromkeys((spec.id, spec.vector, *spec.columns)) if c in table.column_names]
        for batch in table.select(columns).combine_chunks().to_batches(max_chunksize=65_536):
            hashed.update(batch.serialize())
        return hashed.hexdigest()

    def digest() -> dict[str, Any]:
        first[:] = first or [content_hash()]
        return {"name": name, "bytes": table.nbytes, "blake2b": first[0]}

    def check_contents() -> None:
        if first and content_hash() != first[0]:
            raise changed_error(name)

    part = _part(name, len(table), table.schema, spec, table.nbytes, read, digest)
    return replace(part, check_contents=check_contents)


def _need_columns(name: str, names: Sequence[str], roles: Mapping[str, str], others: Iterable[str]) -> None:
    """Raise an error that names all columns that are missing, and how the spec says which one is which.

    InputError where ids or vectors are missing: the data is of another kind. MissingColumnError where the spec's
    attributes name what is not there.
    """
    wanted = list(dict.fromkeys((*roles.values(), *others)))
    refuse_twice(names, wanted, name)
    missing = [column for column in wanted if column not in names]
    if not missing:
        return
    lines = " and ".join(f'{role} = "..."' for role, column in roles.items() if column in missing)
    way = f"; the spec says which one it is: {lines}" if lines else ""
    if not lines:
        close = difflib.get_close_matches(missing[0], names, n=1)
        way = f"; did you mean {close[0]!r}?" if close else "; write the column, or leave it out of the attributes"
    error = InputError if lines else MissingColumnError
    raise error(f"{name} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(names)}{way}")


def _part(
    name: str,
    n_rows: int,
    schema: pa.Schema,
    spec: SourceSpec,
    stored_bytes: int,
    read: Callable[[Sequence[str], int], Iterator[pa.Table]],
    digest: Callable[[], dict[str, Any]],
    files: tuple[UserFile, ...] = (),
) -> Part:
    _need_columns(name, schema.names, {"id": spec.id, "vector": spec.vector}, spec.columns)
    vector_type = plain_type(schema.field(spec.vector).type)
    if not _is_vector(vector_type):
        raise InputError(
            f"{name}: {spec.vector!r} is {vector_type}; vectors are lists of float16, float32, float64, int8 or uint8: "
            "cast it, for example to lists of float32"
        )
    if n_rows and pa.types.is_fixed_size_list(vector_type) and vector_type.list_size == 0:
        raise InputError(f"{name}: all vectors are empty: {spec.vector!r} is a list without components")
    row_bytes = 64 + 3 * stored_bytes // max(1, n_rows)  # compressed or encoded pages unfold
    return Part(
        name,
        n_rows,
        _id_type(schema.field(spec.id).type, name, spec.id),
        vector_type,
        row_bytes,
        {column: plain_type(schema.field(column).type) for column in spec.columns},
        read,
        digest,
        files,
        tuple(schema.names),
    )


def _is_vector(kind: pa.DataType) -> bool:
    if pa.types.is_null(kind):
        return True
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    return is_list and kind.value_type in ELEMENT_TYPES


def _id_type(kind: pa.DataType, name: str, column: str) -> pa.DataType:
    kind = plain_type(kind)
    if pa.types.is_null(kind):
        return kind
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.large_string()
    hint = " (pandas turns integers with a gap into floats: use its Int64)" if pa.types.is_floating(kind) else ""
    raise InputError(f"{name}: ids in {column!r} are {kind}; ids are strings or integers{hint}")


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _id_array(ids: np.ndarray[Any, Any], name: str) -> pa.Array:
    if ids.ndim != 1:
        raise InputError(f"{name}: ids have shape {ids.shape}; give one id per vector")
    if ids.dtype.kind in "USTOiu":
        array = pa.array(ids.tolist() if ids.dtype.kind in "UTO" else ids)
        return pc.cast(array, pa.string()) if ids.dtype.kind == "S" else array
    raise InputError(f"{name}: ids are {ids.dtype}; ids are strings or integers")


def _list_array(vectors: np.ndarray[Any, Any], name: str) -> pa.Array:
    if vectors.ndim != 2:
        raise InputError(f"{name}: vectors have shape {vectors.shape}; give rows: (count, dimension)")
    if vectors.shape[1] == 0:
        raise InputError(f"{name}: vectors have no components")
    if vectors.dtype.kind not in "fiu":
        raise InputError(f"{name}: vectors are {vectors.dtype}; give float16, float32, float64, int8 or uint8")
    vectors = vectors.astype(vectors.dtype.newbyteorder("="), copy=False)
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, int(vectors.shape[1]))
