"""Times and durations: values with nanoseconds, which Python's own types lack, and UTC text for manifests and facts.

Arrow tables hold nanoseconds; only pandas, which is optional, has a Python type for them. Knows nothing of rules or
stores.
"""

from __future__ import annotations

import datetime
import re
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import DamagedError

__all__ = [
    "NanoDelta",
    "NanoTime",
    "format_utc",
    "parse_duration",
    "parse_time",
    "parse_utc",
    "to_nanoseconds",
    "to_rows",
]

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MICROSECOND = datetime.timedelta(microseconds=1)
FRACTION = re.compile(r"\d[.,](\d+)")
# a timedelta as Python and pandas write it
DURATIONS = (
    re.compile(r"(?:(-?\d+) days?, )?(\d+):(\d\d):(\d\d)(?:\.(\d+))?"),
    re.compile(r"P(-?\d+)DT(\d+)H(\d+)M(\d+)(?:\.(\d+))?S"),
)


class NanoTime(datetime.datetime):
    """A time with 0 to 999 nanoseconds after its microseconds."""

    nanosecond: int = 0

    @classmethod
    def of(cls, moment: datetime.datetime, nanosecond: int) -> NanoTime:
        """Add nanoseconds to a time."""
        fine = cls.combine(moment.date(), moment.timetz())
        fine.nanosecond = nanosecond
        return fine

    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        """Format as ISO 8601, with nine digits of a second if there are nanoseconds."""
        if not self.nanosecond or timespec != "auto":
            return super().isoformat(sep, timespec)
        text = super().isoformat(sep, "microseconds")
        end = text.index(".") + 7
        return f"{text[:end]}{self.nanosecond:03d}{text[end:]}"

    def __str__(self) -> str:
        return self.isoformat(" ")


class NanoDelta(datetime.timedelta):
    """A duration with 0 to 999 nanoseconds after its microseconds."""

    nanoseconds: int = 0

    @classmethod
    def of(cls, amount: datetime.timedelta, nanoseconds: int) -> NanoDelta:
        """Add nanoseconds to a duration."""
        fine = cls(amount.days, amount.seconds, amount.microseconds)
        fine.nanoseconds = nanoseconds
        return fine

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text if '.' in text else text + '.000000'}{self.nanoseconds:03d}"


def to_nanoseconds(value: datetime.date | datetime.timedelta) -> int:
    """Convert a date, time or duration to nanoseconds. Times count from 1970; without a zone they are UTC."""
    if isinstance(value, datetime.timedelta):
        whole = datetime.timedelta(value.days, value.seconds, value.microseconds)
        return whole // MICROSECOND * 1000 + int(getattr(value, "nanoseconds", 0))
    if isinstance(value, datetime.datetime):
        moment = datetime.datetime.combine(value.date(), value.timetz())
        moment = moment.replace(tzinfo=moment.tzinfo or datetime.UTC)
        return (moment - EPOCH) // MICROSECOND * 1000 + int(getattr(value, "nanosecond", 0))
    return (value - EPOCH.date()) // MICROSECOND * 1000


def parse_time(text: str) -> int:
    """Parse a date or time in ISO 8601 to nanoseconds since 1970, cutting finer digits. Raises ValueError."""
    moment = to_nanoseconds(datetime.datetime.fromisoformat(text))
    fraction = FRACTION.search(text)
    return moment + (int(fraction[1].ljust(9, "0")[6:9]) if fraction else 0)


def parse_duration(text: str) -> int | None:
    """Parse a duration as `str(timedelta)` writes it, to nanoseconds. Returns None for other text."""
    matched = next((match for pattern in DURATIONS if (match := pattern.fullmatch(text))), None)
    if matched is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in matched.groups()[:4])
    fraction = int((matched[5] or "").ljust(9, "0")[:9])
    return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1_000_000_000 + fraction


def format_utc(seconds: float) -> str:
    """Format seconds since 1970 as ISO 8601 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def parse_utc(text: str) -> float:
    """Parse ISO 8601 to seconds since 1970; without a zone it is UTC. Raises DamagedError for other text."""
    try:
        when = datetime.datetime.fromisoformat(text)
    except (ValueError, TypeError) as error:
        raise DamagedError(f"{text!r} is no time ({error})") from error
    return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Convert a table to rows of Python values: the same with and without pandas, nanoseconds included."""
    columns = [_to_values(table.column(number)) for number in range(table.num_columns)]
    names = table.column_names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] if names else [{}] * len(table)


def _to_values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    kind = column.type
    if pa.types.is_dictionary(kind) and _has_nanoseconds(kind.value_type):
        return _to_values(column.cast(kind.value_type))
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _has_nanoseconds(kind.value_type):
        flat = iter(_to_values(pc.list_flatten(column)))
        lengths = pc.list_value_length(column).to_pylist()
        return [None if length is None else [next(flat) for _ in range(length)] for length in lengths]
    if not _has_nanoseconds(kind):
        values: list[Any] = column.to_pylist()
        return values
    raw = column.cast(pa.int64()).to_pylist()
    coarse = pa.duration("us") if pa.types.is_duration(kind) else pa.timestamp("us", kind.tz)
    whole = pa.array([None if value is None else value // 1000 for value in raw], pa.int64()).cast(coarse).to_pylist()
    make: Any = NanoDelta.of if pa.types.is_duration(kind) else NanoTime.of
    return [
        value if value is None or not nanos % 1000 else make(value, nanos % 1000)
        for value, nanos in zip(whole, raw, strict=True)
    ]


def _has_nanoseconds(kind: pa.DataType) -> bool:
    return bool((pa.types.is_timestamp(kind) or pa.types.is_duration(kind)) and kind.unit == "ns")
