"""Draft a commented spec from the files of items and queries: guess ids, vectors, metric and columns to display.

Each guess is written with its reason, so that a person can correct it. Reads the footers and the first rows only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.files import bucket_url
from nearcast.sources.arrow_types import plain_column, refuse_twice
from nearcast.sources.column_roles import is_vector_type
from nearcast.sources.parquet_files import ParquetFiles, open_parquet
from nearcast.types import FloatArray

__all__ = ["TableGuess", "draft_spec", "guess_table"]

SAMPLE_ROWS = 4096
MOST_DISPLAYED, MOST_ATTRIBUTES = 4, 6
LONG_TEXT = 200  # letters; longer texts are not displayed
FEW_VALUES = 50  # distinct values of a text that is an attribute
UNIT = 1e-2  # lengths that differ from 1 by less are those of normalized vectors, also as float16
USUAL_K, USUAL_RECALL = 50, 0.95
ID_NAMES = ("id", "item_id", "product_id", "query_id", "user_id", "ad_id", "pin_id", "sku", "key", "article_id")
VECTOR_WORDS = ("vector", "embedding", "emb", "vec")
DISPLAY_WORDS = ("name", "title", "brand", "label", "text", "description", "category")
WEIGHT_WORDS = ("weight", "visits", "traffic", "requests", "views", "impressions", "count")


@dataclass(frozen=True, slots=True)
class TableGuess:
    """What the columns of a table seem to be."""

    id: str
    vector: str
    dim: int
    n_rows: int
    lengths: tuple[float, float]  # least and largest Euclidean length of the sampled vectors that have a direction
    whole_numbers: bool  # all components of the sample are integers
    display: tuple[str, ...]
    attributes: tuple[str, ...]
    weight: str | None
    reasons: dict[str, str]  # id, vector: why


def draft_spec(items: str, queries: str | None, *, name: str, folder: Path) -> str:
    """Return the text of a spec for a file in `folder`. Paths are relative to the working folder, or URLs.

    queries: None, or the same files as `items`: the items are the queries, and an item is no candidate of itself.
    Raises InputError if a table has no column that can be an id or a vector, or if the dimensions differ.
    """
    item_table = guess_table(items, "items")
    query_table = None
    if queries is not None and _absolute(queries) != _absolute(items):
        query_table = guess_table(queries, "queries")
        if query_table.dim != item_table.dim:
            raise InputError(
                f"items have {item_table.dim} dimensions (column {item_table.vector}), queries {query_table.dim} "
                f"(column {query_table.vector}); write both with the same model"
            )
    metric, why = guess_metric(item_table)
    k = max(1, min(USUAL_K, item_table.n_rows - (query_table is None)))
    lines = [
        "# Drafted by `nearcast init`: check each guess. `nearcast spec` prints every setting.",
        f"name = {_quote(name)}",
        f"metric = {_quote(metric)}  # {why}",
        f"k = {k}  # candidates per query",
        f"recall = {USUAL_RECALL}  # share of the true nearest items in the lists, measured in every run; 1.0 is exact",
    ]
    if query_table is None:
        lines.append("exclude_self = true  # items are the queries: an item is no candidate of itself")
    lines += ["", "[items]", *_describe_table(items, item_table, folder)]
    lines += _describe_columns(item_table)
    if query_table is not None:
        lines += ["", "[queries]", *_describe_table(queries or "", query_table, folder)]
        if query_table.weight is not None:
            lines.append(f"weight = {_quote(query_table.weight)}  # traffic of a query: recall is reported by it, too")
    return "\n".join(lines) + "\n"


def guess_table(path: str, what: str) -> TableGuess:
    """Guess the columns of a table from its schema and first rows. Raises InputError."""
    files = open_parquet(path, Path(), what, f"name a Parquet file of {what}, a folder of them or a glob")
    rows = _read_sample(files)
    if len(rows) == 0:
        raise InputError(f"{what} {path} has no rows; name a file with some")
    vector, vector_why = _guess_vector(rows, what, path)
    key, key_why = _guess_id(rows, vector, what, path)
    vectors = _to_matrix(rows[vector])
    lengths = _measure_lengths(vectors)
    others = [name for name in rows.column_names if name not in (key, vector, "id")]  # a snapshot calls its ids "id"
    display = _guess_display(rows, others)
    return TableGuess(
        id=key,
        vector=vector,
        dim=vectors.shape[1],
        n_rows=files.n_rows,
        lengths=lengths,
        whole_numbers=bool((vectors == np.rint(vectors)).all()),
        display=display,
        attributes=_guess_attributes(rows, [name for name in others if name not in display]),
        weight=_guess_weight(rows, others),
        reasons={"id": key_why, "vector": vector_why},
    )


def guess_metric(items: TableGuess) -> tuple[str, str]:
    """Return the metric and the reason."""
    least, largest = items.lengths
    span = f"vectors are {least:.3g} to {largest:.3g} long"
    if abs(least - 1) < UNIT and abs(largest - 1) < UNIT:
        return "cosine", "all vectors have length 1, so cosine, inner_product and l2 give the same lists"
    if items.whole_numbers:
        return "l2", f"{span}, of whole numbers, as descriptors of images are; cosine or inner_product for a model"
    if largest > 1.1 * least:
        return "inner_product", f"{span}: right if the model was trained with a dot product, else write cosine"
    return "cosine", f"{span}, nearly equal"


def _absolute(path: str) -> str:
    return bucket_url(path) or os.path.abspath(path)


def _read_sample(files: ParquetFiles) -> pa.Table:
    """Read the first rows."""
    names = files.schema.names
    refuse_twice(names, list(dict.fromkeys(names)), "the table")
    batches = list(islice(files.batches(names, SAMPLE_ROWS), 1))
    rows = pa.Table.from_batches(batches, batches[0].schema if batches else files.schema)
    return pa.table({name: plain_column(rows[name]) for name in names})


def _guess_vector(rows: pa.Table, what: str, path: str) -> tuple[str, str]:
    lists = [field.name for field in rows.schema if _is_vector(field.type) and rows[field.name].null_count < len(rows)]
    if not lists:
        held = ", ".join(f"{field.name}: {field.type}" for field in rows.schema)
        raise InputError(
            f"{what} {path} has no column of vectors, a list of numbers per row; it has {held}; write the vectors as "
            "fixed_size_list<float>"
        )

    def rank(name: str) -> tuple[bool, int, int]:
        fits = is_vector_type(rows.schema.field(name).type)
        return not fits, _rank_word(name, VECTOR_WORDS), rows.column_names.index(name)

    best = min(lists, key=rank)
    kind = rows.schema.field(best).type
    others = [name for name in lists if name != best]
    why = f"a {kind} per row" + (f"; {', '.join(others)} could be meant, too" if others else "")
    return best, why


def _is_vector(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(listed and _is_number(kind.value_type))


def _to_matrix(column: pa.ChunkedArray[Any]) -> FloatArray:
    """Return the vectors that have the most frequent length of the sample, (n, dim) float64."""
    lists = column.drop_null().combine_chunks()
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    if not sizes.any():
        raise InputError("the first vectors are all empty or null; name a file with vectors")
    found, counts = np.unique(sizes[sizes > 0], return_counts=True)
    dim = int(found[counts.argmax()])
    flat = lists.filter(pa.array(sizes == dim)).flatten().to_numpy(zero_copy_only=False)  # a null is NaN
    vectors: FloatArray = flat.astype(np.float64).reshape(-1, dim)
    return vectors


def _measure_lengths(vectors: FloatArray) -> tuple[float, float]:
    """Return the least and the largest length of the vectors that are finite and not zero; (1, 1) without any."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    usual = lengths[np.isfinite(lengths) & (lengths > 0)]
    return (float(usual.min()), float(usual.max())) if len(usual) else (1.0, 1.0)


