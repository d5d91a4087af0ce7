"""Rules compiled to array operations over columns of ads, for some rows at once.

Null tests, memberships, and comparisons of one ad column with a constant or a field of the request are array
operations. Any other condition (arithmetic with ad columns, two ad columns, the order of texts) is evaluated row by row
with `eligibility.closures`. Knows nothing of settings, stores or requests as callers write them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.eligibility.closures import MIRRORED, OPPOSITE, binder, context_value
from nearcast.eligibility.nodes import (
    And,
    Compare,
    IsNull,
    Member,
    Node,
    Not,
    Or,
    Reference,
    collect_tables,
    walk_references,
)
from nearcast.table.ad_columns import Column
from nearcast.types import IntArray

__all__ = ["BoolArray", "Columns", "Condition", "compile_condition"]

BoolArray = npt.NDArray[np.bool_]
Columns = Mapping[str, Column]
Fields = Mapping[str, Any]  # of the request: times as `Nanos`, lists as any collection, None for null
Condition = Callable[[Columns, IntArray, Fields], BoolArray]


def compile_condition(node: Node) -> Condition:
    """Return a function that says for which rows a condition is true; unknown is not true.

    node: the core of a rule over `ad.NAME` and `request.NAME`.
    """
    return _compile(node, True)


def _compile(node: Node, expected: bool) -> Condition:
    """Compile when the condition is true or, if `expected` is False, when it is false."""
    if "item" not in collect_tables(node):
        return _compile_request_condition(node, expected)
    if isinstance(node, Not):
        return _compile(node.part, not expected)
    if isinstance(node, And | Or):
        return _combine([_compile(part, expected) for part in node.parts], isinstance(node, And) == expected)
    if isinstance(node, IsNull) and isinstance(node.value, Reference):
        name = node.value.name
        if expected:
            return lambda columns, rows, _: columns[name].missing[rows]
        return lambda columns, rows, _: ~columns[name].missing[rows]
    if isinstance(node, Reference):
        flag = node.name
        return lambda columns, rows, _: columns[flag].equal(rows, expected)
    if isinstance(node, Compare):
        return _compile_comparison(node, expected) or _compile_row_by_row(node, expected)
    if isinstance(node, Member):
        return _compile_membership(node, expected) or _compile_row_by_row(node, expected)
    return _compile_row_by_row(node, expected)


def _combine(parts: list[Condition], every: bool) -> Condition:
    first, rest = parts[0], parts[1:]

    def condition(columns: Columns, rows: IntArray, fields: Fields) -> BoolArray:
        found = first(columns, rows, fields)
        for part in rest:
            other = part(columns, rows, fields)
            found = found & other if every else found | other
        return found

    return condition


def _compile_comparison(node: Compare, expected: bool) -> Condition | None:
    """Compile the comparison of one ad column with a value that is the same for all ads; None for other comparisons."""
    operator = node.operator if expected else OPPOSITE[node.operator]
    left, right = node.left, node.right
    if "item" in collect_tables(right):
        left, right, operator = right, left, MIRRORED[operator]
    if not isinstance(left, Reference) or "item" in collect_tables(right):
        return None
    name, value_of = left.name, _compile_value(right)
    row_by_row = _compile_row_by_row(node, expected)

    def condition(columns: Columns, rows: IntArray, fields: Fields) -> BoolArray:
        value, column = value_of(fields), columns[name]
        if value is None:
            return np.zeros(len(rows), np.bool_)
        if operator == "==":
            return column.equal(rows, value)
        if operator == "!=":
            return ~(column.equal(rows, value) | column.missing[rows])
        if column.kind == "word":  # words are numbered in no order
            return row_by_row(columns, rows, fields)
        if operator in (">=", "<="):
            return column.within(rows, value, above=operator == ">=")
        return ~(column.within(rows, value, above=operator == "<") | column.missing[rows])

    return condition


def _compile_membership(node: Member, expected: bool) -> Condition | None:
    """Compile the membership of one ad column; None where both operands are of the ad, or one is an expression."""
    column, other = (node.left, node.right) if "item" in collect_tables(node.left) else (node.right, node.left)
    if not isinstance(column, Reference) or "item" in collect_tables(other):
        return None
    name, value_of = column.name, _compile_value(other)
    single = {"has": node.right, "in": node.left}.get(node.operator)

    def ad_value_in_list(columns: Columns, rows: IntArray, fields: Fields) -> BoolArray:
        found = columns[name].among(rows, value_of(fields) or ())
        return found if expected else ~(found | columns[name].missing[rows])

    def ad_list_has_value(columns: Columns, rows: IntArray, fields: Fields) -> BoolArray:
        value = value_of(fields)
        if value is None:
            return np.zeros(len(rows), np.bool_)
        found = columns[name].holding(rows, (value,))
        return found if expected else ~found

    def ad_list_overlaps(columns: Columns, rows: IntArray, fields: Fields) -> BoolArray:
        found = columns[name].holding(rows, value_of(fields) or ())
        return found if expected else ~found

    if single is None:
        return ad_list_overlaps
    return ad_value_in_list if column is single else ad_list_has_value


def _compile_value(node: Node) -> Callable[[Fields], Any]:
    """Compile a value that is the same for all ads."""
    if isinstance(node, Reference):  # most values, and this is the hot path
        name = node.name
        return lambda fields: fields.get(name)
    value_of = context_value(node)
    return lambda fields: value_of({"request": fields})


def _compile_request_condition(node: Node, expected: bool) -> Condition:
    """Compile a condition that is the same for all ads."""
    bind = binder(node if expected else Not(node), {})

    def condition(_: Columns, rows: IntArray, fields: Fields) -> BoolArray:
        return np.full(len(rows), bind({"request": fields}) is True)

    return condition


def _compile_row_by_row(node: Node, expected: bool) -> Condition:
    """Compile any condition for one ad at a time; about a microsecond an ad."""
    names = list(dict.fromkeys(found.name for found in walk_references(node) if found.side == "ad"))
    bind = binder(node if expected else Not(node), {name: slot for slot, name in enumerate(names)})

    def condition(columns: Columns, rows: IntArray, fields: Fields) -> BoolArray:
        test = bind({"request": fields})
        if isinstance(test, bool):
            return np.full(len(rows), test)
        ads = zip(*(columns[name].plain_values(rows) for name in names), strict=True)
        return np.fromiter(map(test, ads), np.bool_, len(rows))

    return condition
