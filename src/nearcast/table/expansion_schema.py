"""Which columns a table of ads may have: their types, what a store keeps of them, and the columns that mean something.

A store keeps five types and lists of them: int64, double, string, bool, and timestamp[us] in UTC. What fits one of them
without loss is converted; anything else is refused by name. Knows nothing of stores.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.eligibility.rule_types import Kind, Type, type_of_column
from nearcast.errors import InputError
from nearcast.suggest import suggest_name
from nearcast.table.ad_columns import seconds_of_time
from nearcast.table.expansion_settings import MONEY_ROLES, TIME_ROLES, Serving, Target

__all__ = ["check_role", "check_settings", "check_values", "convert_columns", "kind_of_role"]

ACCEPTED = "whole numbers up to 2^63 - 1, floats, text, true or false, dates, timestamps, and lists of these"
MONEY = "whole numbers, floats or decimals"
TIMES = "timestamps, dates, or seconds since 1970 as numbers"
YEARS = (-62_135_596_800_000_000, 253_402_300_799_999_999)  # microseconds of the years 1 to 9999, which ISO 8601 has
LATEST_SECONDS = 253_402_300_799.0  # the end of the year 9999: larger numbers are no seconds
LIST_TESTS, ORDER_TESTS = ("has", "overlaps"), ("at_least", "at_most")
LISTED = (Kind.TEXT, Kind.INTEGER)  # what a list may hold that targeting is asked of


class _UnusableError(Exception):
    """Why a column cannot be kept."""


def convert_columns(ads: pa.Table, settings: Serving) -> pa.Table:
    """Return the columns as a store keeps them; raise InputError that names every column that cannot be kept."""
    if twice := [name for name in dict.fromkeys(ads.column_names) if ads.column_names.count(name) > 1]:
        raise InputError(f"the ads have several columns called {twice[0]!r}; rename all but one")
    empty = _types_of_nothing(settings)
    kept, faults = {}, []
    for name in ads.column_names:
        column = ads.column(name)
        try:
            kept[name] = _kept(column.combine_chunks(), empty.get(name, pa.string()))
        except _UnusableError as refused:
            faults.append(f"{name} is of type {column.type}, {refused}")
        except (pa.ArrowException, ValueError, OverflowError) as error:
            faults.append(f"{name} is of type {column.type}, and cannot be converted ({error})")
    if faults:
        raise InputError(
            f"the ads have {'a column' if len(faults) == 1 else 'columns'} that an expansion table cannot hold: "
            f"{'; '.join(faults)}. It holds {ACCEPTED}; convert or drop {'it' if len(faults) == 1 else 'them'} "
            "where the file is written"
        )
    return pa.table(kept)


def _types_of_nothing(settings: Serving) -> dict[str, pa.DataType]:
    """Which type a column has that holds nothing but nulls, where the settings say what it means."""
    types = {t.column: pa.list_(pa.string()) for t in settings.targeting if t.test in LIST_TESTS}
    types |= {t.column: pa.float64() for t in settings.targeting if t.test in ORDER_TESTS}
    types |= {getattr(settings.columns, role): pa.float64() for role in MONEY_ROLES}
    return types | {getattr(settings.columns, role): pa.timestamp("us") for role in TIME_ROLES}


def _kept(values: pa.Array, of_nothing: pa.DataType) -> pa.Array:
    """The values in one of the types that a store keeps."""
    if isinstance(values.type, pa.BaseExtensionType):
        return _kept(values.storage, of_nothing)
    if pa.types.is_run_end_encoded(values.type):
        return _kept(pc.run_end_decode(values), of_nothing)
    for test, convert in CONVERSIONS:
        if test(values.type):
            return convert(values)
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), of_nothing)
    if _is_list(values.type):
        return _kept_lists(values)
    raise _UnusableError("which it cannot hold")


def _kept_lists(values: pa.Array) -> pa.Array:
    held = values.flatten()
    if _is_list(held.type) or (pa.types.is_dictionary(held.type) and _is_list(held.type.value_type)):
        raise _UnusableError("a list of lists")
    inner = _kept(held, pa.string())
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, inner, mask=values.is_null() if values.null_count else None)


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    return any(test(kind) for test in (*tests, *views))


def _kept_integers(values: pa.Array) -> pa.Array:
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid:
        largest = pc.max(values).as_py()
        raise _UnusableError(f"and holds {largest}, which is above 2^63 - 1") from None


def _kept_decimals(values: pa.Array) -> pa.Array:
    """Decimals as floats that read back as the same decimals; refused where a float would be another number."""
    exact = values.to_pylist()
    floats = [None if value is None else float(value) for value in exact]
    for value, number in zip(exact, floats, strict=True):
        if value is not None and decimal.Decimal(repr(number)) != value:
            raise _UnusableError(f"and holds {value}, which no float is; convert it to text, or round it to 15 digits")
    return pa.array(floats, pa.float64())


def _kept_texts(values: pa.Array) -> pa.Array:
    texts = values.cast(pa.string())
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        raise _UnusableError(f"and holds text that is not UTF-8 ({error})") from None
    return texts


def _kept_times(values: pa.Array) -> pa.Array:
    """Times in microseconds, in UTC. A time that names no zone is UTC."""
    kind = values.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        values = values.cast(pa.int64()).cast(pa.timestamp(kind.unit))  # a zone is how it is shown: it counts in UTC
    try:
        stamps = values.cast(pa.timestamp("us"))
    except pa.ArrowInvalid as error:
        raise _UnusableError(
            f"and holds a time that is none in whole microseconds ({error}); cast it to [us]"
        ) from None
    ends = pc.min_max(stamps.cast(pa.int64())).as_py()
    if ends["min"] is not None and not YEARS[0] <= ends["min"] <= ends["max"] <= YEARS[1]:
        raise _UnusableError("and holds a time before the year 1 or after 9999; leave it null for none")
    return stamps


def _kept_bytes(values: pa.Array) -> pa.Array:
    return pa.array([None if value is None else value.hex() for value in values.to_pylist()], pa.string())


def _any(*tests: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: any(test(kind) for test in tests)


CONVERSIONS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], pa.Array]], ...] = (
    (pa.types.is_dictionary, lambda values: _kept(values.dictionary_decode(), pa.string())),
    (pa.types.is_boolean, lambda values: values),
    (pa.types.is_integer, _kept_integers),
    (pa.types.is_floating, lambda values: values.cast(pa.float64())),
    (pa.types.is_decimal, _kept_decimals),
    (_any(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view), _kept_texts),
    (_any(pa.types.is_timestamp, pa.types.is_date), _kept_times),
    (
        _any(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view),
        _kept_bytes,
    ),
)


@dataclass(frozen=True, slots=True)
class _Meaning:
    """A column that decides which ads are shown."""

    column: str
    where: str  # in the settings
    accepts: str
    fits: Callable[[Type], bool]
    of_which: str = ""  # what cannot be done with a column of another type


def check_settings(settings: Serving, types: Mapping[str, pa.DataType]) -> None:
    """Raise InputError where the settings name a column that the ads do not have, or one of another type.

    types: of the ads' columns as they were given, for the message; see `convert_columns` for what is kept of them.
    """
    _check_names(settings, types)
    _check_requests(settings.targeting)
    for meaning in _meanings(settings):
        kind = types.get(meaning.column)
        if kind is None or pa.types.is_null(_bare(kind)):
            continue
        found = _type_of(kind)
        if found is None or not meaning.fits(found):
            raise InputError(
                f"{meaning.where}: {meaning.column} is a column of type {kind}{meaning.of_which}; it takes "
                f"{meaning.accepts}: convert it where the file is written, or name another column"
            )


def _check_names(settings: Serving, types: Mapping[str, pa.DataType]) -> None:
    """InputError for a column that is named and not there. A role that keeps its default name needs no column."""
    named = [(f"columns.{role}", getattr(settings.columns, role)) for role in settings.columns.model_fields_set]
    named += [("targeting", target.column) for target in settings.targeting]
    named += [("caps", name) for name in settings.caps if name != "item"]
    if settings.order == "similarity_times_bid":
        named.append(("order is similarity_times_bid", settings.columns.bid))
    for where, name in named:
        if name not in types:
            raise InputError(f"{where}: the ads have no column {name!r}; {suggest_name(name, types, 'they have')}")


def _check_requests(targeting: tuple[Target, ...]) -> None:
    """InputError where one field of a request would have to be one value and a list."""
    seen: dict[str, Target] = {}
    for target in targeting:
        other = seen.setdefault(target.request, target)
        if takes_list(target) != takes_list(other):
            raise InputError(
                f"targeting: request.{target.request} would have to be one value for {other.test!r} or {target.test!r} "
                "and a list for the other; give one of them another field"
            )


def takes_list(target: Target) -> bool:
    """Whether the field of the request is a list."""
    return target.test in ("in", "overlaps")


def _meanings(settings: Serving) -> Iterator[_Meaning]:
    roles = settings.columns
    for role in MONEY_ROLES:
        yield _Meaning(getattr(roles, role), f"columns.{role}", MONEY, lambda found: found.numeric)
    for role in TIME_ROLES:
        yield _Meaning(getattr(roles, role), f"columns.{role}", TIMES, _is_when)
    for name in settings.caps:
        if name != "item":
            yield _Meaning(name, "caps", "one number, text, time, or true or false", lambda found: not found.many)
    for target in settings.targeting:
        accepts, fits = TESTED_BY_ORDER if target.test in ORDER_TESTS else TESTED_BY_VALUE
        if target.test in LIST_TESTS:
            accepts, fits = TESTED_AS_LIST
        yield _Meaning(target.column, "targeting", accepts, fits, f", of which {target.test!r} cannot be asked")


def _is_when(found: Type) -> bool:
    return not found.many and found.kind in (Kind.INTEGER, Kind.NUMBER, Kind.TIME)


Accepted = tuple[str, Callable[[Type], bool]]
TESTED_AS_LIST: Accepted = ("lists of text or whole numbers", lambda found: found.many and found.kind in LISTED)
TESTED_BY_ORDER: Accepted = ("numbers, dates or timestamps", _is_when)
TESTED_BY_VALUE: Accepted = ("one value of any type, and no list", lambda found: not found.many)


def _bare(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves."""
    if isinstance(kind, pa.BaseExtensionType):
        return _bare(kind.storage_type)
    return _bare(kind.value_type) if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else kind


