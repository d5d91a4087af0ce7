"""Values that overlay entries may give to columns: their conversion, their validation, and sums of numbers.

Also the overlay's rules for expansion tables: their role columns (bid, budget, spent, starts, ends) take money and
times, and a version holds values up to its `as_of`. Knows nothing of stores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np

from nearcast.errors import InputError
from nearcast.spec import parse_model
from nearcast.stores.base import OverlayEntry
from nearcast.stores.version_facts import VersionFacts
from nearcast.table.ad_columns import to_seconds
from nearcast.table.expansion_checks import check_role, find_role
from nearcast.table.expansion_settings import AdSettings

__all__ = [
    "Until",
    "add_numbers",
    "find_current_number",
    "fits_type",
    "is_in_force",
    "list_role_columns",
    "parse_until",
    "to_json_value",
    "validate_amount",
    "validate_entries",
    "validate_field",
    "validate_value",
]

Until = float | str | datetime | None  # end of an entry: seconds since 1970, ISO 8601 or a datetime; None: no end

FLOATS = ("halffloat", "float", "double", "decimal")
# prefixes of Arrow type names, and the Python types of their JSON values
JSON_TYPES: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("bool",), bool),
    (("int", "uint"), int),
    (FLOATS, int | float),
    (("string", "large_string", "date", "time", "timestamp"), str),
)
LISTS = ("list", "large_list", "fixed_size_list")
LAST_SECOND = 253_402_300_799  # of the year 9999


def to_json_value(value: Any) -> Any:
    """Return a NumPy scalar as a Python number and a date or time as ISO 8601; other values do not change."""
    if isinstance(value, np.generic):
        value = value.item()
    return value.isoformat() if isinstance(value, date) else value


def parse_until(until: Until, now: float) -> float | None:
    """Return the end of an entry in seconds since 1970. Raises InputError if it is no time or has passed."""
    end = None if until is None else to_seconds(until)
    if end is None:
        return None
    if not math.isfinite(end):
        raise InputError(f"until is no time: {end}")
    if end > LAST_SECOND:
        raise InputError(f"until is {end:g}, after the year 9999; without an end it is for good")
    if end <= now:
        raise InputError(f"until is {datetime.fromtimestamp(end, UTC):%Y-%m-%dT%H:%M:%SZ}: that has passed")
    return end


def validate_field(field: str) -> None:
    """Raise InputError for a name that no column can have."""
    if not field or field == "id":
        raise InputError(f"{field!r} is no column that can have a value")


def validate_amount(field: str, amount: Any) -> None:
    """Raise InputError if the amount is not a finite number."""
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not math.isfinite(amount):
        raise InputError(f"{amount!r} cannot be added to {field}: give a number")


def validate_entries(entries: Sequence[OverlayEntry]) -> None:
    """Raise InputError if a value or note is not JSON data."""
    try:
        values = [[entry.item, entry.field, entry.value, entry.note] for entry in entries]
        json.dumps(values, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"the overlay holds JSON data, and this is none: {error}") from error


def validate_value(facts: VersionFacts, field: str, value: Any) -> None:
    """Raise InputError for a value that the column cannot hold: look-ups would treat it as missing."""
    columns = facts.columns
    if facts.expansion:
        role = find_role(parse_model(AdSettings, facts.expansion, "the settings"), field)
        if role is not None and (field not in columns or isinstance(value, int | float)):
            check_role(field, role, value)
            return
    if field in columns and not _is_usable(value, columns[field]):
        raise InputError(f"{field} is a column of type {columns[field]}, and {value!r} is no such value")


def fits_type(value: Any, column: str) -> bool:
    """Return whether a column of this Arrow type, given as text, can hold the value. Nested types accept any value."""
    if value is None:
        return True
    limit = 1 << (64 if column.startswith("uint64") else 63)
    if type(value) is int and not column.startswith(FLOATS) and not -(1 << 63) <= value < limit:
        return False
    for prefixes, types in JSON_TYPES:
        if column.startswith(prefixes):
            return isinstance(value, types) and (isinstance(value, bool) == (types is bool))
    return True


def _is_usable(value: Any, column: str) -> bool:
    """Return whether look-ups can use the value: as `fits_type`, and also valid list elements, dates and times."""
    if value is not None and column.startswith(LISTS) and "<" in column:
        inner = column[column.index("<") + 1 : column.rindex(">")].split(": ", 1)[-1].removesuffix(" not null")
        return isinstance(value, list | tuple) and all(_is_usable(each, inner) for each in value)
    if isinstance(value, str) and column.startswith(("date", "timestamp")):
        return _is_time(value)
    return fits_type(value, column)


def _is_time(text: str) -> bool:
    try:
        to_seconds(text)
    except InputError:
        return False
    return True


def list_role_columns(facts: VersionFacts) -> tuple[str, ...]:
    """Return the role columns of an expansion table, including absent ones; empty for a generator."""
    return tuple(facts.expansion["columns"].values()) if facts.expansion else ()


def find_current_number(facts: VersionFacts, row: Mapping[str, Any], field: str) -> Any:
    """Return the value of a column in a row of the current version, for an addition. A missing `spent` is 0."""
    number = row.get(field)
    if number is None and facts.expansion and field == facts.expansion["columns"]["spent"]:
        return 0
    if isinstance(number, str) and facts.columns.get(field, "").startswith("decimal"):
        return float(number)
    return number


def is_in_force(entry: OverlayEntry, facts: VersionFacts, now: float) -> bool:
    """Return whether look-ups use the entry: not restored, not expired, and newer than the table's source."""
    if entry.lifted or (entry.until is not None and entry.until <= now):
        return False
    return facts.as_of is None or entry.written > datetime.fromisoformat(facts.as_of).timestamp()


def add_numbers(number: float, amount: float) -> float:
    """Return the sum, exact in decimals. Raises InputError if it does not fit int64 or float64."""
    if isinstance(number, int) and isinstance(amount, int):
        total: float = number + amount
        fits = -(1 << 63) <= total < 1 << 63
    else:
        total = float(Decimal(repr(number)) + Decimal(repr(amount)))
        fits = math.isfinite(total)
    if not fits:
        raise InputError(f"{number!r} and {amount!r} are more than a number can hold")
    return total
