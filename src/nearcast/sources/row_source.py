"""Rows of the query or item table, in batches, from files or memory.

A `RowSource` has one part per file or table in memory, and hides their differences behind `RowReader`. Ids come out as
int64 or large_string, vectors as Arrow lists. Validates columns and types; `validate_rows` validates the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.machine import default_threads
from nearcast.sources.arrow_types import check_storable, plain_column, plain_type
from nearcast.sources.column_roles import is_vector_type, name_type, one_array, plain_id_type, require_columns
from nearcast.sources.parquet_listing import Listing
from nearcast.sources.user_files import UserFile, digest_file
from nearcast.spec import SourceSpec

__all__ = [
    "BATCH_BYTES",
    "MAX_BATCH_ROWS",
    "IdFilter",
    "Part",
    "RowBatch",
    "RowReader",
    "RowSource",
    "RowSpan",
    "common_type",
    "describe_part",
    "unify_parts",
]

BATCH_BYTES = 64 << 20  # larger batches are not read any faster
MAX_BATCH_ROWS = 65_536
ID_BYTES = 256  # assumed memory of an id, where ids alone are read


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Some rows, in the order of their file."""

    ids: pa.Array  # int64 or large_string, nulls allowed
    vectors: pa.Array | None  # lists; None if the batch was read without vectors
    attributes: pa.Table  # attribute and display columns; empty if the batch was read without them


class RowReader(Protocol):
    """Reads the rows of one file or one table in memory."""

    @property
    def files(self) -> tuple[UserFile, ...]:
        """Files that are read; empty for a table in memory."""
        ...

    def read(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.Table]:
        """Yield these columns of all rows, in tables of at most `max_rows`."""
        ...

    def read_span(self, columns: Sequence[str], max_rows: int, span: RowSpan) -> Iterator[pa.Table]:
        """Yield these columns of a span of rows, in tables of at most `max_rows`."""
        ...

    def digest(self) -> dict[str, Any]:
        """Return name, bytes and hash (keys `name`, `bytes`, `blake2b`); `etag` if the hash is of etag and size."""
        ...

    def check_contents(self) -> None:
        """Raise InputError if a table in memory differs from its first digest. Nothing for files."""
        ...


@dataclass(frozen=True, slots=True)
class RowSpan:
    """A span of the rows of one part. In a part with row groups it begins and ends where they do."""

    part: int  # number of the part
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Part:
    """One file, or one table in memory, of a source: its types, and the reader of its rows."""

    name: str
    n_rows: int
    reader: RowReader
    id_type: pa.DataType  # int64 or large_string; null if all ids are null
    vector_type: pa.DataType
    row_bytes: int  # estimated memory of one row when read
    attribute_types: Mapping[str, pa.DataType]  # of attribute and display columns, as batches hold them
    columns: tuple[str, ...]  # all columns of the source, also columns that the spec does not name
    groups: tuple[int, ...] = ()  # rows of each row group; none where a span may begin at any row


@dataclass(frozen=True, slots=True)
class IdFilter:
    """The ids of the file that `only` names. Rows with other ids are skipped."""

    file: UserFile
    id_type: pa.DataType
    ids: pa.Array

    def as_type(self, id_type: pa.DataType) -> pa.Array:
        """Return the ids in the source's type. Raises InputError if the types differ."""
        if self.id_type != id_type:
            raise InputError(
                f"{self.file.name} lists {name_type(self.id_type)} an id, and the source has {name_type(id_type)}; "
                "write one type"
            )
        return self.ids.cast(id_type)


