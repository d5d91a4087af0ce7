"""Checks of an expansion table: that columns of the ads fit the settings, and that their values mean something.

Knows nothing of stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.eligibility.rule_types import Kind, Type
from nearcast.errors import InputError
from nearcast.suggest import suggest_name
from nearcast.table.ad_columns import to_seconds
from nearcast.table.expansion_schema import (
    LIST_TESTS,
    ORDER_TESTS,
    AdRuleTypes,
    bare_type,
    parse_ad_rules,
    rule_type,
)
from nearcast.table.expansion_settings import MONEY_ROLES, TIME_ROLES, AdSettings, Target

__all__ = ["check_role", "check_settings", "check_values", "find_role"]

MONEY = "whole numbers, floats or decimals"
TIMES = "timestamps, dates, or seconds since 1970 as numbers"
LATEST_SECONDS = 253_402_300_799.0  # the end of the year 9999: larger numbers are no seconds
LISTED = (Kind.TEXT, Kind.INTEGER)  # the types of the values of a list that conditions support


@dataclass(frozen=True, slots=True)
class _ColumnRequirement:
    """The requirement of the settings on a column."""

    column: str
    where: str  # in the settings
    accepts: str
    fits: Callable[[Type], bool]
    of_which: str = ""  # appended to the error of another type


def check_settings(settings: AdSettings, types: Mapping[str, pa.DataType]) -> None:
    """Raise InputError if the settings name a missing column or one of another type, SpecError for a wrong rule.

    types: of the columns of the ads before conversion, as the user knows them.
    """
    _check_names(settings, types)
    _check_request_fields(settings.targeting, _check_rules(settings, types))
    for requirement in _list_requirements(settings):
        kind = types.get(requirement.column)
        if kind is None or pa.types.is_null(bare_type(kind)):
            continue
        found = rule_type(kind)
        if found is None or not requirement.fits(found):
            raise InputError(
                f"{requirement.where}: {requirement.column} is a column of type {kind}{requirement.of_which}; it takes "
                f"{requirement.accepts}: convert it where the file is written, or name another column"
            )


def _check_names(settings: AdSettings, types: Mapping[str, pa.DataType]) -> None:
    """Raise InputError for a missing column. A role with its default name needs no column."""
    named = [(f"columns.{role}", getattr(settings.columns, role)) for role in settings.columns.model_fields_set]
    named += [("targeting", target.column) for target in settings.targeting]
    named += [("caps", name) for name in settings.caps if name != "item"]
    if settings.order == "similarity_times_bid":
        named.append(("order is similarity_times_bid", settings.columns.bid))
    for where, name in named:
        if name not in types:
            raise InputError(f"{where}: the ads have no column {name!r}; {suggest_name(name, types, 'they have')}")


def _check_rules(settings: AdSettings, types: Mapping[str, pa.DataType]) -> AdRuleTypes:
    """Parse the rules. Raises SpecError for a wrong rule, InputError for lists that conditions do not support."""
    parsed = parse_ad_rules(settings, pa.schema(list(types.items())))
    for name, kind in parsed.columns.items():
        if kind.many and kind.kind not in LISTED:
            raise InputError(f"rules: {name} holds {kind}; rules of ads take lists of text or whole numbers")
    return parsed


def _check_request_fields(targeting: tuple[Target, ...], parsed: AdRuleTypes) -> None:
    """Raise InputError for a field of the request that would have to be one value and a list."""
    seen: dict[str, Target] = {}
    for target in targeting:
        other = seen.setdefault(target.request, target)
        if _takes_list(target) != _takes_list(other):
            raise InputError(
                f"targeting: request.{target.request} would have to be one value for {other.test!r} or {target.test!r} "
                "and a list for the other; give one of them another field"
            )
        in_rules = parsed.request.get(target.request)
        if in_rules is not None and in_rules.many != _takes_list(target):
            raise InputError(
                f"request.{target.request} would have to be one value and a list: targeting with {target.test!r} and a "
                "rule differ; give one of them another field"
            )


def _takes_list(target: Target) -> bool:
    """Return whether the field of the request is a list."""
    return target.test in ("in", "overlaps")


def _list_requirements(settings: AdSettings) -> Iterator[_ColumnRequirement]:
    roles = settings.columns
    for role in MONEY_ROLES:
        yield _ColumnRequirement(getattr(roles, role), f"columns.{role}", MONEY, lambda found: found.numeric)
    for role in TIME_ROLES:
        yield _ColumnRequirement(getattr(roles, role), f"columns.{role}", TIMES, _is_ordered)
    for name in settings.caps:
        if name != "item":
            yield _ColumnRequirement(
                name, "caps", "one number, text, time, or true or false", lambda found: not found.many
            )
    for target in settings.targeting:
        accepts, fits = TESTED_BY_ORDER if target.test in ORDER_TESTS else TESTED_BY_VALUE
        if target.test in LIST_TESTS:
            accepts, fits = TESTED_AS_LIST
        yield _ColumnRequirement(
            target.column, "targeting", accepts, fits, f", of which {target.test!r} cannot be asked"
        )


def _is_ordered(found: Type) -> bool:
    return not found.many and found.kind in (Kind.INTEGER, Kind.NUMBER, Kind.TIME)


Accepted = tuple[str, Callable[[Type], bool]]
TESTED_AS_LIST: Accepted = ("lists of text or whole numbers", lambda found: found.many and found.kind in LISTED)
TESTED_BY_ORDER: Accepted = ("numbers, dates or timestamps", _is_ordered)
TESTED_BY_VALUE: Accepted = ("one value of any type, and no list", lambda found: not found.many)


def check_values(ads: pa.Table, settings: AdSettings) -> None:
    """Raise InputError for a number without a requirement in a column that filters or ranks ads.

    ads: the converted columns and "id", in the order of the file. NaN and infinities are errors, and so are bids and
    `spent` below 0, and times that are not in seconds. A budget below 0 counts as spent.
    """
    in_rules = parse_ad_rules(settings, ads.schema).columns
    names = {*(requirement.column for requirement in _list_requirements(settings)), *in_rules} & set(ads.column_names)
    for name in sorted(names):
        if pa.types.is_floating(ads.schema.field(name).type):
            _raise_for_rows(ads, name, pc.invert(pc.is_finite(ads[name])), "leave it null where there is none")
    for role in ("bid", "spent"):
        name = getattr(settings.columns, role)
        if name in names:
            _raise_for_rows(ads, name, pc.less(ads[name], 0), f"a {role} column takes numbers from 0 on")
    for role in TIME_ROLES:
        name = getattr(settings.columns, role)
        if name in names and not pa.types.is_timestamp(ads.schema.field(name).type):
            late = pc.greater(pc.abs(ads[name]), LATEST_SECONDS)
            _raise_for_rows(ads, name, late, f"{role} takes seconds since 1970, or timestamps; is it in milliseconds?")


def _raise_for_rows(ads: pa.Table, name: str, wrong: Any, fix: str) -> None:
    rows = np.flatnonzero(pc.fill_null(wrong, False).to_numpy())
    if len(rows) == 0:
        return
    first = int(rows[0])
    ad, value = ads["id"][first].as_py(), ads[name][first].as_py()
    more = f" and of {len(rows) - 1:,} more ads" if len(rows) > 1 else ""
    raise InputError(f"{name} of ad {ad!r} (row {first + 1:,}){more} is {value}; {fix}")


def find_role(settings: AdSettings, name: str) -> str | None:
    """Return the role of a column: bid, budget, spent, starts or ends; None for another column."""
    return next((role for role in (*MONEY_ROLES, *TIME_ROLES) if getattr(settings.columns, role) == name), None)


def check_role(name: str, role: str, value: Any) -> None:
    """Raise InputError for a value that a column of this role cannot hold. None is no limit."""
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
            to_seconds(value)
        except InputError as error:
            raise InputError(f"{name} is {value!r}, and takes a time ({error})") from None
