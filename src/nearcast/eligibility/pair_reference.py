"""The reference evaluation of rules: one pair, plain Python values. All faster evaluations must agree with it.

A condition is True, False or None for unknown. Knows nothing of tables, arrays or compiled rules.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nearcast.eligibility.nodes import (
    And,
    Compare,
    Constant,
    Duration,
    IsNull,
    Member,
    Moment,
    Node,
    Not,
    Or,
    Product,
    Reference,
    Rule,
    Several,
    Sum,
)
from nearcast.times import to_nanoseconds

__all__ = [
    "Nanos",
    "as_float",
    "compare",
    "compute_product",
    "compute_sum",
    "constant_value",
    "failing",
    "holds",
    "plain",
    "share_value",
]

Row = Mapping[str, Any]


class Nanos(int):
    """A time or an amount of time in whole nanoseconds. Arithmetic on numbers is float64, on these it is exact."""


def failing(rules: Sequence[Rule], query_row: Row, item_row: Row, request: Row | None = None) -> str | None:
    """Return the name of the first rule that filters a pair out, or None if the pair is eligible.

    Rows hold the columns that the rules name, and "id"; a missing column is null. Without a request, rules that need
    one are skipped.
    """
    for rule in rules:
        found = holds(rule, query_row, item_row, request)
        if found is not True and not (request is None and found is Ellipsis):
            return rule.name
    return None


def holds(rule: Rule, query_row: Row, item_row: Row, request: Row | None = None) -> Any:
    """Return whether a rule is true for a pair: True, False, None for unknown, Ellipsis if it needs the request.

    item_row: the columns of the item, or of the ad for a rule of an expansion table.
    """
    try:
        return _check_condition(rule.core, {"query": query_row, "item": item_row, "ad": item_row, "request": request})
    except _RequestNeededError:
        return Ellipsis


class _RequestNeededError(Exception):
    pass


def plain(value: Any) -> Any:
    """Return a value as rules compare it: None for NaN, nanoseconds for times, a set without nulls for a list."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, datetime.date | datetime.timedelta):
        return Nanos(to_nanoseconds(value)) if value == value else None
    if isinstance(value, list | tuple | set | frozenset):
        return frozenset(found for entry in value if (found := plain(entry)) is not None)
    return value


def _check_condition(node: Node, rows: Mapping[str, Row | None]) -> bool | None:
    if isinstance(node, Not):
        inner = _check_condition(node.part, rows)
        return None if inner is None else not inner
    if isinstance(node, And | Or):
        parts = [_check_condition(part, rows) for part in node.parts]
        decides = isinstance(node, Or)  # one True decides an `or`, one False an `and`
        return decides if decides in parts else None if None in parts else not decides
    if isinstance(node, IsNull):
        return _evaluate_value(node.value, rows) is None
    if isinstance(node, Compare):
        return compare(node.operator, _evaluate_value(node.left, rows), _evaluate_value(node.right, rows))
    if isinstance(node, Member):
        return share_value(node.operator, _evaluate_value(node.left, rows), _evaluate_value(node.right, rows))
    found: bool | None = _evaluate_value(node, rows)
    return found


def compare(operator: str, left: Any, right: Any) -> bool | None:
    """Return the result of a comparison; None if a value is null. Whole numbers and floats are compared exactly."""
    if left is None or right is None:
        return None
    found: bool = {
        "==": lambda: left == right,
        "!=": lambda: left != right,
        "<": lambda: left < right,
        "<=": lambda: left <= right,
        ">": lambda: left > right,
        ">=": lambda: left >= right,
    }[operator]()
    return found


def share_value(operator: str, left: Any, right: Any) -> bool | None:
    """Return whether a list has a value, or two lists share a value; None for a single value that is null."""
    lists, single = [left, right], {"has": right, "in": left}
    if operator in single:
        if single[operator] is None:
            return None
        lists = [left if operator == "has" else right, frozenset((single[operator],))]
    first, second = (entry or frozenset() for entry in lists)
    return not first.isdisjoint(second)


def _evaluate_value(node: Node, rows: Mapping[str, Row | None]) -> Any:
    if isinstance(node, Reference):
        row = rows[node.side]
        if row is None:
            raise _RequestNeededError
        return plain(row.get(node.name))
    if isinstance(node, Constant):
        return node.value
    if isinstance(node, Moment | Duration):
        return Nanos(node.nanoseconds)
    if isinstance(node, Several):
        return frozenset(_evaluate_value(value, rows) for value in node.values)
    if isinstance(node, Sum):
        return compute_sum([(sign, _evaluate_value(term, rows)) for sign, term in node.terms])
    assert isinstance(node, Product)
    return compute_product(_evaluate_value(node.left, rows), node.operator, _evaluate_value(node.right, rows))


def compute_sum(terms: Sequence[tuple[int, Any]]) -> Any:
    """Return the sum of values with signs, from the left: exact for nanoseconds, float64 for numbers."""
    if any(value is None for _, value in terms):
        return None
    if any(isinstance(value, Nanos) for _, value in terms):
        return Nanos(sum(sign * value for sign, value in terms))
    total: float | None = None
    for sign, value in terms:
        total = sign * as_float(value) if total is None else total + sign * as_float(value)
        if math.isnan(total):
            return None
    return total


def compute_product(left: Any, operator: str, right: Any) -> float | None:
    """Return a product or quotient in float64; None for a division by zero or NaN."""
    if left is None or right is None or (operator == "/" and right == 0):
        return None
    one, other = as_float(left), as_float(right)
    found = one * other if operator == "*" else one / other
    return None if math.isnan(found) else found


def as_float(value: int | float) -> float:
    """Return a number as float64; infinity for one beyond its range."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def constant_value(node: Node) -> Any:
    """Return the value of an expression without references; None if it is not a number, as 0 / 0."""
    return _evaluate_value(node, {})
