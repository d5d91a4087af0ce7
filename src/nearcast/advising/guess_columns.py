"""Guess what the columns of a table are: the ids, the columns to display, attributes of rules, and the traffic.

Each guess has its reason. Knows the first rows of a table, not where they come from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.advising.vector_columns import VectorColumn, is_number, is_text, rank_word
from nearcast.eligibility.rule_types import convert_arrow_type
from nearcast.errors import InputError

__all__ = ["ROW_NUMBER", "IdGuess", "guess_attributes", "guess_display", "guess_id", "guess_weight", "measure_lengths"]

MOST_DISPLAYED, USUAL_DISPLAYED, MOST_ATTRIBUTES = 4, 3, 6
LONG_TEXT = 200  # letters; longer texts are not displayed
FEW_VALUES = 50  # distinct values of a text that is an attribute
NEARLY_ALL = 0.9  # share of distinct values of a column that is named as an id, and has faults
ID_NAMES = ("id", "item_id", "product_id", "query_id", "user_id", "ad_id", "pin_id", "sku", "key", "article_id")
ID_ENDING = re.compile(r"(_id|Id|ID|_key|uuid|guid)$")
ROW_NUMBER = re.compile(r"__index_level_\d+__|Unnamed: \d+")  # names that pandas gives
DISPLAY_WORDS = ("name", "title", "headline", "brand", "label", "text", "description", "category")
WEIGHT_WORDS = (
    "weight",
    "visits",
    "traffic",
    "requests",
    "views",
    "impressions",
    "sessions",
    "searches",
    "plays",
    "clicks",
    "count",
    "cnt",
)
LINK = re.compile(r"https?://")


@dataclass(frozen=True, slots=True)
class IdGuess:
    """The column that seems to hold the ids."""

    name: str
    why: str
    nulls: int  # rows of the sample
    again: int  # rows of the sample whose id has occurred before


def guess_id(rows: pa.Table, vector: VectorColumn, where: str) -> IdGuess:
    """Return the column of ids: whole numbers or text, each once; a column that is named as one may have a few faults.

    where: the table, for messages. Raises InputError if there is none.
    """
    guesses = []
    for field in rows.schema:
        if field.name == vector.name or not (pa.types.is_integer(field.type) or is_text(field.type)):
            continue
        column = rows[field.name]
        distinct = pc.count_distinct(column, mode="only_valid").as_py()
        again = len(column) - column.null_count - distinct
        is_clean = not column.null_count and not again
        named = _rank_id(field.name) <= len(ID_NAMES)
        if is_clean or (named and len(column) > 1 and distinct >= NEARLY_ALL * len(column)):
            why = f"each value of the first {len(rows):,} rows is there once" if len(rows) > 1 else "of one row"
            if not is_clean:
                why = f"{distinct:,} values in the first {len(rows):,} rows"
            guesses.append(IdGuess(field.name, why, column.null_count, again))
    if not guesses:
        raise _explain_no_id(rows, where)
    return min(guesses, key=lambda guess: (_rank_id(guess.name), rows.column_names.index(guess.name)))


def guess_display(rows: pa.Table, names: Sequence[str]) -> tuple[str, ...]:
    """Return short texts: those with usual names, then those with the most values. Links to pages are left out."""
    texts = [name for name in names if _is_short_text(rows[name])]
    named = sorted(
        (name for name in texts if rank_word(name, DISPLAY_WORDS) < len(DISPLAY_WORDS)),
        key=lambda name: rank_word(name, DISPLAY_WORDS),
    )
    others = sorted(
        (name for name in texts if name not in named), key=lambda name: -pc.count_distinct(rows[name]).as_py()
    )
    return (*named[:MOST_DISPLAYED], *others[: max(0, USUAL_DISPLAYED - len(named))])


def guess_attributes(rows: pa.Table, names: Sequence[str]) -> tuple[str, ...]:
    """Return columns that rules can read: numbers, flags, times, lists of texts, and texts of few values."""

    def is_attribute(name: str) -> bool:
        kind = rows.schema.field(name).type
        if is_text(kind):
            return 0 < pc.count_distinct(rows[name]).as_py() <= FEW_VALUES and _longest(rows[name]) <= LONG_TEXT
        found = convert_arrow_type(kind)
        return found is not None and (not found.many or is_text(kind.value_type))

    return tuple(name for name in names if is_attribute(name))[:MOST_ATTRIBUTES]


def guess_weight(rows: pa.Table, names: Sequence[str]) -> str | None:
    """Return a column of numbers, none negative, one of whose words names traffic: view_count, not country_id."""

    def rank(name: str) -> int:
        words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
        return min((place for place, word in enumerate(WEIGHT_WORDS) if word in words), default=len(WEIGHT_WORDS))

    def fits(name: str) -> bool:
        column = rows[name]
        return is_number(column.type) and column.null_count == 0 and pc.min(column).as_py() >= 0

    found = [name for name in names if rank(name) < len(WEIGHT_WORDS) and fits(name)]
    return min(found, key=rank, default=None)


def measure_lengths(column: VectorColumn) -> tuple[float, float, int]:
    """Return the least and the largest length of the finite vectors that are not zero, and how many are zero.

    Lengths are (1, 1) without such vectors.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", column.vectors, column.vectors))
    usual = lengths[np.isfinite(lengths) & (lengths > 0)]
    zeros = int(np.count_nonzero(lengths == 0))
    return (float(usual.min()), float(usual.max()), zeros) if len(usual) else (1.0, 1.0, zeros)


def _rank_id(name: str) -> int:
    if name.lower() in ID_NAMES:
        return ID_NAMES.index(name.lower())
    if ROW_NUMBER.match(name):
        return len(ID_NAMES) + 2
    return len(ID_NAMES) if ID_ENDING.search(name) else len(ID_NAMES) + 1


def _is_short_text(column: pa.ChunkedArray) -> bool:
    if not is_text(column.type):
        return False
    first = next((text.as_py() for text in column if text.is_valid), "")
    says_something = len(column) == 1 or pc.count_distinct(column).as_py() > 1
    return 0 < _longest(column) <= LONG_TEXT and says_something and not LINK.match(first)


def _longest(column: pa.ChunkedArray) -> int:
    """Return the letters of the longest text; 0 if there is none."""
    return int(pc.max(pc.utf8_length(column)).as_py() or 0)


def _explain_no_id(rows: pa.Table, where: str) -> InputError:
    """Return the error of a table without ids; names the column that is one but for its type or repeated values."""
    hint = "add one"
    for field in rows.schema:
        if field.type == pa.binary(16):
            hint = f"{field.name!r} has 16 bytes per row, as UUIDs have: write it as text"
    for field in sorted(rows.schema, key=lambda field: _rank_id(field.name)):
        if _rank_id(field.name) > len(ID_NAMES):
            break
        column = rows[field.name]
        if not (pa.types.is_integer(field.type) or is_text(field.type)):
            hint = f"{field.name!r} is {field.type}: write it as whole numbers or text"
        else:
            distinct = pc.count_distinct(column, mode="only_valid").as_py()
            hint = f"{field.name!r} has {distinct:,} values in the first {len(rows):,} rows: write one row per id"
        break
    return InputError(f"{where} has no column of ids: whole numbers or text, without nulls, each once; {hint}")
