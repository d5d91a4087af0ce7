"""Who may see an ad: a condition over columns of ads and fields of the request, asked of some rows at once.

`Eligible` is the seam: whatever answers it may stand behind an expansion table. `Targets` is the plain one, of
equality, membership, ranges and dates.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nearcast.eligibility.rule_types import Kind, Type
from nearcast.eligibility.ruleset import brought_value
from nearcast.errors import InputError
from nearcast.suggest import suggest_name
from nearcast.table.ad_columns import Column, seconds_of_time
from nearcast.table.expansion_settings import Target
from nearcast.types import IntArray

__all__ = ["Eligible", "Targets", "check_fields"]

BoolArray = npt.NDArray[np.bool_]
Request = Mapping[str, Any]  # plain data: what the caller knows of the request
Columns = Mapping[str, Column]


class Eligible(Protocol):
    """Rules of who may see what, ready to be asked for every request."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the ads that it looks at."""
        ...

    def among(self, request: Request, columns: Columns, rows: IntArray) -> BoolArray:
        """(rows,) which of these rows the request may see. InputError for a request that cannot be judged."""
        ...


@dataclass(frozen=True, slots=True)
class Targets:
    """Conditions, all of which must hold. An ad without a value in the column is for everybody."""

    conditions: tuple[Target, ...]

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the ads that it looks at."""
        return frozenset(condition.column for condition in self.conditions)

    @property
    def fields(self) -> frozenset[str]:
        """The fields of a request that it asks for."""
        return frozenset(condition.request for condition in self.conditions)

    def check(self, request: Request, columns: Columns) -> None:
        """Raise InputError for a field that no condition asks for, or a value of another type than its column."""
        check_fields(request, self.fields)
        for condition in self.conditions:
            given, holds = request.get(condition.request), columns[condition.column].holds
            if given is not None and holds is not None:
                _check_type(condition, given, holds)

    def among(self, request: Request, columns: Columns, rows: IntArray) -> BoolArray:
        """(rows,) which of these rows the request may see. A value of another type than its column equals none."""
        eligible = np.ones(len(rows), np.bool_)
        for condition in self.conditions:
            column = columns[condition.column]
            given = request.get(condition.request)
            fits = column.missing[rows]
            if given is not None:
                fits = fits | _fits(condition, column, rows, given)
            eligible &= fits
        return eligible


def check_fields(request: Request, known: Collection[str]) -> None:
    """Raise InputError for a field of a request that nothing asks for, with the nearest one that something does."""
    for name in request:
        if name not in known:
            hint = suggest_name(str(name), sorted(known), "they ask for")
            raise InputError(f"no targeting and no rule asks for {str(name)[:50]!r} of a request; {hint}")


def _check_type(condition: Target, given: Any, holds: Kind) -> None:
    many = condition.test in ("in", "overlaps")
    values = _several(condition, given) if many else _one(condition, given)
    if holds is Kind.TIME:  # numbers are seconds since 1970
        for value in values if many else [values]:
            seconds_of_time(value)
    else:
        brought_value(condition.request, values, Type(holds, many))


def _fits(condition: Target, column: Column, rows: IntArray, given: Any) -> BoolArray:
    test = condition.test
    if test == "equals":
        return column.equal(rows, _one(condition, given))
    if test == "in":
        return column.among(rows, _several(condition, given))
    if test == "has":
        return column.holding(rows, [_one(condition, given)])
    if test == "overlaps":
        return column.holding(rows, _several(condition, given))
    return column.within(rows, _one(condition, given), above=test == "at_least")


def _one(condition: Target, given: Any) -> Any:
    if isinstance(given, list | tuple | dict):
        raise InputError(
            f"request.{condition.request} is to be one value, since {condition.column} {condition.test} it"
        )
    return given


def _several(condition: Target, given: Any) -> Sequence[Any]:
    if not isinstance(given, list | tuple | set | frozenset):
        raise InputError(
            f"request.{condition.request} is to be a list, since {condition.column} is {condition.test} it"
        )
    return [value for value in given if value is not None]  # a missing value equals none
