"""Tables in memory as a source: Arrow, pandas, polars, or a pair (ids, vectors) of NumPy arrays. Copies nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.errors import InputError
from nearcast.sources.column_roles import id_array, list_array, require_columns
from nearcast.sources.matrix import refuse_masked
from nearcast.sources.row_source import MAX_BATCH_ROWS, RowSource, RowSpan, describe_part, unify_parts
from nearcast.sources.user_files import UserFile, changed_error
from nearcast.spec import SourceSpec

__all__ = ["TableReader", "as_arrow", "is_table", "table_source"]


class TableReader:
    """Reads an Arrow table, and hashes it on the first digest: arrays in memory can be written to."""

    files: tuple[UserFile, ...] = ()

    def __init__(self, table: pa.Table, hashed_columns: Sequence[str], name: str) -> None:
        self._table = table
        self._hashed_columns = hashed_columns
        self._name = name
        self._hash: str | None = None

    def read(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.Table]:
        """Yield slices of the columns."""
        for start in range(0, len(self._table), max_rows):
            yield self._table.select(list(columns)).slice(start, max_rows)

    def read_span(self, columns: Sequence[str], max_rows: int, span: RowSpan) -> Iterator[pa.Table]:
        """Yield slices of the columns of a span."""
        for start in range(span.start, span.stop, max_rows):
            yield self._table.select(list(columns)).slice(start, min(max_rows, span.stop - start))

    def digest(self) -> dict[str, Any]:
        """Return name, bytes and hash of the table."""
        if self._hash is None:
            self._hash = self._hash_contents()
        return {"name": self._name, "bytes": self._table.nbytes, "blake2b": self._hash}

    def check_contents(self) -> None:
        """Raise InputError if the contents differ from the first digest."""
        if self._hash is not None and self._hash_contents() != self._hash:
            raise changed_error(self._name)

    def _hash_contents(self) -> str:
        hasher = hashlib.blake2b(digest_size=16)
        for batch in self._table.select(self._hashed_columns).combine_chunks().to_batches(max_chunksize=MAX_BATCH_ROWS):
            hasher.update(batch.serialize())
        return hasher.hexdigest()


def table_source(spec: SourceSpec, data: object, name: str) -> RowSource:
    """Open a table in memory as a source. Raises InputError if it cannot be read as a table."""
    if spec.only is not None:
        raise InputError(f"only = {spec.only!r} goes with files; leave the rows out of the table that is given")
    try:
        table = as_arrow(data, spec, name)
    except (pa.ArrowException, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise InputError(
            f"{name} cannot be read as a table ({error}); give ids of one type, and vectors of one length, a row each"
        ) from error
    columns = [c for c in dict.fromkeys((spec.id, spec.vector, *spec.columns)) if c in table.column_names]
    reader = TableReader(table, columns, name)
    part = describe_part(name, len(table), table.schema, table.nbytes, spec, reader)
    return unify_parts(RowSource(spec, (part,)))


def is_table(data: object) -> bool:
    """Return whether this is a table in memory, not a path."""
    return isinstance(data, tuple) or hasattr(data, "__arrow_c_stream__") or hasattr(data, "__dataframe__")


def as_arrow(data: object, spec: SourceSpec, name: str) -> pa.Table:
    """Convert a table of a supported kind to Arrow. Raises InputError for other kinds."""
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        for what, part in zip(("ids", "vectors"), data, strict=True):
            refuse_masked(part, f"{name}: the {what}")
        ids, vectors = (np.asarray(part) for part in data)
        if len(ids) != len(vectors):
            raise InputError(f"{name} have {len(ids)} ids for {len(vectors)} vectors")
        return pa.table({spec.id: id_array(ids, name), spec.vector: list_array(vectors, name)})
    if hasattr(data, "iteritems") or type(data).__module__.startswith("pandas"):
        return _from_pandas(data, spec, name)
    if hasattr(data, "__arrow_c_stream__"):
        return pa.table(data)
    kind = type(data).__name__
    raise InputError(f"{name} is a {kind}; give an Arrow, pandas or polars table, or a pair (ids, vectors)")


def _from_pandas(frame: Any, spec: SourceSpec, name: str) -> pa.Table:
    names = [str(column) for column in frame.columns]
    require_columns(name, names, {"id": spec.id, "vector": spec.vector}, spec.columns)
    columns = list(dict.fromkeys((spec.id, spec.vector, *spec.columns)))
    refuse_masked(list(frame[spec.vector]), f"{name}: the vectors")
    return pa.Table.from_pandas(frame[columns], preserve_index=False)
