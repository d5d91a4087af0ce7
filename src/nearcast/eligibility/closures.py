"""Rules as closures for a look-up: compile once, bind the query and the request, then test one item at a time.

Values are those of `pair_reference.plain`: nanoseconds for times, frozensets for lists, None for null. An item is a
tuple of values; a query and a request are dictionaries. Tests compare the results with `pair_reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
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
    Several,
    Sum,
    collect_tables,
)
from nearcast.eligibility.pair_reference import Nanos, compare, compute_product, compute_sum, share_value

__all__ = ["MIRRORED", "OPPOSITE", "Bound", "Context", "Item", "binder", "context_value"]

Item = tuple[Any, ...]
Context = Mapping[str, Mapping[str, Any]]  # of the query and the request: values by name
Test = Callable[[Item], bool]
Bound = Test | bool  # a test of items, or the same for all of them
Value = Callable[[Any], Any]

OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
MIRRORED = {"==": "==", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}


def binder(node: Node, slots: Mapping[str, int]) -> Callable[[Context], Bound]:
    """Return a function that binds a context and returns a test: whether the rule is true for an item.

    node: the core of a rule. slots: index of each column in the tuple of an item, with "id".
    """
    return _Binder(slots).bind(node, expected=True)


@dataclass(frozen=True, slots=True)
class _Binder:
    slots: Mapping[str, int]

    def bind(self, node: Node, *, expected: bool) -> Callable[[Context], Bound]:
        """Compile when a condition is true or, if `expected` is False, when it is false."""
        sides = collect_tables(node)
        if sides == {"item"}:
            item_truth = _compile_truth(node, self.item_value)
            alone: Test = (
                (lambda item: item_truth(item) is True) if expected else (lambda item: item_truth(item) is False)
            )
            return lambda _: alone
        if "item" not in sides:
            truth = _compile_truth(node, _context_value)
            return lambda context: truth(context) is expected
        if isinstance(node, Not):
            return self.bind(node.part, expected=not expected)
        if isinstance(node, And | Or):
            parts = [self.bind(part, expected=expected) for part in node.parts]
            return _bind_every(parts) if isinstance(node, And) == expected else _bind_some(parts)
        if isinstance(node, Compare):
            return self.comparison(node, expected=expected)
        assert isinstance(node, Member)
        return self.membership(node, expected=expected)

    def item_value(self, reference: Reference) -> Value:
        return itemgetter(self.slots[reference.name])

    def comparison(self, node: Compare, *, expected: bool) -> Callable[[Context], Bound]:
        operator = node.operator if expected else OPPOSITE[node.operator]
        left, right = node.left, node.right
        if "item" in collect_tables(right):
            left, right, operator = right, left, MIRRORED[operator]
        item_value, value_of = _compile_value(left, self.item_value), _compile_value(right, _context_value)
        make = COMPARISONS[operator]

        def bind(context: Context) -> Bound:
            bound = value_of(context)
            return False if bound is None else make(item_value, bound)

        return bind

    def membership(self, node: Member, *, expected: bool) -> Callable[[Context], Bound]:
        left, right = node.left, node.right
        item_part, other_part = (left, right) if "item" in collect_tables(left) else (right, left)
        single = {"has": node.right, "in": node.left}.get(node.operator)
        item_value, value_of = _compile_value(item_part, self.item_value), _compile_value(other_part, _context_value)
        make = _one_of if item_part is single else _has if other_part is single else _overlaps

        def bind(context: Context) -> Bound:
            bound = value_of(context)
            if other_part is single:
                return False if bound is None else make(item_value, bound, expected)
            return make(item_value, bound or frozenset(), expected)

        return bind


def _one_of(value: Value, bound: Any, expected: bool) -> Test:
    if expected:
        return lambda item: value(item) in bound  # null is in no set
    return lambda item: (found := value(item)) is not None and found not in bound


def _has(value: Value, bound: Any, expected: bool) -> Test:
    if expected:
        return lambda item: bound in (value(item) or ())
    return lambda item: bound not in (value(item) or ())


def _overlaps(value: Value, bound: Any, expected: bool) -> Test:
    if expected:
        return lambda item: not bound.isdisjoint(value(item) or ())
    return lambda item: bound.isdisjoint(value(item) or ())


COMPARISONS: Mapping[str, Callable[[Value, Any], Test]] = {
    "==": lambda value, bound: lambda item: value(item) == bound,  # `bound` is not null
    "!=": lambda value, bound: lambda item: (found := value(item)) is not None and found != bound,
    "<": lambda value, bound: lambda item: (found := value(item)) is not None and found < bound,
    "<=": lambda value, bound: lambda item: (found := value(item)) is not None and found <= bound,
    ">": lambda value, bound: lambda item: (found := value(item)) is not None and found > bound,
    ">=": lambda value, bound: lambda item: (found := value(item)) is not None and found >= bound,
}


def _bind_every(parts: list[Callable[[Context], Bound]]) -> Callable[[Context], Bound]:
    def bind(context: Context) -> Bound:
        bound = [part(context) for part in parts]
        tests = [test for test in bound if not isinstance(test, bool)]
        if False in bound or not tests:
            return False not in bound
        if len(tests) == 1:
            return tests[0]
        return lambda item: all(test(item) for test in tests)

    return bind


def _bind_some(parts: list[Callable[[Context], Bound]]) -> Callable[[Context], Bound]:
    def bind(context: Context) -> Bound:
        bound = [part(context) for part in parts]
        tests = [test for test in bound if not isinstance(test, bool)]
        if True in bound or not tests:
            return True in bound
        if len(tests) == 1:
            return tests[0]
        return lambda item: any(test(item) for test in tests)

    return bind


# ---- conditions and values of one table ----


def context_value(node: Node) -> Callable[[Context], Any]:
    """Return a function that computes a value without columns of the item; None for null."""
    return _compile_value(node, _context_value)


def _context_value(reference: Reference) -> Value:
    side, name = reference.side, reference.name
    return lambda context: context[side].get(name)


def _compile_truth(node: Node, value_of: Callable[[Reference], Value]) -> Value:
    """Compile a condition of one table: True, False, or None for unknown."""
    if isinstance(node, Not):
        inner = _compile_truth(node.part, value_of)
        return lambda row: None if (found := inner(row)) is None else not found
    if isinstance(node, And | Or):
        parts, decides = [_compile_truth(part, value_of) for part in node.parts], isinstance(node, Or)

        def combine(row: Any) -> bool | None:
            found = [part(row) for part in parts]
            return decides if decides in found else None if None in found else not decides

        return combine
    if isinstance(node, Compare):
        left, right, operator = _compile_value(node.left, value_of), _compile_value(node.right, value_of), node.operator
        return lambda row: compare(operator, left(row), right(row))
    if isinstance(node, Member):
        return _member_truth(node, value_of)
    if isinstance(node, IsNull):
        value = _compile_value(node.value, value_of)
        return lambda row: value(row) is None
    return _compile_value(node, value_of)


def _member_truth(node: Member, value_of: Callable[[Reference], Value]) -> Value:
    left, right, operator = _compile_value(node.left, value_of), _compile_value(node.right, value_of), node.operator
    return lambda row: share_value(operator, left(row), right(row))


def _compile_value(node: Node, value_of: Callable[[Reference], Value]) -> Value:
    if isinstance(node, Reference):
        return value_of(node)
    if isinstance(node, Sum):
        terms = [(sign, _compile_value(term, value_of)) for sign, term in node.terms]
        return lambda row: compute_sum([(sign, term(row)) for sign, term in terms])
    if isinstance(node, Product):
        left, right, operator = _compile_value(node.left, value_of), _compile_value(node.right, value_of), node.operator
        return lambda row: compute_product(left(row), operator, right(row))
    found = _read_literal(node)
    return lambda _: found


def _read_literal(node: Node) -> Any:
    if isinstance(node, Several):
        return frozenset(_read_literal(value) for value in node.values)
    if isinstance(node, Moment | Duration):
        return Nanos(node.nanoseconds)
    assert isinstance(node, Constant)
    return node.value
