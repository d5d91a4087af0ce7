"""Columns of ads as arrays that conditions are asked of for some rows: numbers, times, words, and lists of words.

A column never changes; `with_values` makes the next one. Knows nothing of where columns come from.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.eligibility.rule_types import Kind, is_list
from nearcast.errors import InputError
from nearcast.types import IntArray, flat

__all__ = ["Column", "column_of", "missing_column", "seconds_of_time"]

BoolArray = npt.NDArray[np.bool_]
Rows = IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A column of n ads. Numbers and times are values; words are numbers in `words`; a list is a stretch of them."""

    kind: str  # number, time, word or list
    values: npt.NDArray[Any]  # (n,) float64 or int64; (n,) int32 of words; or all words of all lists
    missing: BoolArray  # (n,)
    words: Mapping[Any, int]  # a word: its number
    starts: IntArray  # (n + 1,) where each list begins; empty but for lists
    holds: Kind | None = None  # what a value, or a value of a list, is; None where nobody knows

    def __len__(self) -> int:
        return len(self.missing)

    def number(self, value: Any) -> int:
        """The number of a word, -1 for one that no ad has."""
        try:
            return self.words.get(value, -1)
        except TypeError:  # a list or a mapping is no word
            return -1

    def equal(self, rows: Rows, value: Any) -> BoolArray:
        """(rows,) whether the value is this one; of a missing value it is not."""
        if self.kind == "word":
            found: BoolArray = self.values[rows] == self.number(value)
            return found
        wanted = self.comparable(value)
        if wanted is None:
            return np.zeros(len(rows), np.bool_)
        same: BoolArray = (self.values[rows] == wanted) & ~self.missing[rows]
        return same

    def among(self, rows: Rows, values: Sequence[Any]) -> BoolArray:
        """(rows,) whether the value is one of these."""
        if self.kind == "word":
            wanted = np.zeros(len(self.words) + 1, np.bool_)  # the last place is that of -1
            wanted[[self.number(value) for value in values]] = True
            wanted[-1] = False
            found: BoolArray = wanted[self.values[rows]]
            return found
        known = [value for value in map(self.comparable, values) if value is not None]
        return np.isin(self.values[rows], known) & ~self.missing[rows]

    def holding(self, rows: Rows, values: Sequence[Any]) -> BoolArray:
        """(rows,) whether the list has one of these values."""
        wanted = {number for number in map(self.number, values) if number >= 0}
        if not wanted or len(rows) == 0:
            return np.zeros(len(rows), np.bool_)
        starts, ends = self.starts[rows], self.starts[rows + 1]
        words = self.values[flat(starts, ends)]
        held = np.isin(words, list(wanted)) if len(wanted) > 1 else words == wanted.pop()
        return np.bincount(np.repeat(np.arange(len(rows)), ends - starts)[held], minlength=len(rows)) > 0

    def within(self, rows: Rows, value: Any, *, above: bool) -> BoolArray:
        """(rows,) whether the value is at least this one, or at most."""
        wanted = self.comparable(value)
        if wanted is None or self.kind not in ("number", "time"):
            return np.zeros(len(rows), np.bool_)
        held = self.values[rows]
        found: BoolArray = (held >= wanted if above else held <= wanted) & ~self.missing[rows]
        return found

    def comparable(self, value: Any) -> Any:
        """A value in the terms of this column; None for one that it cannot hold."""
        if self.kind == "time":
            try:
                return seconds_of_time(value)
            except InputError:
                return None
        return value if isinstance(value, int | float) else None

    def with_values(self, changes: Mapping[int, Any]) -> Column:
        """The column with other values in some rows; None is a missing one. InputError for one of another kind."""
        rows = np.fromiter(changes, np.int64, len(changes))
        given = list(changes.values())
        missing = self.missing.copy()
        missing[rows] = [value is None for value in given]
        if self.kind == "list":
            return replace(self._with_lists(changes), missing=missing)
        values, words = self.values.copy(), self.words
        if self.kind == "word":
            words = dict(words)
            values[rows] = [-1 if value is None else words.setdefault(value, len(words)) for value in given]
            return replace(self, values=values, missing=missing, words=words)
        plain = [0 if value is None else self.comparable(value) for value in given]
        if None in plain:
            wrong = given[plain.index(None)]
            raise InputError(f"a column of {self.kind}s cannot hold {wrong!r}")
        if values.dtype.kind == "i" and any(isinstance(value, float) for value in plain):
            values = values.astype(np.float64)
        values[rows] = plain
        return replace(self, values=values, missing=missing)

    def _with_lists(self, changes: Mapping[int, Any]) -> Column:
        words = dict(self.words)
        pieces = [self.values[a:b] for a, b in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)]
        for row, value in changes.items():
            if value is not None and not isinstance(value, list | tuple):
                raise InputError(f"a column of lists cannot hold {value!r}")
            pieces[row] = np.array([words.setdefault(word, len(words)) for word in value or ()], np.int32)
        starts = np.append(0, np.cumsum([len(piece) for piece in pieces]))
        return replace(self, values=np.concatenate(pieces), words=words, starts=starts.astype(np.int64))


def seconds_of_time(value: Any) -> float:
    """A time as seconds since 1970: a number of them, a date or time, or ISO 8601 text, in UTC if it names no zone."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError as error:
            raise InputError(f"{value[:50]!r} is no time; write it like 2026-12-31T18:00:00Z") from error
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime.datetime):
        raise InputError(f"{value!r} is no time; write it like 2026-12-31T18:00:00Z")
    return (value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)).timestamp()


def column_of(values: pa.Array) -> Column | None:
    """An Arrow array as a column; None for a type that no condition can be asked of."""
    if pa.types.is_dictionary(values.type):
        return column_of(values.dictionary_decode())
    kind, nothing = values.type, np.empty(0, np.int64)
    missing = values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        stamps = values.cast(pa.timestamp("us")).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        return Column("time", stamps / 1e6, missing, {}, nothing, Kind.TIME)
    if _is_number(kind):
        plain = values.cast(pa.float64()) if pa.types.is_decimal(kind) else values
        numbers = pc.fill_null(plain, 0).to_numpy(zero_copy_only=False)
        wide = np.int64 if numbers.dtype.kind in "iu" else np.float64
        return Column("number", numbers.astype(wide), missing, {}, nothing, Kind.NUMBER)
    if pa.types.is_boolean(kind) or _is_text(kind):
        codes, words = _coded(values)
        holds = Kind.BOOLEAN if pa.types.is_boolean(kind) else Kind.TEXT
        return Column("word", codes, missing, words, nothing, holds)
    if is_list(kind) and (_is_text(kind.value_type) or pa.types.is_integer(kind.value_type)):
        codes, words = _coded(values.flatten())
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        starts = np.append(0, np.cumsum(lengths)).astype(np.int64)
        holds = Kind.TEXT if _is_text(kind.value_type) else Kind.INTEGER
        return Column("list", codes, missing, words, starts, holds)
    return None


def missing_column(n: int, kind: str) -> Column:
    """A column of n missing numbers or times, for one that was not published and that an overlay may give values."""
    holds = Kind.TIME if kind == "time" else Kind.NUMBER
    return Column(kind, np.zeros(n), np.ones(n, np.bool_), {}, np.empty(0, np.int64), holds)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _coded(values: pa.Array) -> tuple[npt.NDArray[np.int32], dict[Any, int]]:
    """(n,) numbers of words, -1 for none, and the words."""
    encoded = values.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, {word: number for number, word in enumerate(encoded.dictionary.to_pylist())}
