"""Who may see an ad: rules over columns of the ads and fields of the request, evaluated for some ads at once.

A target of the settings is short for a rule in which a null column matches every request:
`{column = "tags", test = "has", request = "tag"}` is `ad.tags is null or ad.tags has request.tag`. Both compile to the
same conditions. `AdFilter` is the seam for rules that are written in Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nearcast.ads.evaluate_rules import BoolArray, Columns, Condition, compile_condition
from nearcast.eligibility.nodes import Compare, IsNull, Member, Node, Or, Reference, Rule, walk_references
from nearcast.eligibility.pair_reference import Nanos
from nearcast.eligibility.rule_types import Kind, Type
from nearcast.eligibility.ruleset import read_request_value
from nearcast.errors import InputError
from nearcast.suggest import suggest_name
from nearcast.table.ad_columns import to_seconds
from nearcast.table.expansion_settings import Target
from nearcast.types import IntArray

__all__ = ["AdFilter", "AdRules", "check_fields", "compile_ad_rules", "expand_target"]

Request = Mapping[str, Any]  # plain data that the caller sends with a look-up
OPERATORS = {"equals": "==", "at_least": ">=", "at_most": "<="}  # the other tests are operators of the rule language


class AdFilter(Protocol):
    """A filter of ads for a request. An object of this form can replace the rules of an expansion table."""

    @property
    def columns(self) -> frozenset[str]:
        """Return the columns of the ads that the filter reads."""
        ...

    def among(self, request: Request, columns: Columns, rows: IntArray) -> BoolArray:
        """Return (rows,) True for each row that the request may see. Raises InputError for an invalid request."""
        ...


@dataclass(frozen=True, slots=True)
class AdRules:
    """The compiled targets and rules of an expansion table; all of them must be true."""

    targeting: tuple[Target, ...]
    rules: tuple[Rule, ...]
    request_types: Mapping[str, Type]  # of the fields that rules name
    target_conditions: tuple[Condition, ...]
    rule_conditions: tuple[Condition, ...]

    @property
    def columns(self) -> frozenset[str]:
        """Return the columns of the ads that targets and rules read."""
        references = (found for rule in self.rules for found in walk_references(rule.tree))
        named = (found.name for found in references if found.side == "ad")
        return frozenset((*named, *(target.column for target in self.targeting)))

    @property
    def fields(self) -> frozenset[str]:
        """Return the fields of the request that targets and rules read."""
        return frozenset((*self.request_types, *(target.request for target in self.targeting)))

    def check(self, request: Request, columns: Columns) -> None:
        """Raise InputError for an unknown field, and for a target's field of another type than its column."""
        check_fields(request, self.fields)
        for target in self.targeting:
            value, holds = request.get(target.request), columns[target.column].holds
            if value is not None and holds is not None:
                _check_type(target, value, holds)

    def among(self, request: Request, columns: Columns, rows: IntArray) -> BoolArray:
        """Return (rows,) True for each row that the request may see.

        Raises InputError for a rule's field of another type. For a target, such a value equals no value of the column.
        """
        eligible = np.ones(len(rows), np.bool_)
        if self.target_conditions:
            fields = _read_target_fields(self.targeting, request)
            for condition in self.target_conditions:
                eligible &= condition(columns, rows, fields)
        if self.rule_conditions:
            fields = _read_rule_fields(self.request_types, request)
            for condition in self.rule_conditions:
                eligible &= condition(columns, rows, fields)
        return eligible


def compile_ad_rules(
    targeting: Sequence[Target], rules: Sequence[Rule] = (), request_types: Mapping[str, Type] | None = None
) -> AdRules:
    """Compile targets and rules. request_types: of the fields that the rules name."""
    targets = tuple(compile_condition(expand_target(target).core) for target in targeting)
    conditions = tuple(compile_condition(rule.core) for rule in rules)
    return AdRules(tuple(targeting), tuple(rules), dict(request_types or {}), targets, conditions)


def expand_target(target: Target) -> Rule:
    """Return the rule that a target is short for."""
    column, value = Reference("ad", target.column), Reference("request", target.request)
    test: Node = (
        Compare(OPERATORS[target.test], column, value)
        if target.test in OPERATORS
        else Member(target.test, column, value)
    )
    tree = Or((IsNull(column), test))
    return Rule(f"targeting of {target.column}", str(tree), tree, tree)


def check_fields(request: Request, known: Collection[str]) -> None:
    """Raise InputError for a field of a request that no target and no rule reads."""
    for name in request:
        if name not in known:
            hint = suggest_name(str(name), sorted(known), "they ask for")
            raise InputError(f"no targeting and no rule asks for {str(name)[:50]!r} of a request; {hint}")


def _check_type(target: Target, value: Any, holds: Kind) -> None:
    takes_list = target.test in ("in", "overlaps")
    values = _read_list(target, value) if takes_list else _read_single(target, value)
    if holds is Kind.TIME:  # numbers are seconds since 1970
        for one in values if takes_list else [values]:
            to_seconds(one)
    else:
        read_request_value(target.request, values, Type(holds, takes_list))


def _read_target_fields(targeting: Sequence[Target], request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for target in targeting:
        value = request.get(target.request)
        if value is not None:
            read = _read_list if target.test in ("in", "overlaps") else _read_single
            fields[target.request] = read(target, value)
    return fields


def _read_rule_fields(types: Mapping[str, Type], request: Request) -> dict[str, Any]:
    return {
        name: None if value is None else _read_rule_field(name, value, types[name])
        for name, value in request.items()
        if name in types
    }


def _read_rule_field(name: str, value: Any, kind: Type) -> Any:
    if kind.kind is Kind.TIME and isinstance(value, int | float) and not isinstance(value, bool):
        return Nanos(round(value * 1e6) * 1000)  # seconds since 1970, as the columns of ads have them
    return read_request_value(name, value, kind)


def _read_single(target: Target, value: Any) -> Any:
    if isinstance(value, list | tuple | dict):
        raise InputError(f"request.{target.request} is to be one value, since {target.column} {target.test} it")
    return value


def _read_list(target: Target, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise InputError(f"request.{target.request} is to be a list, since {target.column} is {target.test} it")
    return [one for one in value if one is not None]  # null is in no list


def __getattr__(name: str) -> Any:
    if name == "Eligible":
        warnings.warn("nearcast.ads.targeting.Eligible is now AdFilter; use that", DeprecationWarning, stacklevel=2)
        return AdFilter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
