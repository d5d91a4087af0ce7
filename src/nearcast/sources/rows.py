"""Rows of one side of the join, in batches, from wherever they are kept.

A `RowSource` hides the difference between Parquet files, `.npy` files and tables in memory. Ids come out
as int64 or large_string; vectors as Arrow lists, as they are. Judges nothing: see `check.py`.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nearcast.errors import InputError
from nearcast.files import file_hash
from nearcast.spec import Source

__all__ = ["BATCH_BYTES", "RowBatch", "RowSource", "as_arrow", "is_table", "open_source", "table_source"]

BATCH_BYTES = 64 << 20  # larger batches are not read any faster
LIST_DECODE_BYTES = 24  # measured: reading 65,536 lists of 128 float16 takes 226 MB at its peak
ELEMENT_TYPES = {pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint8()}


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


@dataclass(frozen=True, slots=True)
class RowSource:
    """All rows of one side. Cheap to make: the schemas are read, the rows are not."""

    spec: Source
    parts: tuple[Part, ...]
    only: Part | None = None  # of ids: rows with another are left out, as if they were not there

    @property
    def n_rows(self) -> int:
        """Rows in all parts, good and bad."""
        return sum(part.n_rows for part in self.parts)

    @property
    def id_type(self) -> pa.DataType:
        """int64 or large_string: all parts agree."""
        return self.parts[0].id_type

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
        return [part.digest() for part in (*self.parts, *((self.only,) if self.only else ()))]

    def batches(self, *, vectors: bool, attributes: bool, memory_bytes: int) -> Iterator[RowBatch]:
        """All rows in order, in batches that take about `memory_bytes` at most."""
        columns = [self.spec.id]
        columns += [self.spec.vector] if vectors else []
        columns += self.spec.columns if attributes else []
        kept = _kept_ids(self.only, self.id_type)
        for part in self.parts:
            rows = max(1, min(65_536, min(BATCH_BYTES, memory_bytes) // part.row_bytes))
            for table in part.read(columns, rows):
                batch = self._batch(table.combine_chunks(), part, vectors, attributes)
                yield batch if kept is None else _only(batch, kept)

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
        ids = _one_array(_known(table.column(self.spec.id)))
        try:
            ids = ids.cast(part.id_type)
        except pa.ArrowInvalid as error:
            raise InputError(f"{part.name}: ids do not fit int64 ({error}); store them as strings") from error
        found = _one_array(table.column(self.spec.vector)) if vectors else None
        columns = {name: _known(table.column(name)) for name in (self.spec.columns if attributes else ())}
        return RowBatch(ids, found, pa.table(columns))


def open_source(spec: Source, base: Path) -> RowSource:
    """Find the files of a source, relative to `base`, and read their schemas.

    Raises InputError where a file or column is missing, or the types are not ids and vectors.
    """
    if spec.path.endswith(".npy"):
        parts: tuple[Part, ...] = (_npy_part(spec, base),)
    else:
        parts = tuple(_parquet_part(path, base, spec) for path in _parquet_paths(spec.path, base))
    only = None if spec.only is None else _id_part(base / spec.only, base, spec)
    return _checked(RowSource(spec, parts, only))


def table_source(spec: Source, data: object, name: str) -> RowSource:
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


def _id_part(path: Path, base: Path, spec: Source) -> Part:
    """The file that `only` names, as a part that has ids and no vectors."""
    beside = _read_ids_file(path, spec.model_copy(update={"attributes": (), "display": (), "weight": None}))
    name = str(path.relative_to(base)) if path.is_relative_to(base) else str(path)

    def read(_columns: Sequence[str], _rows: int) -> Iterator[pa.Table]:
        yield beside

    def digest() -> dict[str, Any]:
        return {"name": name, "bytes": path.stat().st_size, "blake2b": file_hash(path)}

    kind = _id_type(beside.schema.field(spec.id).type, name, spec.id)
    return Part(name, len(beside), kind, pa.null(), 1, {}, read, digest)


def _kept_ids(only: Part | None, id_type: pa.DataType) -> pa.Array | None:
    """The ids to keep, of the type of the source's."""
    if only is None:
        return None
    if only.id_type != id_type:
        raise InputError(
            f"{only.name} lists {_plain(only.id_type)} an id, and the source has {_plain(id_type)}; write one type"
        )
    (table,) = only.read((), 0)
    return _one_array(_known(table.column(0))).cast(id_type)