def _guess_id(rows: pa.Table, vector: str, what: str, path: str) -> tuple[str, str]:
    def is_key(name: str) -> bool:
        kind, column = rows.schema.field(name).type, rows[name]
        fits = pa.types.is_integer(kind) or _is_text(kind)
        return fits and column.null_count == 0 and len(pc.unique(column)) == len(column)

    names = [name for name in rows.column_names if name != vector and is_key(name)]
    if not names:
        raise InputError(
            f"{what} {path} has no column of ids: whole numbers or text, without nulls, each once; add one"
        )
    best = min(names, key=lambda name: (_rank_id(name), rows.column_names.index(name)))
    return best, f"each value of the first {len(rows):,} rows is there once"


def _rank_id(name: str) -> int:
    if name.lower() in ID_NAMES:
        return ID_NAMES.index(name.lower())
    return len(ID_NAMES) if re.search(r"(_id|Id|ID|_key|uuid)$", name) else len(ID_NAMES) + 1


def _rank_word(name: str, words: Sequence[str]) -> int:
    return next((place for place, word in enumerate(words) if word in name.lower()), len(words))


def _guess_display(rows: pa.Table, names: Sequence[str]) -> tuple[str, ...]:
    """Return short texts, those with usual names first."""

    def is_short(name: str) -> bool:
        kind = rows.schema.field(name).type
        if not _is_text(kind):
            return False
        longest = pc.max(pc.utf8_length(rows[name])).as_py()
        return longest is not None and longest <= LONG_TEXT

    texts = [name for name in names if is_short(name)]
    named = sorted(texts, key=lambda name: _rank_word(name, DISPLAY_WORDS))
    wanted = [name for name in named if _rank_word(name, DISPLAY_WORDS) < len(DISPLAY_WORDS)] or named[:1]
    return tuple(wanted[:MOST_DISPLAYED])


