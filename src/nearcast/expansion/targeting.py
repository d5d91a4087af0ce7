"""Who may see an ad: a condition over columns of ads and fields of the request, asked of some rows at once.

`Eligible` is the seam: whatever answers it may stand behind an expansion table. `Targets` is the plain one, of
equality, membership, ranges and dates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nearcast.errors import InputError
from nearcast.expansion.columns import Column
from nearcast.expansion.settings import Target
from nearcast.types import IntArray

__all__ = ["Eligible", "Targets"]

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

    def among(self, request: Request, columns: Columns, rows: IntArray) -> BoolArray:
        """(rows,) which of these rows the request may see."""
        eligible = np.ones(len(rows), np.bool_)
        for condition in self.conditions:
            column = columns[condition.column]
            given = request.get(condition.request)
            fits = column.missing[rows]
            if given is not None:
                fits = fits | _fits(condition, column, rows, given)
            eligible &= fits
        return eligible


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
    if not isinstance(given, list | tuple):
        raise InputError(
            f"request.{condition.request} is to be a list, since {condition.column} is {condition.test} it"
        )
    return given
