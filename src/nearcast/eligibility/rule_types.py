"""The types of the rule language, and the Arrow types of each."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

__all__ = ["Kind", "Type", "convert_arrow_type", "holds_nothing", "is_list", "with_types"]


class Kind(enum.StrEnum):
    """The kind of a value."""

    INTEGER = "integer"
    NUMBER = "number"
    TEXT = "text"
    BOOLEAN = "boolean"
    TIME = "time"
    DURATION = "duration"


WORDS = {
    Kind.INTEGER: ("a whole number", "whole numbers"),
    Kind.NUMBER: ("a number", "numbers"),
    Kind.TEXT: ("a text", "texts"),
    Kind.BOOLEAN: ("true or false", "booleans"),
    Kind.TIME: ("a date or time", "dates or times"),
    Kind.DURATION: ("an amount of time", "amounts of time"),
}
NUMERIC = (Kind.INTEGER, Kind.NUMBER)
TEMPORAL = (Kind.TIME, Kind.DURATION)


@dataclass(frozen=True, slots=True)
class Type:
    """The type of a value, or of a list of values."""

    kind: Kind
    many: bool = False

    @property
    def numeric(self) -> bool:
        """Return whether it is a single number."""
        return self.kind in NUMERIC and not self.many

    @property
    def temporal(self) -> bool:
        """Return whether it is a single time or amount of time."""
        return self.kind in TEMPORAL and not self.many

    def __str__(self) -> str:
        return f"a list of {WORDS[self.kind][1]}" if self.many else WORDS[self.kind][0]

    def as_plain(self) -> str:
        """Return the type as a word, for example text or [integer]."""
        return f"[{self.kind}]" if self.many else str(self.kind)

    @classmethod
    def from_plain(cls, word: str) -> Type:
        """Return the type of a word of `as_plain`."""
        return cls(Kind(word.strip("[]")), word.startswith("["))


SCALARS: Mapping[Kind, tuple[object, ...]] = {
    Kind.INTEGER: (pa.types.is_integer,),
    Kind.NUMBER: (pa.types.is_floating,),
    Kind.TEXT: (pa.types.is_string, pa.types.is_large_string, getattr(pa.types, "is_string_view", pa.types.is_string)),
    Kind.BOOLEAN: (pa.types.is_boolean,),
    Kind.TIME: (pa.types.is_date, pa.types.is_timestamp),
    Kind.DURATION: (pa.types.is_duration,),
}


def convert_arrow_type(column: pa.DataType) -> Type | None:
    """Return the type of an Arrow column, or None if rules do not support it."""
    if pa.types.is_dictionary(column):
        return convert_arrow_type(column.value_type)
    if is_list(column):
        inner = convert_arrow_type(column.value_type)
        usable = inner is not None and not inner.many and inner.kind not in (Kind.BOOLEAN, Kind.DURATION)
        return Type(inner.kind, many=True) if inner is not None and usable else None
    for kind, tests in SCALARS.items():
        if any(test(column) for test in tests):  # type: ignore[operator]
            return Type(kind)
    return None


def holds_nothing(column: pa.DataType) -> bool:
    """Return whether an Arrow column has no type because it has no value: all null, or all lists empty."""
    if pa.types.is_dictionary(column):
        return holds_nothing(column.value_type)
    return bool(pa.types.is_null(column.value_type if is_list(column) else column))


def is_list(column: pa.DataType) -> bool:
    """Return whether a column holds lists, of any length or of one."""
    return bool(pa.types.is_list(column) or pa.types.is_large_list(column) or pa.types.is_fixed_size_list(column))


ARROW: Mapping[Kind, pa.DataType] = {
    Kind.INTEGER: pa.int64(),
    Kind.NUMBER: pa.float64(),
    Kind.TEXT: pa.string(),
    Kind.BOOLEAN: pa.bool_(),
    Kind.TIME: pa.timestamp("us"),
    Kind.DURATION: pa.duration("us"),
}


def with_types(table: pa.Table, types: Mapping[str, Type]) -> pa.Table:
    """Return the table with each column without values as nulls of the given type."""
    for place, field in enumerate(table.schema):
        if holds_nothing(field.type) and field.name in types:
            found = types[field.name]
            kind = pa.large_list(ARROW[found.kind]) if found.many else ARROW[found.kind]
            table = table.set_column(place, field.name, pa.nulls(len(table), kind))
    return table