def _type_of(kind: pa.DataType) -> Type | None:
    """What a column of this type is once it is kept; None for what conditions cannot be asked of."""
    kind = _bare(kind)
    if pa.types.is_decimal(kind):
        return Type(Kind.NUMBER)
    if _is_list(kind):
        inner = _bare(kind.value_type)
        if pa.types.is_null(inner):
            return Type(Kind.TEXT, many=True)  # of lists that are all empty
        held = _type_of(inner)
        return None if held is None or held.many else Type(held.kind, many=True)
    found = type_of_column(kind)
    return None if found is not None and found.kind is Kind.DURATION else found


def check_values(ads: pa.Table, settings: Serving) -> None:
    """Raise InputError for a number that can mean nothing where a column decides which ads are shown.

    ads: columns as `convert_columns` makes them and the ids as "id", in the order of the file. NaN and infinities are
    refused, and so are bids and spendings below 0, and times in other units than seconds. A negative budget is spent.
    """
    names = {meaning.column for meaning in _meanings(settings)} & set(ads.column_names)
    for name in sorted(names):
        if pa.types.is_floating(ads.schema.field(name).type):
            _refuse(ads, name, pc.invert(pc.is_finite(ads[name])), "leave it null where there is none")
    for role in ("bid", "spent"):
        name = getattr(settings.columns, role)
        if name in names:
            _refuse(ads, name, pc.less(ads[name], 0), f"a {role} column takes numbers from 0 on")
    for role in TIME_ROLES:
        name = getattr(settings.columns, role)
        if name in names and not pa.types.is_timestamp(ads.schema.field(name).type):
            late = pc.greater(pc.abs(ads[name]), LATEST_SECONDS)
            _refuse(ads, name, late, f"{role} takes seconds since 1970, or timestamps; is it in milliseconds?")


