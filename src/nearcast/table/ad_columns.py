"""Columns of ads as arrays that conditions are evaluated on for some rows: numbers, times, words, and lists of words.

A column never changes; `with_values` makes a new one. Knows nothing of rules, nor of where columns come from.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.eligibility.pair_reference import Nanos, as_float
from nearcast.eligibility.rule_types import Kind, is_list
from nearcast.errors import InputError
from nearcast.types import IntArray, flat

__all__ = ["Column", "missing_column", "to_column", "to_seconds"]

BoolArray = npt.NDArray[np.bool_]
Rows = IntArray
EXACT = 1 << 53  # float64 holds every whole number up to here


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A column of n ads. Numbers and times are values; a word is its number in `words`; a list is a range of words."""

    kind: str  # number, time, word or list
    values: npt.NDArray[Any]  # (n,) float64 or int64; (n,) int32 numbers of words, -1 for null; or of all lists' words
    missing: BoolArray  # (n,)
    words: Mapping[Any, int]  # the number of each word, counted from 0
    starts: IntArray  # (n + 1,) where each list begins; empty but for lists
    holds: Kind | None = None  # the type of a value, or of a value of a list; None if unknown

    def __len__(self) -> int:
        return len(self.missing)

    def number(self, value: Any) -> int:
        """Return the number of a word, -1 for one that no ad has."""
        try:
            return self.words.get(value, -1)
        except TypeError:  # a list or a mapping is no word
            return -1

    def equal(self, rows: Rows, value: Any) -> BoolArray:
        """Return (rows,) whether the column equals the value; False for null."""
        word = self.kind == "word"
        known = self.number(value) if word else self._exact(value)
        if known is None or (word and known < 0):  # null is -1, too
            return np.zeros(len(rows), np.bool_)
        same: BoolArray = self.values[rows] == known
        return same if word else same & ~self.missing[rows]

    def among(self, rows: Rows, values: Collection[Any]) -> BoolArray:
        """Return (rows,) whether the column equals one of the values; False for null."""
        if self.kind == "word":
            listed = np.zeros(len(self.words) + 1, np.bool_)  # the last element belongs to -1
            listed[[self.number(value) for value in values]] = True
            listed[-1] = False
            found: BoolArray = listed[self.values[rows]]
            return found
        known = [value for value in map(self._exact, values) if value is not None]
        if self.values.dtype.kind == "i":
            known = [int(value) for value in known if -(1 << 63) <= value < 1 << 63 and value == int(value)]
        return np.isin(self.values[rows], np.array(known, self.values.dtype)) & ~self.missing[rows]

    def holding(self, rows: Rows, values: Collection[Any]) -> BoolArray:
        """Return (rows,) whether the list has one of the values; a null list is empty."""
        numbers = {number for number in map(self.number, values) if number >= 0}
        if not numbers or len(rows) == 0:
            return np.zeros(len(rows), np.bool_)
        starts, ends = self.starts[rows], self.starts[rows + 1]
        words = self.values[flat(starts, ends)]
        hits = np.isin(words, list(numbers)) if len(numbers) > 1 else words == numbers.pop()
        return np.bincount(np.repeat(np.arange(len(rows)), ends - starts)[hits], minlength=len(rows)) > 0

    def within(self, rows: Rows, value: Any, *, above: bool) -> BoolArray:
        """Return (rows,) whether the column is at least the value (above), or at most the value; False for null."""
        bound = self._find_bound(value, above) if self.kind in ("number", "time") else None
        if bound is None:
            return np.zeros(len(rows), np.bool_)
        values = self.values[rows]
        found: BoolArray = (values >= bound if above else values <= bound) & ~self.missing[rows]
        return found

    def plain_values(self, rows: Rows) -> list[Any]:
        """Return the values of some rows as the reference of rules has them: None for null, frozensets for lists."""
        if self.kind in ("word", "list"):
            words = list(self.words)  # in the order of their numbers
            if self.kind == "word":
                return [None if number < 0 else words[number] for number in self.values[rows].tolist()]
            ranges = zip(self.starts[rows].tolist(), self.starts[rows + 1].tolist(), strict=True)
            plain: list[Any] = [frozenset(words[number] for number in self.values[a:b].tolist()) for a, b in ranges]
        else:
            plain = self.values[rows].tolist()
            if self.kind == "time":
                plain = [Nanos(round(seconds * 1e6) * 1000) for seconds in plain]
        missing = self.missing[rows].tolist()
        return [None if null else value for value, null in zip(plain, missing, strict=True)]

    def comparable(self, value: Any) -> Any:
        """Return a value as a number of this column, times in seconds; None for one that the column cannot hold."""
        if self.kind == "time":
            try:
                return value / 10**9 if isinstance(value, Nanos) else to_seconds(value)
            except InputError:
                return None
        return value if isinstance(value, int | float) else None

    def _exact(self, value: Any) -> Any:
        """Return the number of the column's type that equals the value; None if there is none."""
        at_least, at_most = self._find_bound(value, above=True), self._find_bound(value, above=False)
        return at_least if at_least == at_most else None

    def _find_bound(self, value: Any, above: bool) -> Any:
        """Return the smallest number of the column's type that is not below the value, or the largest not above it.

        NumPy compares int64 with float64 as float64, where 2^53 and 2^53 + 1 are equal; so large numbers are converted
        here. None for a value that the column cannot hold, and for NaN.
        """
        if isinstance(value, Nanos) and self.kind == "time":  # the columns are in microseconds
            return (-(-value // 1000) if above else value // 1000) / 10**6
        known = self.comparable(value)
        if known is None or known != known:
            return None
        if self.values.dtype.kind == "i":
            return int(known) if isinstance(known, float) and EXACT <= abs(known) < math.inf else known
        if isinstance(known, int) and abs(known) > EXACT:
            near = as_float(known)
            if near < known if above else near > known:
                return np.nextafter(near, math.inf if above else -math.inf)
            return near
        return known

    def with_values(self, changes: Mapping[int, Any]) -> Column:
        """Return the column with other values in some rows; None is null. Raises InputError for another kind."""
        rows = np.fromiter(changes, np.int64, len(changes))
        new = list(changes.values())
        missing = self.missing.copy()
        missing[rows] = [value is None for value in new]
        if self.kind == "list":
            return replace(self._with_lists(changes), missing=missing)
        values, words = self.values.copy(), self.words
        if self.kind == "word":
            words = dict(words)
            values[rows] = [-1 if value is None else words.setdefault(value, len(words)) for value in new]
            return replace(self, values=values, missing=missing, words=words)
        plain = [0 if value is None else self.comparable(value) for value in new]
        if None in plain:
            wrong = new[plain.index(None)]
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


def to_seconds(value: Any) -> float:
    """Return a time as seconds since 1970. value: seconds, a date, a datetime or ISO 8601 text; UTC without a zone."""
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


def to_column(values: pa.Array) -> Column | None:
    """Return an Arrow array as a column; None for a type that conditions do not support."""
    if pa.types.is_dictionary(values.type):
        return to_column(values.dictionary_decode())
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
        codes, words = _number_words(values)
        holds = Kind.BOOLEAN if pa.types.is_boolean(kind) else Kind.TEXT
        return Column("word", codes, missing, words, nothing, holds)
    if is_list(kind) and (_is_text(kind.value_type) or pa.types.is_integer(kind.value_type)):
        codes, words = _number_words(values.flatten())
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        starts = np.append(0, np.cumsum(lengths)).astype(np.int64)
        holds = Kind.TEXT if _is_text(kind.value_type) else Kind.INTEGER
        return Column("list", codes, missing, words, starts, holds)
    return None


def missing_column(n: int, kind: str) -> Column:
    """Return a column of n nulls, for one that was not published and that an overlay may set. kind: number or time."""
    holds = Kind.TIME if kind == "time" else Kind.NUMBER
    return Column(kind, np.zeros(n), np.ones(n, np.bool_), {}, np.empty(0, np.int64), holds)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _number_words(values: pa.Array) -> tuple[npt.NDArray[np.int32], dict[Any, int]]:
    """Return (n,) the number of each word, -1 for null, and the number by word."""
    encoded = values.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, {word: number for number, word in enumerate(encoded.dictionary.to_pylist())}