def _guess_attributes(rows: pa.Table, names: Sequence[str]) -> tuple[str, ...]:
    """Return numbers, flags and texts of few values, which rules may read."""

    def is_attribute(name: str) -> bool:
        kind = rows.schema.field(name).type
        if _is_text(kind):
            return len(pc.unique(rows[name])) <= FEW_VALUES
        return _is_number(kind) or pa.types.is_boolean(kind)

    return tuple(name for name in names if is_attribute(name))[:MOST_ATTRIBUTES]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _guess_weight(rows: pa.Table, names: Sequence[str]) -> str | None:
    """Return a column of numbers, none negative, one of whose words names traffic: view_count, not country_id."""

    def rank(name: str) -> int:
        words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
        return min((place for place, word in enumerate(WEIGHT_WORDS) if word in words), default=len(WEIGHT_WORDS))

    def fits(name: str) -> bool:
        column = rows[name]
        return _is_number(column.type) and column.null_count == 0 and pc.min(column).as_py() >= 0

    found = [name for name in names if rank(name) < len(WEIGHT_WORDS) and fits(name)]
    return min(found, key=rank, default=None)


def _describe_table(path: str, table: TableGuess, folder: Path) -> list[str]:
    shown = path if bucket_url(path) else Path(os.path.relpath(path, folder)).as_posix()
    return [
        f"path = {_quote(shown)}  # {table.n_rows:,} rows",
        f"id = {_quote(table.id)}  # {table.reasons['id']}",
        f"vector = {_quote(table.vector)}  # {_escape_controls(table.reasons['vector'])}",
    ]


def _describe_columns(items: TableGuess) -> list[str]:
    lines = []
    if items.attributes:
        lines.append(f"attributes = {_quote(list(items.attributes))}  # that rules, caps and slices may read")
    if items.display:
        lines.append(f"display = {_quote(list(items.display))}  # shown by look-ups and on the page")
    return lines


def _quote(value: Any) -> str:
    """Write a text or a list of texts as TOML does, which has the escapes of JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _escape_controls(text: str) -> str:
    """Return a text for a comment: control characters, such as line breaks, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