def _refuse(ads: pa.Table, name: str, wrong: Any, way_out: str) -> None:
    rows = np.flatnonzero(pc.fill_null(wrong, False).to_numpy())
    if len(rows) == 0:
        return
    first = int(rows[0])
    ad, value = ads["id"][first].as_py(), ads[name][first].as_py()
    more = f" and of {len(rows) - 1:,} more ads" if len(rows) > 1 else ""
    raise InputError(f"{name} of ad {ad!r} (row {first + 1:,}){more} is {value}; {way_out}")


def kind_of_role(settings: Serving, name: str) -> str | None:
    """The role that a column has: bid, budget, spent, starts or ends; None for another column."""
    return next((role for role in (*MONEY_ROLES, *TIME_ROLES) if getattr(settings.columns, role) == name), None)


def check_role(name: str, role: str, value: Any) -> None:
    """Raise InputError for a value that a column of this role cannot have. None is no limit."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None:
        return
    if role in MONEY_ROLES:
        if not number or not -(1 << 63) <= value < 1 << 63:  # NaN neither
            raise InputError(f"{name} is {value!r}, and takes a number")
        if role == "bid" and value < 0:
            raise InputError(f"{name} is {value!r}, and takes a number from 0 on")
    elif number and not abs(value) <= LATEST_SECONDS:
        raise InputError(f"{name} is {value!r}, and takes seconds since 1970; is it in milliseconds?")
    else:
        try:
            seconds_of_time(value)
        except InputError as error:
            raise InputError(f"{name} is {value!r}, and takes a time ({error})") from None
