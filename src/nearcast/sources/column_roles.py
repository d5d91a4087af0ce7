"""The columns of a source: ids, vectors and attributes. Validates their names and types; builds them from NumPy arrays.

Ids are int64 or large_string, vectors are lists of numbers. Knows nothing of files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError, SpecError
from nearcast.sources.arrow_types import plain_type, refuse_twice

__all__ = [
    "MissingColumnError",
    "id_array",
    "is_vector_type",
    "list_array",
    "name_type",
    "one_array",
    "plain_id_type",
    "require_columns",
]

ELEMENT_TYPES = {pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint8()}


class MissingColumnError(SpecError, InputError):
    """The data lacks an attribute, display or weight column that the spec names. Exit code 2: the spec is at fault."""

    exit_code = 2


def require_columns(name: str, names: Sequence[str], roles: Mapping[str, str], others: Iterable[str]) -> None:
    """Raise an error that names all missing columns, and the lines of the spec that assign columns.

    roles: spec key -> column, for ids and vectors. Raises InputError if one of these is missing, since the data is of
    another kind; MissingColumnError if only other columns are missing; InputError if a column occurs twice.
    """
    required = list(dict.fromkeys((*roles.values(), *others)))
    refuse_twice(names, required, name)
    missing = [column for column in required if column not in names]
    if not missing:
        return
    lines = " and ".join(f'{role} = "..."' for role, column in roles.items() if column in missing)
    hint = f"; the spec says which one it is: {lines}" if lines else ""
    if not lines:
        close = difflib.get_close_matches(missing[0], names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; write the column, or leave it out of the attributes"
    error = InputError if lines else MissingColumnError
    raise error(f"{name} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(names)}{hint}")


def is_vector_type(kind: pa.DataType) -> bool:
    """Return whether values of a type are vectors: lists of a supported number type, or nulls."""
    if pa.types.is_null(kind):
        return True
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    return is_list and kind.value_type in ELEMENT_TYPES


def plain_id_type(kind: pa.DataType, name: str, column: str) -> pa.DataType:
    """Return int64, large_string, or null for a column of nulls. Raises InputError for any other type."""
    kind = plain_type(kind)
    if pa.types.is_null(kind):
        return kind
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.large_string()
    hint = " (pandas turns integers with a gap into floats: use its Int64)" if pa.types.is_floating(kind) else ""
    raise InputError(f"{name}: ids in {column!r} are {kind}; ids are strings or integers{hint}")


def name_type(id_type: pa.DataType) -> str:
    """Return a type of ids in words."""
    return "an integer" if id_type == pa.int64() else "a string"


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return the chunks of a column as one array; without a copy if there is one chunk."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def id_array(ids: np.ndarray[Any, Any], name: str) -> pa.Array:
    """Convert a NumPy array of ids, (n,), to Arrow. Raises InputError for another shape or type."""
    if ids.ndim != 1:
        raise InputError(f"{name}: ids have shape {ids.shape}; give one id per vector")
    if ids.dtype.kind in "USTOiu":
        array = pa.array(ids.tolist() if ids.dtype.kind in "UTO" else ids)
        return pc.cast(array, pa.string()) if ids.dtype.kind == "S" else array
    raise InputError(f"{name}: ids are {ids.dtype}; ids are strings or integers")


def list_array(vectors: np.ndarray[Any, Any], name: str) -> pa.Array:
    """Convert a NumPy matrix of vectors, (n, dim), to Arrow lists. Raises InputError for another shape or type."""
    if vectors.ndim != 2:
        raise InputError(f"{name}: vectors have shape {vectors.shape}; give rows: (count, dimension)")
    if vectors.shape[1] == 0:
        raise InputError(f"{name}: vectors have no components")
    if vectors.dtype.kind not in "fiu":
        raise InputError(f"{name}: vectors are {vectors.dtype}; give float16, float32, float64, int8 or uint8")
    vectors = vectors.astype(vectors.dtype.newbyteorder("="), copy=False)
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, int(vectors.shape[1]))
