"""Rules as closures: a tree is walked once, and a request then binds what it brings, which leaves a test of one item.

Values are those of `judge.plain`: whole nanoseconds for times, sets for lists, None for null. An item is a tuple of
its values, a query and a request are dictionaries. Held to the judge by tests.
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
    sides_of,
)
from nearcast.eligibility.pair_reference import Nanos, compared, product_of, shares, sum_of

__all__ = ["MIRRORED", "OPPOSITE", "Bound", "Context", "Item", "binder", "context_value"]

Item = tuple[Any, ...]
Context = Mapping[str, Mapping[str, Any]]  # query and request: their values by name
Test = Callable[[Item], bool]
Bound = Test | bool  # a test of items, or the same for all of them
Value = Callable[[Any], Any]

OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
MIRRORED = {"==": "==", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}


def binder(node: Node, slots: Mapping[str, int]) -> Callable[[Context], Bound]:
    """What makes the test of a rule's core for one context: whether the rule is true of an item.

    slots: where in an item's tuple each column is, "id" among them.
    """
    return _Binder(slots).bind(node, wanted=True)


@dataclass(frozen=True, slots=True)
class _Binder:
    slots: Mapping[str, int]

    def bind(self, node: Node, *, wanted: bool) -> Callable[[Context], Bound]:
        """When a condition is true, or, where not `wanted`, when it is false."""
        sides = sides_of(node)
        if sides == {"item"}:
            item_truth = _truth(node, self.item_value)
            alone: Test = (
                (lambda item: item_truth(item) is True) if wanted else (lambda item: item_truth(item) is False)
            )
            return lambda _: alone
        if "item" not in sides:
            truth = _truth(node, _context_value)
            return lambda context: truth(context) is wanted
        if isinstance(node, Not):
            return self.bind(node.part, wanted=not wanted)
        if isinstance(node, And | Or):
            parts = [self.bind(part, wanted=wanted) for part in node.parts]
            return _every(parts) if isinstance(node, And) == wanted else _some(parts)
        if isinstance(node, Compare):
            return self.comparison(node, wanted=wanted)
        assert isinstance(node, Member)
        return self.membership(node, wanted=wanted)

    def item_value(self, reference: Reference) -> Value:
        return itemgetter(self.slots[reference.name])

    def comparison(self, node: Compare, *, wanted: bool) -> Callable[[Context], Bound]:
        operator = node.operator if wanted else OPPOSITE[node.operator]
        left, right = node.left, node.right
        if "item" in sides_of(right):
            left, right, operator = right, left, MIRRORED[operator]
        of_item, of_context = _value(left, self.item_value), _value(right, _context_value)
        make = COMPARISONS[operator]

        def bind(context: Context) -> Bound:
            asked = of_context(context)
            return False if asked is None else make(of_item, asked)

        return bind

    def membership(self, node: Member, *, wanted: bool) -> Callable[[Context], Bound]:
        left, right = node.left, node.right
        mine, theirs = (left, right) if "item" in sides_of(left) else (right, left)
        single = {"has": node.right, "in": node.left}.get(node.operator)
        of_item, of_context = _value(mine, self.item_value), _value(theirs, _context_value)
        make = _one_of if mine is single else _has if theirs is single else _overlaps

        def bind(context: Context) -> Bound:
            asked = of_context(context)
            if theirs is single:
                return False if asked is None else make(of_item, asked, wanted)
            return make(of_item, asked or frozenset(), wanted)

        return bind


def _one_of(value: Value, asked: Any, wanted: bool) -> Test:
    if wanted:
        return lambda item: value(item) in asked  # null is in no set
    return lambda item: (found := value(item)) is not None and found not in asked


def _has(value: Value, asked: Any, wanted: bool) -> Test:
    if wanted:
        return lambda item: asked in (value(item) or ())
    return lambda item: asked not in (value(item) or ())


def _overlaps(value: Value, asked: Any, wanted: bool) -> Test:
    if wanted:
        return lambda item: not asked.isdisjoint(value(item) or ())
    return lambda item: asked.isdisjoint(value(item) or ())


COMPARISONS: Mapping[str, Callable[[Value, Any], Test]] = {
    "==": lambda value, asked: lambda item: value(item) == asked,  # what is asked is no null
    "!=": lambda value, asked: lambda item: (found := value(item)) is not None and found != asked,
    "<": lambda value, asked: lambda item: (found := value(item)) is not None and found < asked,
    "<=": lambda value, asked: lambda item: (found := value(item)) is not None and found <= asked,
    ">": lambda value, asked: lambda item: (found := value(item)) is not None and found > asked,
    ">=": lambda value, asked: lambda item: (found := value(item)) is not None and found >= asked,
}


def _every(parts: list[Callable[[Context], Bound]]) -> Callable[[Context], Bound]:
    def bind(context: Context) -> Bound:
        bound = [part(context) for part in parts]
        tests = [test for test in bound if not isinstance(test, bool)]
        if False in bound or not tests:
            return False not in bound
        if len(tests) == 1:
            return tests[0]
        return lambda item: all(test(item) for test in tests)

    return bind


def _some(parts: list[Callable[[Context], Bound]]) -> Callable[[Context], Bound]:
    def bind(context: Context) -> Bound:
        bound = [part(context) for part in parts]
        tests = [test for test in bound if not isinstance(test, bool)]
        if True in bound or not tests:
            return True in bound
        if len(tests) == 1:
            return tests[0]
        return lambda item: any(test(item) for test in tests)

    return bind


# ---- conditions and values of one side ----


def context_value(node: Node) -> Callable[[Context], Any]:
    """Return a function that computes a value without columns of the item; None for null."""
    return _value(node, _context_value)


def _context_value(reference: Reference) -> Value:
    side, name = reference.side, reference.name
    return lambda context: context[side].get(name)


def _truth(node: Node, value_of: Callable[[Reference], Value]) -> Value:
    """A condition of one side: True, False, or None for unknown."""
    if isinstance(node, Not):
        inner = _truth(node.part, value_of)
        return lambda row: None if (found := inner(row)) is None else not found
    if isinstance(node, And | Or):
        parts, decides = [_truth(part, value_of) for part in node.parts], isinstance(node, Or)

        def joined(row: Any) -> bool | None:
            found = [part(row) for part in parts]
            return decides if decides in found else None if None in found else not decides

        return joined
    if isinstance(node, Compare):
        left, right, operator = _value(node.left, value_of), _value(node.right, value_of), node.operator
        return lambda row: compared(operator, left(row), right(row))
    if isinstance(node, Member):
        return _member_truth(node, value_of)
    if isinstance(node, IsNull):
        value = _value(node.value, value_of)
        return lambda row: value(row) is None
    return _value(node, value_of)


def _member_truth(node: Member, value_of: Callable[[Reference], Value]) -> Value:
    left, right, operator = _value(node.left, value_of), _value(node.right, value_of), node.operator
    return lambda row: shares(operator, left(row), right(row))


def _value(node: Node, value_of: Callable[[Reference], Value]) -> Value:
    if isinstance(node, Reference):
        return value_of(node)
    if isinstance(node, Sum):
        terms = [(sign, _value(term, value_of)) for sign, term in node.terms]
        return lambda row: sum_of([(sign, term(row)) for sign, term in terms])
    if isinstance(node, Product):
        left, right, operator = _value(node.left, value_of), _value(node.right, value_of), node.operator
        return lambda row: product_of(left(row), operator, right(row))
    found = _literal(node)
    return lambda _: found


def _literal(node: Node) -> Any:
    if isinstance(node, Several):
        return frozenset(_literal(value) for value in node.values)
    if isinstance(node, Moment | Duration):
        return Nanos(node.nanoseconds)
    assert isinstance(node, Constant)
    return node.value
