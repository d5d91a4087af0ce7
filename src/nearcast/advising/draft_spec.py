"""Draft a commented spec from the files of items and queries: guess ids, vectors, metric and columns to display.

Each guess is written with its reason, so that a person can correct it. Reads the footers and the first rows only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.advising.first_rows import FirstRows, read_first_rows
from nearcast.advising.guess_columns import (
    ROW_NUMBER,
    IdGuess,
    guess_attributes,
    guess_display,
    guess_id,
    guess_weight,
    measure_lengths,
)
from nearcast.advising.vector_columns import VectorColumn, find_vector_columns
from nearcast.errors import InputError
from nearcast.files import bucket_url

__all__ = ["draft_spec"]

UNIT = 1e-2  # lengths that differ from 1 by less are those of normalized vectors, also as float16
FAULTS = {
    "null_vector": "no vector",
    "wrong_dimension": "another dimension",
    "not_finite": "NaN, infinity or null in the vector",
    "zero_vector": "a vector of zeros",
    "null_id": "no id",
    "duplicate_id": "an id that has occurred before",
}
USUAL_K, USUAL_RECALL = 50, 0.95
NAMED_LETTERS = 70  # of the names of columns that are not used


@dataclass(frozen=True, slots=True)
class TableGuess:
    """What the columns of a table seem to be."""

    data: FirstRows
    id: IdGuess
    vector: VectorColumn
    other_vectors: tuple[str, ...]
    lengths: tuple[float, float]  # least and largest Euclidean length of the sampled vectors that have a direction
    zeros: int  # vectors of zeros in the sample
    display: tuple[str, ...]
    attributes: tuple[str, ...]
    weight: str | None
    left_out: tuple[str, ...]  # columns that no setting names, with their types


def draft_spec(items: str, queries: str | None, *, name: str, folder: Path) -> str:
    """Return the text of a spec for a file in `folder`. Paths are relative to the working folder, URLs, or tables.

    queries: None, or the same files as `items`: the items are the queries, and an item is no candidate of itself.
    Raises InputError if a table has no column that can be an id or a vector, or if the dimensions differ.
    """
    item_rows = read_first_rows(items, "items")
    item_vectors = find_vector_columns(item_rows.rows, f"items {items}")
    if queries is None or _absolute(queries) == _absolute(items):
        if item_rows.n_rows < 2:
            raise InputError(f"items {items} has one row, and an item is no candidate of itself; name queries, too")
        item_table, query_table = _guess_table(item_rows, item_vectors[0], item_vectors, "items"), None
    else:
        query_rows = read_first_rows(queries, "queries")
        query_vectors = find_vector_columns(query_rows.rows, f"queries {queries}")
        item_vector, query_vector = _pair_vectors(item_vectors, query_vectors)
        item_table = _guess_table(item_rows, item_vector, item_vectors, "items")
        query_table = _guess_table(query_rows, query_vector, query_vectors, "queries")
    metric, why = guess_metric(item_table)
    k = max(1, min(USUAL_K, item_rows.n_rows - (query_table is None)))
    lines = [
        "# Drafted by `nearcast init`: check each guess. `nearcast spec` prints every setting.",
        f"name = {_quote(name)}",
        f"metric = {_quote(metric)}  # {why}",
        f"k = {k}  # candidates per query",
        f"recall = {USUAL_RECALL}  # share of the true nearest items in the lists, measured in every run; 1.0 is exact",
    ]
    if query_table is None:
        lines.append("exclude_self = true  # items are the queries: an item is no candidate of itself")
    lines += ["", "[items]", *_describe_table(item_table, folder)]
    if item_table.attributes:
        lines.append(f"attributes = {_quote(list(item_table.attributes))}  # that rules, caps and slices may read")
    if item_table.display:
        lines.append(f"display = {_quote(list(item_table.display))}  # shown by look-ups and on the page")
    lines += _describe_left_out(item_table)
    if query_table is not None:
        lines += ["", "[queries]", *_describe_table(query_table, folder)]
        if query_table.attributes:
            lines.append(f"attributes = {_quote(list(query_table.attributes))}  # that rules and slices may read")
        if query_table.weight is not None:
            lines.append(f"weight = {_quote(query_table.weight)}  # traffic of a query: recall is reported by it, too")
        lines += _describe_left_out(query_table)
    tables = {"items": item_table} | ({"queries": query_table} if query_table is not None else {})
    if faults := list(_describe_faults(tables, metric)):
        lines += ["", "[checks]  # rows like these stop a run; remove a # to leave them out", *faults]
    return "\n".join(lines) + "\n"


def guess_metric(items: TableGuess) -> tuple[str, str]:
    """Return the metric and the reason."""
    least, largest = items.lengths
    span = f"vector lengths {least:.3g} to {largest:.3g}"
    whole = items.vector.vectors
    if abs(least - 1) < UNIT and abs(largest - 1) < UNIT:
        return "cosine", "all vectors have length 1, so cosine, inner_product and l2 give the same lists"
    if (whole == np.rint(whole)).all():
        if (whole >= 0).all():
            return "l2", "whole numbers of 0 and more, as descriptors of images are; see docs/spec.md"
        return "cosine", "whole numbers, as a model's vectors that were quantized"
    if largest > 1.1 * least:
        return "inner_product", f'{span}; "cosine" if the model ignores length'
    return "cosine", f"{span}: nearly equal"


def _absolute(path: str) -> str:
    return bucket_url(path) or os.path.abspath(path)


def _pair_vectors(items: list[VectorColumn], queries: list[VectorColumn]) -> tuple[VectorColumn, VectorColumn]:
    """Return a column of each table with the same dimension: of the same name if there is one, else the best.

    Raises InputError if no dimension is in both tables.
    """
    pairs = [(item, query) for item in items for query in queries if item.dim == query.dim]
    if not pairs:
        raise InputError(
            f"items have {items[0].dim} dimensions (column {items[0].name}), queries {queries[0].dim} "
            f"(column {queries[0].name}); write both with the same model"
        )
    return min(
        pairs,
        key=lambda pair: (pair[0].name != pair[1].name, items.index(pair[0]) + queries.index(pair[1])),
    )


def _guess_table(data: FirstRows, vector: VectorColumn, vectors: list[VectorColumn], what: str) -> TableGuess:
    where = f"{what} {data.location}"
    if vector.query is not None and data.scan_path(Path()) is None:
        raise InputError(f"{where}: {vector.name!r} has {vector.kind}; write it as fixed_size_list<float>")
    key = guess_id(data.rows, vector, where)
    least, largest, zeros = measure_lengths(vector)
    taken = {key.name, "id", *(column.name for column in vectors), *vector.parts}  # a snapshot calls its ids "id"
    others = [name for name in data.rows.column_names if name not in taken and not ROW_NUMBER.match(name)]
    display, attributes = guess_display(data.rows, others), guess_attributes(data.rows, others)
    weight = guess_weight(data.rows, others)
    return TableGuess(
        data=data,
        id=key,
        vector=vector,
        other_vectors=tuple(column.name for column in vectors if column is not vector),
        lengths=(least, largest),
        zeros=zeros,
        display=display if what == "items" else (),
        attributes=attributes,
        weight=weight if what == "queries" else None,
        left_out=tuple(
            f"{name} ({_name_type(data.rows.schema.field(name).type)})"
            for name in others
            if name not in attributes
            and not (what == "items" and name in display)
            and not (what == "queries" and name == weight)
        ),
    )


def _name_type(kind: pa.DataType) -> str:
    """Return the type without its parameters."""
    return str(kind).partition("<")[0].partition("(")[0].partition("[")[0]


def _describe_left_out(table: TableGuess) -> list[str]:
    """Return a comment that names the columns which no setting names; of many, the first."""
    names = [_escape_controls(name) for name in table.left_out]
    shown = [name for at, name in enumerate(names) if len(", ".join(names[: at + 1])) <= NAMED_LETTERS]
    more = len(names) - len(shown)
    if not names:
        return []
    return [f"# not used: {', '.join(shown)}" + (f"{' and ' * bool(shown)}{more:,} more" if more else "")]


def _describe_table(table: TableGuess, folder: Path) -> Iterator[str]:
    data, vector = table.data, table.vector
    for note in data.notes:
        yield f"# {_escape_controls(note)}"
    rows = f"{data.n_rows:,} row{'' if data.n_rows == 1 else 's'}"
    if vector.query is not None:
        scanned = (data.scan_path(folder) or "").replace("'", "''")
        yield f"# {rows}; the query makes lists of numbers, and needs DuckDB: pip install 'nearcast[duckdb]'"
        yield f"sql = {_quote_query(vector.query, scanned)}"
    else:
        yield f"{data.key} = {_quote(data.locate(folder))}  # {rows}"
    yield f"id = {_quote(table.id.name)}  # {table.id.why}"
    others = f"; {', '.join(table.other_vectors)} could be meant, too" if table.other_vectors else ""
    yield f"vector = {_quote(vector.name)}  # {_escape_controls(vector.kind + others)}"


def _describe_faults(tables: Mapping[str, TableGuess], metric: str) -> Iterator[str]:
    """Yield a commented setting for each kind of bad rows in the samples."""
    kinds = {kind: _count_faults(tables, kind) for kind in FAULTS if kind != "zero_vector" or metric == "cosine"}
    for kind, counts in kinds.items():
        if any(counts.values()):
            shown = " and ".join(
                f"{count:,} of the first {len(tables[what].data.rows):,} {what}"
                for what, count in counts.items()
                if count
            )
            yield f'# {kind} = "drop"  # {shown}: {FAULTS[kind]}'


def _count_faults(tables: Mapping[str, TableGuess], kind: str) -> dict[str, int]:
    def count(table: TableGuess) -> int:
        counts = {
            "null_vector": table.vector.nulls,
            "wrong_dimension": table.vector.odd,
            "not_finite": int(np.count_nonzero(~np.isfinite(table.vector.vectors).all(axis=1))),
            "zero_vector": table.zeros,
            "null_id": table.id.nulls,
            "duplicate_id": table.id.again,
        }
        return counts[kind]

    return {what: count(table) for what, table in tables.items()}


def _quote(value: Any) -> str:
    """Write a text or a list of texts as TOML does, which has the escapes of JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _quote_query(columns: str, files: str) -> str:
    """Write a query as a literal text of TOML, which has no escapes, where it can be one."""
    query = f"select {columns}\nfrom '{files}'"
    is_plain = "'''" not in query and query.replace("\n", "").isprintable()
    return f"'''\n{query}\n'''" if is_plain else _quote(query)


def _escape_controls(text: str) -> str:
    """Return a text for a comment: control characters, such as line breaks, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
