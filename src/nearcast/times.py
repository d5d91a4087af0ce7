"""Times and amounts of time to the nanosecond, as Python values: Python's own end at the microsecond.

Arrow tables hold nanoseconds, and only pandas, which is optional, has a Python type for them. Knows nothing of rules
or stores.
"""

from __future__ import annotations

import datetime
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["NanoDelta", "NanoTime", "nanoseconds_of", "parse_duration", "parse_time", "rows_of_table"]

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MICROSECOND = datetime.timedelta(microseconds=1)
FRACTION = re.compile(r"\d[.,](\d+)")
# a timedelta as Python writes it, and as pandas does
DURATIONS = (
    re.compile(r"(?:(-?\d+) days?, )?(\d+):(\d\d):(\d\d)(?:\.(\d+))?"),
    re.compile(r"P(-?\d+)DT(\d+)H(\d+)M(\d+)(?:\.(\d+))?S"),
)


class NanoTime(datetime.datetime):
    """A time with nanoseconds beyond its microseconds, 0 to 999."""

    nanosecond: int = 0

    @classmethod
    def of(cls, moment: datetime.datetime, nanosecond: int) -> NanoTime:
        """The time `nanosecond` later."""
        found = cls.combine(moment.date(), moment.timetz())
        found.nanosecond = nanosecond
        return found

    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        """ISO 8601, with nine digits of a second where there are nanoseconds."""
        if not self.nanosecond or timespec != "auto":
            return super().isoformat(sep, timespec)
        text = super().isoformat(sep, "microseconds")
        end = text.index(".") + 7
        return f"{text[:end]}{self.nanosecond:03d}{text[end:]}"

    def __str__(self) -> str:
        return self.isoformat(" ")


class NanoDelta(datetime.timedelta):
    """An amount of time with nanoseconds beyond its microseconds, 0 to 999."""

    nanoseconds: int = 0

    @classmethod
    def of(cls, amount: datetime.timedelta, nanoseconds: int) -> NanoDelta:
        """The amount `nanoseconds` longer."""
        found = cls(amount.days, amount.seconds, amount.microseconds)
        found.nanoseconds = nanoseconds
        return found

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text if '.' in text else text + '.000000'}{self.nanoseconds:03d}"


def nanoseconds_of(value: datetime.date | datetime.timedelta) -> int:
    """A date, a time or an amount of time in nanoseconds; times since 1970, in UTC where they name no zone."""
    if isinstance(value, datetime.timedelta):
        whole = datetime.timedelta(value.days, value.seconds, value.microseconds)
        return whole // MICROSECOND * 1000 + int(getattr(value, "nanoseconds", 0))
    if isinstance(value, datetime.datetime):
        moment = datetime.datetime.combine(value.date(), value.timetz())
        moment = moment.replace(tzinfo=moment.tzinfo or datetime.UTC)
        return (moment - EPOCH) // MICROSECOND * 1000 + int(getattr(value, "nanosecond", 0))
    return (value - EPOCH.date()) // MICROSECOND * 1000


def parse_time(text: str) -> int:
    """Read a date or time in ISO 8601: nanoseconds since 1970, what is finer cut off. ValueError where it is none."""
    moment = nanoseconds_of(datetime.datetime.fromisoformat(text))
    fraction = FRACTION.search(text)
    return moment + (int(fraction[1].ljust(9, "0")[6:9]) if fraction else 0)


def parse_duration(text: str) -> int | None:
    """Read an amount of time as `str(timedelta)` writes it, in nanoseconds; None where it is none."""
    found = next((match for pattern in DURATIONS if (match := pattern.fullmatch(text))), None)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()[:4])
    fraction = int((found[5] or "").ljust(9, "0")[:9])
    return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1_000_000_000 + fraction


def rows_of_table(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table as Python values, the same with and without pandas; nanoseconds are kept."""
    columns = [_values(table.column(place)) for place in range(table.num_columns)]
    names = table.column_names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] if names else [{}] * len(table)


def _values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    kind = column.type
    if pa.types.is_dictionary(kind) and _is_fine(kind.value_type):
        return _values(column.cast(kind.value_type))
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_fine(kind.value_type):
        flat = iter(_values(pc.list_flatten(column)))
        lengths = pc.list_value_length(column).to_pylist()
        return [None if length is None else [next(flat) for _ in range(length)] for length in lengths]
    if not _is_fine(kind):
        found: list[Any] = column.to_pylist()
        return found
    raw = column.cast(pa.int64()).to_pylist()
    coarse = pa.duration("us") if pa.types.is_duration(kind) else pa.timestamp("us", kind.tz)
    whole = pa.array([None if value is None else value // 1000 for value in raw], pa.int64()).cast(coarse).to_pylist()
    make: Any = NanoDelta.of if pa.types.is_duration(kind) else NanoTime.of
    return [
        value if value is None or not nanos % 1000 else make(value, nanos % 1000)
        for value, nanos in zip(whole, raw, strict=True)
    ]


def _is_fine(kind: pa.DataType) -> bool:
    return bool((pa.types.is_timestamp(kind) or pa.types.is_duration(kind)) and kind.unit == "ns")