def _only(batch: RowBatch, kept: pa.Array) -> RowBatch:
    there = pc.is_in(batch.ids, value_set=kept)
    vectors = None if batch.vectors is None else batch.vectors.filter(there)
    columns = batch.attributes.filter(there) if batch.attributes.num_columns else batch.attributes
    return RowBatch(batch.ids.filter(there), vectors, columns)


def is_table(data: object) -> bool:
    """Whether this is a table in memory rather than a path."""
    return isinstance(data, tuple) or hasattr(data, "__arrow_c_stream__") or hasattr(data, "__dataframe__")


def as_arrow(data: object, spec: Source, name: str) -> pa.Table:
    """Turn a table of any of the supported kinds into an Arrow table."""
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        ids, vectors = (np.asarray(part) for part in data)
        if len(ids) != len(vectors):
            raise InputError(f"{name} have {len(ids)} ids for {len(vectors)} vectors")
        return pa.table({spec.id: _id_array(ids, name), spec.vector: _list_array(vectors, name)})
    if hasattr(data, "iteritems") or type(data).__module__.startswith("pandas"):
        return _from_pandas(data, spec)
    if hasattr(data, "__arrow_c_stream__"):
        return pa.table(data)
    kind = type(data).__name__
    raise InputError(f"{name} is a {kind}; give an Arrow, pandas or polars table, or a pair (ids, vectors)")


def _from_pandas(frame: Any, spec: Source) -> pa.Table:
    wanted = [c for c in dict.fromkeys((spec.id, spec.vector, *spec.columns)) if c in frame.columns]
    return pa.Table.from_pandas(frame[wanted], preserve_index=False)


def _checked(source: RowSource) -> RowSource:
    """All parts must hold vectors, and ids of one type."""
    first = source.parts[0]
    for name in source.spec.columns:
        _common_type(name, source.parts)
    for part in source.parts:
        if part.id_type != first.id_type:
            raise InputError(
                f"id types differ: {source.spec.id!r} is {_plain(first.id_type)} in {first.name} "
                f"but {_plain(part.id_type)} in {part.name}; write all ids as one type"
            )
    return source


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


