"""The types of the columns of ads: conversion to the types that a store keeps, and the rules that name them.

A store keeps five types and lists of them: int64, double, string, bool, and timestamp[us] in UTC. A column that fits
one of them without loss is converted; any other column is refused by name. Knows nothing of stores.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.eligibility.nodes import Rule
from nearcast.eligibility.parse import parse_rule
from nearcast.eligibility.rule_types import ARROW, Kind, Type, convert_arrow_type
from nearcast.eligibility.validate import check_ad_rules
from nearcast.errors import InputError
from nearcast.table.expansion_settings import MONEY_ROLES, TIME_ROLES, AdSettings

__all__ = ["LIST_TESTS", "ORDER_TESTS", "AdRuleTypes", "bare_type", "convert_columns", "parse_ad_rules", "rule_type"]

ACCEPTED = "whole numbers up to 2^63 - 1, floats, text, true or false, dates, timestamps, and lists of these"
YEARS = (-62_135_596_800_000_000, 253_402_300_799_999_999)  # microseconds of the years 1 to 9999, which ISO 8601 has
LIST_TESTS, ORDER_TESTS = ("has", "overlaps"), ("at_least", "at_most")
TABLES = ("ad", "request")  # that a rule of an expansion table may name


class _RefusedColumnError(Exception):
    """The reason why a column cannot be converted."""


def convert_columns(ads: pa.Table, settings: AdSettings) -> pa.Table:
    """Return the columns as a store keeps them. Raises InputError that names every column that cannot be converted."""
    if twice := [name for name in dict.fromkeys(ads.column_names) if ads.column_names.count(name) > 1]:
        raise InputError(f"the ads have several columns called {twice[0]!r}; rename all but one")
    empty = _types_of_empty_columns(settings, ads.schema)
    kept, faults = {}, []
    for name in ads.column_names:
        column = ads.column(name)
        try:
            kept[name] = _convert(column.combine_chunks(), empty.get(name, pa.string()))
        except _RefusedColumnError as refused:
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


def _types_of_empty_columns(settings: AdSettings, schema: pa.Schema) -> dict[str, pa.DataType]:
    """Return the type of each column that may hold only nulls and whose meaning the settings tell."""
    types = {name: _arrow_type(kind) for name, kind in parse_ad_rules(settings, schema).columns.items()}
    types |= {t.column: pa.list_(pa.string()) for t in settings.targeting if t.test in LIST_TESTS}
    types |= {t.column: pa.float64() for t in settings.targeting if t.test in ORDER_TESTS}
    types |= {getattr(settings.columns, role): pa.float64() for role in MONEY_ROLES}
    return types | {getattr(settings.columns, role): pa.timestamp("us") for role in TIME_ROLES}


def _convert(values: pa.Array, of_nulls: pa.DataType) -> pa.Array:
    """Return the values in one of the types that a store keeps."""
    if isinstance(values.type, pa.BaseExtensionType):
        return _convert(values.storage, of_nulls)
    if pa.types.is_run_end_encoded(values.type):
        return _convert(pc.run_end_decode(values), of_nulls)
    for test, convert in CONVERSIONS:
        if test(values.type):
            return convert(values)
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), of_nulls)
    if _is_list(values.type):
        return _convert_lists(values)
    raise _RefusedColumnError("which it cannot hold")


def _convert_lists(values: pa.Array) -> pa.Array:
    elements = values.flatten()
    if _is_list(elements.type) or (pa.types.is_dictionary(elements.type) and _is_list(elements.type.value_type)):
        raise _RefusedColumnError("a list of lists")
    inner = _convert(elements, pa.string())
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, inner, mask=values.is_null() if values.null_count else None)


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    return any(test(kind) for test in (*tests, *views))


def _convert_integers(values: pa.Array) -> pa.Array:
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid:
        largest = pc.max(values).as_py()
        raise _RefusedColumnError(f"and holds {largest}, which is above 2^63 - 1") from None


def _convert_decimals(values: pa.Array) -> pa.Array:
    """Return decimals as floats with the same digits; refuse a decimal that no float has."""
    exact = values.to_pylist()
    floats = [None if value is None else float(value) for value in exact]
    for value, number in zip(exact, floats, strict=True):
        if value is not None and decimal.Decimal(repr(number)) != value:
            raise _RefusedColumnError(
                f"and holds {value}, which no float is; convert it to text, or round it to 15 digits"
            )
    return pa.array(floats, pa.float64())


def _convert_texts(values: pa.Array) -> pa.Array:
    texts = values.cast(pa.string())
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        raise _RefusedColumnError(f"and holds text that is not UTF-8 ({error})") from None
    return texts


def _convert_times(values: pa.Array) -> pa.Array:
    """Return times in microseconds, in UTC. A time without a zone is in UTC."""
    kind = values.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        values = values.cast(pa.int64()).cast(pa.timestamp(kind.unit))  # the stored number is in UTC already
    try:
        stamps = values.cast(pa.timestamp("us"))
    except pa.ArrowInvalid as error:
        raise _RefusedColumnError(
            f"and holds a time that is none in whole microseconds ({error}); cast it to [us]"
        ) from None
    ends = pc.min_max(stamps.cast(pa.int64())).as_py()
    if ends["min"] is not None and not YEARS[0] <= ends["min"] <= ends["max"] <= YEARS[1]:
        raise _RefusedColumnError("and holds a time before the year 1 or after 9999; leave it null for none")
    return stamps


def _convert_bytes(values: pa.Array) -> pa.Array:
    return pa.array([None if value is None else value.hex() for value in values.to_pylist()], pa.string())


def _match(*tests: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: any(test(kind) for test in tests)


CONVERSIONS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], pa.Array]], ...] = (
    (pa.types.is_dictionary, lambda values: _convert(values.dictionary_decode(), pa.string())),
    (pa.types.is_boolean, lambda values: values),
    (pa.types.is_integer, _convert_integers),
    (pa.types.is_floating, lambda values: values.cast(pa.float64())),
    (pa.types.is_decimal, _convert_decimals),
    (_match(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view), _convert_texts),
    (_match(pa.types.is_timestamp, pa.types.is_date), _convert_times),
    (
        _match(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view),
        _convert_bytes,
    ),
)


# ---- types in rules ----


@dataclass(frozen=True, slots=True)
class AdRuleTypes:
    """The parsed rules of an expansion table, and the types of the columns and request fields that they name."""

    rules: tuple[Rule, ...] = ()
    columns: Mapping[str, Type] = field(default_factory=dict)  # of the ads, "id" among them
    request: Mapping[str, Type] = field(default_factory=dict)


def parse_ad_rules(settings: AdSettings, schema: pa.Schema) -> AdRuleTypes:
    """Parse the rules of the settings and check them against the columns of the ads.

    schema: the columns before or after conversion, with "id" or without. Whole numbers are numbers, so that a request
    may compare them with fractions. Raises SpecError with a mark under the first wrong word.
    """
    if not settings.rules:
        return AdRuleTypes()
    fields = [(column.name, _type_for_rules(column.type)) for column in schema if column.name != "id"]
    id_type = schema.field("id").type if "id" in schema.names else pa.null()
    rules = tuple(parse_rule(rule.name, rule.keep, TABLES) for rule in settings.rules)
    types = check_ad_rules(rules, pa.schema([("id", id_type), *fields]))
    return AdRuleTypes(rules, types.items, types.request)


def _type_for_rules(kind: pa.DataType) -> pa.DataType:
    bare = bare_type(kind)
    if pa.types.is_null(bare) or (_is_list(bare) and pa.types.is_null(bare_type(bare.value_type))):
        return pa.list_(pa.null()) if _is_list(bare) else pa.null()
    found = rule_type(bare)
    return bare if found is None else _arrow_type(found)


def _arrow_type(kind: Type) -> pa.DataType:
    if kind.many:
        return pa.list_(ARROW[kind.kind])
    return pa.float64() if kind.kind is Kind.INTEGER else ARROW[kind.kind]


def bare_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values, without extension types, dictionaries and run ends."""
    if isinstance(kind, pa.BaseExtensionType):
        return bare_type(kind.storage_type)
    return bare_type(kind.value_type) if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else kind


def rule_type(kind: pa.DataType) -> Type | None:
    """Return the type in rules of a column once it is converted; None if rules do not support it."""
    kind = bare_type(kind)
    if pa.types.is_decimal(kind):
        return Type(Kind.NUMBER)
    if _is_list(kind):
        inner = bare_type(kind.value_type)
        if pa.types.is_null(inner):
            return Type(Kind.TEXT, many=True)  # all lists are empty
        element = rule_type(inner)
        return None if element is None or element.many else Type(element.kind, many=True)
    found = convert_arrow_type(kind)
    return None if found is not None and found.kind is Kind.DURATION else found
