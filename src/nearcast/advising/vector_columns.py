"""The columns of a table that can be vectors, with the sample of each as a matrix.

A run reads lists of float16, float32, float64, int8 and uint8. Other forms of vectors (a column per component, JSON
text, lists of int64) get a SQL expression that makes lists of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.sources.column_roles import is_vector_type
from nearcast.types import AnyArray

__all__ = ["VectorColumn", "find_vector_columns", "is_number", "is_text", "rank_word"]

VECTOR_WORDS = ("vector", "embedding", "emb", "vec", "factor", "feature")
FEWEST_COMPONENT_COLUMNS = 8
SHOWN_COLUMNS = 12
LINE_OF_PARTS = 10  # columns in a line of a query
PLAIN_NAME = re.compile(r"[a-z_]\w*\d", re.ASCII | re.IGNORECASE)
NUMBERED = re.compile(r"(.*?)(\d+)")


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """A column of vectors, or one that a query makes."""

    name: str
    kind: str  # for the comment in the spec
    vectors: AnyArray  # (n, dim) float64, of the sample, with the most frequent dimension; NaN for null components
    nulls: int  # rows of the sample without a vector
    odd: int  # rows of another dimension
    query: str | None = (
        None  # the columns of a query that makes the vectors: "*, ... as vector"; None if none is needed
    )
    parts: tuple[str, ...] = ()  # columns that hold a component each

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return int(self.vectors.shape[1])


def find_vector_columns(rows: pa.Table, where: str) -> list[VectorColumn]:
    """Return the columns that can be vectors, best first. where: the table, for messages.

    Raises InputError, with what the table has instead, if there is none.
    """
    lists = [_read_list(rows, field) for field in rows.schema if _is_list_of_numbers(field.type)]
    found = [column for column in lists if column is not None]
    found.sort(key=lambda column: (column.query is not None, rank_word(column.name, VECTOR_WORDS)))
    found += [column for field in rows.schema if (column := _read_json(rows, field)) is not None]
    if (wide := _join_components(rows)) is not None:
        found.append(wide)
    if not found:
        raise _explain_no_vector(rows, where, has_empty_lists=bool(lists))
    return found


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_number(kind: pa.DataType) -> bool:
    """Return whether a column holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def rank_word(name: str, words: Sequence[str]) -> int:
    """Return the place of the first word that a name contains; the number of words if it contains none."""
    return next((place for place, word in enumerate(words) if word in name.lower()), len(words))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    return _is_list(kind) and (is_number(kind.value_type) or pa.types.is_decimal(kind.value_type))


def _read_list(rows: pa.Table, field: pa.Field) -> VectorColumn | None:
    """Read a column of lists; None if all of them are empty or null."""
    component = field.type.value_type
    lists = rows[field.name].combine_chunks()
    if pa.types.is_decimal(component):
        lists = lists.cast(pa.list_(pa.float64()))
    fits = is_vector_type(field.type)
    shown = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}.get(component, str(component))
    query = None if fits else _cast_to_list(field.name)
    return _make_column(field.name, shown, lists, query)


def _read_json(rows: pa.Table, field: pa.Field) -> VectorColumn | None:
    """Read a column of texts like "[0.1, 0.2]"; None if it holds anything else."""
    if not is_text(field.type):
        return None
    texts = rows[field.name]
    first = next((text.as_py() for text in texts if text.is_valid), "")
    if not first.lstrip().startswith("["):
        return None
    try:
        lists = pa.array([None if text is None else json.loads(text) for text in texts.to_pylist()])
    except (ValueError, pa.ArrowException):
        return None
    if not _is_list_of_numbers(lists.type):
        return None
    return _make_column(field.name, "numbers, written as text", lists, _cast_to_list(field.name))


def _make_column(name: str, kind: str, lists: pa.Array, query: str | None) -> VectorColumn | None:
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    if not sizes.any():
        return None
    found, counts = np.unique(sizes[sizes > 0], return_counts=True)
    dim = int(found[counts.argmax()])
    flat = lists.filter(pa.array(sizes == dim)).flatten().to_numpy(zero_copy_only=False)  # a null is NaN
    vectors: AnyArray = flat.astype(np.float64).reshape(-1, dim)
    nulls = lists.null_count
    return VectorColumn(name, f"lists of {dim} {kind}", vectors, nulls, len(lists) - nulls - len(vectors), query)


def _cast_to_list(name: str) -> str:
    return f"* replace (cast({_identify(name)} as float[]) as {_identify(name)})"


def _join_components(rows: pa.Table) -> VectorColumn | None:
    """Make vectors of columns like v0 to v127, each with a component."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for field in rows.schema:
        if is_number(field.type) and (match := NUMBERED.fullmatch(field.name)):
            groups.setdefault(match[1], []).append((int(match[2]), field.name))
    whole = {
        prefix: [name for _, name in sorted(group)]
        for prefix, group in groups.items()
        if len(group) >= FEWEST_COMPONENT_COLUMNS
        and len({number for number, _ in group}) == len(group) == max(group)[0] - min(group)[0] + 1
    }
    if not whole:
        return None
    parts = max(whole.values(), key=len)
    name = "vector"
    while name in rows.column_names:
        name += "_"
    vectors = np.column_stack([rows[part].to_numpy() for part in parts]).astype(np.float64)
    names = list(map(_identify, parts))
    lines = [", ".join(names[at : at + LINE_OF_PARTS]) for at in range(0, len(names), LINE_OF_PARTS)]
    separator = ",\n  "
    query = f"*, cast([{separator.join(lines)}] as float[]) as {name}"
    kind = f"{len(parts)} numbers, of columns {parts[0]} to {parts[-1]}"
    return VectorColumn(name, kind, vectors, 0, 0, query, tuple(parts))


def _identify(name: str) -> str:
    """Write a name for SQL; words that end in a number, like v0, need no quotes."""
    return name if PLAIN_NAME.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def _explain_no_vector(rows: pa.Table, where: str, *, has_empty_lists: bool) -> InputError:
    """Return the error of a table without vectors: what it has, and what to write."""
    if has_empty_lists:
        return InputError(f"{where}: the first vectors are all empty or null; name a file with vectors")
    for field in rows.schema:
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type) or _is_fixed_binary(field.type):
            size = pc.max(pc.binary_length(rows[field.name])).as_py() or 0
            return InputError(
                f"{where} has no column of vectors: {field.name!r} holds {size} bytes per row; write the numbers as a "
                f"list, for example numpy.frombuffer(row, 'float32') for {size // 4} float32 numbers"
            )
        if pa.types.is_struct(field.type):
            return InputError(
                f"{where} has no column of vectors: {field.name!r} is {_shorten(str(field.type))}; write a list of "
                f"numbers per row (in Spark: vector_to_array({field.name}))"
            )
        if _is_list(field.type) and _is_list(field.type.value_type):
            return InputError(
                f"{where} has no column of vectors: {field.name!r} holds lists of lists; write one list of "
                "numbers, and one row, per vector"
            )
    held = [f"{field.name}: {field.type}" for field in rows.schema]
    more = f" and {len(held) - SHOWN_COLUMNS:,} more" if len(held) > SHOWN_COLUMNS else ""
    return InputError(
        f"{where} has no column of vectors, a list of numbers per row; it has {', '.join(held[:SHOWN_COLUMNS])}{more}; "
        "write the vectors as fixed_size_list<float>"
    )


def _is_fixed_binary(kind: Any) -> bool:
    return bool(pa.types.is_fixed_size_binary(kind))


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