def _known_type(kind: pa.DataType) -> pa.DataType:
    """The type as all of Arrow's functions know it: no views, no dictionaries."""
    if pa.types.is_dictionary(kind):
        return _known_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _known(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        kind = _known_type(column.type)
        return pa.chunked_array([c.dictionary.cast(kind).take(c.indices) for c in column.chunks], kind)
    return column.cast(_known_type(column.type))


def _plain(id_type: pa.DataType) -> str:
    return "an integer" if id_type == pa.int64() else "a string"


def _parquet_paths(pattern: str, base: Path) -> list[Path]:
    path = base / pattern
    if path.is_dir():
        found = sorted(p for p in path.rglob("*.parquet") if not p.name.startswith((".", "_")))
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not found:
        raise InputError(f"no Parquet file at {path}; check `path` (it is relative to the spec's own folder)")
    return found


def _parquet_part(path: Path, base: Path, spec: Source) -> Part:
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            stored = sum(group.total_byte_size for group in groups)
            # Arrow decodes a list with two levels, a flag and a copy per component: far more than it stores
            stored += sum(LIST_DECODE_BYTES * g.column(c).num_values for g in groups for c in range(g.num_columns)) // 3
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file, or was cut short; write it again") from error
    name = str(path.relative_to(base)) if path.is_relative_to(base) else str(path)

    def read(columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        with pq.ParquetFile(path) as file:
            # one thread: a batch is small, and the order of rows is then the order of the file
            batches = file.iter_batches(rows, columns=list(columns), use_threads=False)
            while (batch := _next(batches, path)) is not None:
                yield pa.Table.from_batches([batch])

    def digest() -> dict[str, Any]:
        return {"name": name, "bytes": path.stat().st_size, "blake2b": file_hash(path)}

    return _part(name, metadata.num_rows, schema, spec, stored, read, digest)


def _next(batches: Iterator[pa.RecordBatch], path: Path) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); write it again") from error


def _npy_part(spec: Source, base: Path) -> Part:
    path = base / spec.path
    if not path.is_file():
        raise InputError(f"no file at {path}; check `path` (it is relative to the spec's own folder)")
    try:
        vectors = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable .npy file: {error}") from error
    if vectors.ndim != 2:
        raise InputError(f"{path} has shape {vectors.shape}; vectors come as rows: (count, dimension)")
    ids_path = base / str(spec.ids)
    beside = _read_ids_file(ids_path, spec)
    if len(beside) != len(vectors):
        raise InputError(f"{ids_path} has {len(beside)} ids for the {len(vectors)} vectors of {path}")

    def read(columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        for start in range(0, len(vectors), rows):
            table = beside.slice(start, rows)
            if spec.vector in columns:
                block = np.array(np.load(path, mmap_mode="r")[start : start + rows])
                table = table.append_column(spec.vector, _list_array(block, spec.path))
            yield table.select(list(columns))

    def digest() -> dict[str, Any]:
        size = path.stat().st_size + ids_path.stat().st_size
        return {"name": spec.path, "bytes": size, "blake2b": file_hash(path) + file_hash(ids_path)}

    vector_type = _list_array(np.empty((0, vectors.shape[1]), vectors.dtype), spec.path).type
    schema = beside.schema.append(pa.field(spec.vector, vector_type))
    return _part(spec.path, len(vectors), schema, spec, vectors.nbytes + beside.nbytes, read, digest)


def _read_ids_file(path: Path, spec: Source) -> pa.Table:
    if not path.is_file():
        raise InputError(f"no file at {path}; check `ids` (it is relative to the spec's own folder)")
    try:
        if path.suffix == ".parquet":
            _need_columns(path.name, pq.read_schema(path).names, {"id": spec.id}, spec.columns)
            return pq.read_table(path, columns=[spec.id, *spec.columns])
        if path.suffix == ".npy":
            return pa.table({spec.id: _id_array(np.load(path, allow_pickle=False), path.name)})
        return pa.table({spec.id: pa.array(path.read_text(encoding="utf-8").splitlines())})
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is not a readable file of ids: {error}") from error


def _table_part(table: pa.Table, spec: Source, name: str) -> Part:
    def read(columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        for start in range(0, len(table), rows):
            yield table.select(list(columns)).slice(start, rows)

    def digest() -> dict[str, Any]:
        hashed = hashlib.blake2b(digest_size=16)
        columns = [c for c in dict.fromkeys((spec.id, spec.vector, *spec.columns)) if c in table.column_names]
        for batch in table.select(columns).combine_chunks().to_batches(max_chunksize=65_536):
            hashed.update(batch.serialize())
        return {"name": name, "bytes": table.nbytes, "blake2b": hashed.hexdigest()}

    return _part(name, len(table), table.schema, spec, table.nbytes, read, digest)


def _need_columns(name: str, names: Sequence[str], roles: Mapping[str, str], others: Iterable[str]) -> None:
    """InputError that names all columns that are missing, and how the spec says which one is which."""
    missing = [column for column in dict.fromkeys((*roles.values(), *others)) if column not in names]
    if not missing:
        return
    lines = " and ".join(f'{role} = "..."' for role, column in roles.items() if column in missing)
    way = f"; the spec says which one it is: {lines}" if lines else ""
    raise InputError(f"{name} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(names)}{way}")


def _part(
    name: str,
    n_rows: int,
    schema: pa.Schema,
    spec: Source,
    stored_bytes: int,
    read: Callable[[Sequence[str], int], Iterator[pa.Table]],
    digest: Callable[[], dict[str, Any]],
) -> Part:
    _need_columns(name, schema.names, {"id": spec.id, "vector": spec.vector}, spec.columns)
    vector_type = schema.field(spec.vector).type
    if not _is_vector(vector_type):
        raise InputError(
            f"{name}: {spec.vector!r} is {vector_type}; vectors are lists of float16, float32, float64, int8 or uint8: "
            "cast it, for example to lists of float32"
        )
    row_bytes = 64 + 3 * stored_bytes // max(1, n_rows)  # compressed or encoded pages unfold
    return Part(
        name,
        n_rows,
        _id_type(schema.field(spec.id).type, name, spec.id),
        vector_type,
        row_bytes,
        {column: _known_type(schema.field(column).type) for column in spec.columns},
        read,
        digest,
    )


def _is_vector(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    return is_list and kind.value_type in ELEMENT_TYPES


def _id_type(kind: pa.DataType, name: str, column: str) -> pa.DataType:
    kind = _known_type(kind)
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