@dataclass(frozen=True, slots=True)
class RowSource:
    """All rows of the query or item table. Opening it reads schemas, not rows."""

    spec: SourceSpec
    parts: tuple[Part, ...]
    only: IdFilter | None = None
    listing: Listing | None = None  # of the files of `path`; None for NumPy files and tables in memory
    notes: tuple[str, ...] = ()  # files that were skipped, and why

    @property
    def name(self) -> str:
        """Name for messages."""
        return self.parts[0].name if self.listing is None else self.listing.name

    @property
    def n_rows(self) -> int:
        """Rows in all parts, good and bad."""
        return sum(part.n_rows for part in self.parts)

    @property
    def spans(self) -> tuple[RowSpan, ...]:
        """All rows: a span per part."""
        return tuple(RowSpan(number, 0, part.n_rows) for number, part in enumerate(self.parts))

    @property
    def id_type(self) -> pa.DataType:
        """Type of the ids of all parts: int64 or large_string."""
        return self.parts[0].id_type

    @property
    def unlisted(self) -> tuple[str, ...]:
        """Columns of the first part that the spec does not name."""
        named = {self.spec.id, self.spec.vector, *self.spec.columns}
        return tuple(name for name in self.parts[0].columns if name not in named)

    @property
    def row_bytes(self) -> int:
        """Estimated memory of one row with its attributes, in bytes."""
        return max(part.row_bytes for part in self.parts)

    @property
    def attribute_types(self) -> dict[str, pa.DataType]:
        """Type of each attribute column, wide enough for all parts."""
        return {name: common_type(name, self.parts) for name in self.spec.columns}

    def digests(self) -> list[dict[str, Any]]:
        """Return name, size and hash of every part. Equal digests mean equal rows."""
        with ThreadPoolExecutor(min(len(self.parts), default_threads())) as pool:
            digests = list(pool.map(lambda part: part.reader.digest(), self.parts))
        digests += [] if self.only is None else [digest_file(self.only.file)]
        self.check()
        return digests

    def check(self) -> None:
        """Raise InputError if a file was changed, added or removed since the source was opened."""
        if self.listing is not None:
            self.listing.check()  # the files of all parts
        for part in self.parts if self.listing is None else ():
            for file in part.reader.files:
                file.check()
        if self.only is not None:
            self.only.file.check()

    def check_contents(self) -> None:
        """Raise InputError if a table in memory was written to since it was hashed.

        Files are not read again: every pass compares their states.
        """
        for part in self.parts:
            part.reader.check_contents()

    def batches(
        self, *, vectors: bool, attributes: bool, memory_bytes: int, spans: Sequence[RowSpan] | None = None
    ) -> Iterator[RowBatch]:
        """Yield all rows in order, or the rows of some spans, in batches of about `memory_bytes` at most.

        Raises InputError if a file that is read was changed since the source was opened; without spans, also if any
        file was added.
        """
        columns = [self.spec.id]
        columns += [self.spec.vector] if vectors else []
        columns += self.spec.columns if attributes else []
        only = None if self.only is None else self.only.as_type(self.id_type)
        for span in self.spans if spans is None else spans:
            part = self.parts[span.part]
            row_bytes = part.row_bytes if len(columns) > 1 else min(part.row_bytes, ID_BYTES)
            max_rows = max(1, min(MAX_BATCH_ROWS, min(BATCH_BYTES, memory_bytes) // row_bytes))
            is_whole = (span.start, span.stop) == (0, part.n_rows)
            reader = part.reader
            for table in reader.read(columns, max_rows) if is_whole else reader.read_span(columns, max_rows, span):
                batch = self._make_batch(table.combine_chunks(), part, vectors, attributes)
                yield batch if only is None else _filter_batch(batch, only)
        if spans is None:
            self.check()
        elif self.only is not None:
            self.only.file.check()

    def where(self, row: int) -> str:
        """Return the part and the row in it, counted from 0. With `only`: the row among the rows it keeps."""
        if self.only is not None:
            return f"row {row} of those that {self.only.file.name} keeps"
        for part in self.parts:
            if row < part.n_rows:
                return f"{part.name} row {row}"
            row -= part.n_rows
        raise IndexError(row)

    def _make_batch(self, table: pa.Table, part: Part, vectors: bool, attributes: bool) -> RowBatch:
        ids = one_array(plain_column(table.column(self.spec.id)))
        try:  # integers, strings, or nulls without a type
            ids = ids.cast(part.id_type)
        except pa.ArrowInvalid as error:
            raise InputError(f"{part.name}: ids do not fit int64 ({error}); store them as strings") from error
        lists = _vector_array(table.column(self.spec.vector), part.vector_type) if vectors else None
        columns = {name: plain_column(table.column(name)) for name in (self.spec.columns if attributes else ())}
        for name, column in columns.items():
            check_storable(name, column)
        return RowBatch(ids, lists, pa.table(columns))


def describe_part(
    name: str, n_rows: int, schema: pa.Schema, stored_bytes: int, spec: SourceSpec, reader: RowReader
) -> Part:
    """Validate the columns of a part and derive its types. Raises InputError for ids or vectors of another type."""
    require_columns(name, schema.names, {"id": spec.id, "vector": spec.vector}, spec.columns)
    vector_type = plain_type(schema.field(spec.vector).type)
    if not is_vector_type(vector_type):
        raise InputError(
            f"{name}: {spec.vector!r} is {vector_type}; vectors are lists of float16, float32, float64, int8 or uint8: "
            "cast it, for example to lists of float32"
        )
    if n_rows and pa.types.is_fixed_size_list(vector_type) and vector_type.list_size == 0:
        raise InputError(f"{name}: all vectors are empty: {spec.vector!r} is a list without components")
    return Part(
        name=name,
        n_rows=n_rows,
        reader=reader,
        id_type=plain_id_type(schema.field(spec.id).type, name, spec.id),
        vector_type=vector_type,
        row_bytes=64 + 3 * stored_bytes // max(1, n_rows),  # compressed or encoded pages unfold
        attribute_types={column: plain_type(schema.field(column).type) for column in spec.columns},
        columns=tuple(schema.names),
    )


def unify_parts(source: RowSource) -> RowSource:
    """Give all parts one type of ids. A part whose ids or vectors are all null takes the type of the others.

    Raises InputError if types of ids or attributes differ between parts, or if all ids or all vectors are null.
    """
    parts = _fill_null_types(source)
    source = replace(source, parts=parts)
    first = parts[0]
    for name in source.spec.columns:
        common_type(name, parts)
    for part in parts:
        if part.id_type != first.id_type:
            raise InputError(
                f"id types differ: {source.spec.id!r} is {name_type(first.id_type)} in {first.name} "
                f"but {name_type(part.id_type)} in {part.name}; write all ids as one type"
            )
    return source


def common_type(name: str, parts: tuple[Part, ...]) -> pa.DataType:
    """Return the type of an attribute in all parts, widened without loss. Raises InputError if there is none."""
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


def _fill_null_types(source: RowSource) -> tuple[Part, ...]:
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


def _vector_array(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """Return the lists of a column as one array; a column of nulls takes the type `kind`."""
    lists = one_array(plain_column(column))
    return pa.nulls(len(lists), kind) if pa.types.is_null(lists.type) else lists


def _filter_batch(batch: RowBatch, only: pa.Array) -> RowBatch:
    is_kept = pc.is_in(batch.ids, value_set=only)
    vectors = None if batch.vectors is None else batch.vectors.filter(is_kept)
    columns = batch.attributes.filter(is_kept) if batch.attributes.num_columns else batch.attributes
    return RowBatch(batch.ids.filter(is_kept), vectors, columns)
