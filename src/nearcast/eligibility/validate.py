"""Check rules against the schemas of both tables: every column exists, and every comparison fits its types.

A request has no schema: a field has the type of the values that it is compared with. The same holds for a column
without values, which pandas writes without a type. Reads no data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

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
    Span,
    Sum,
    get_parts,
    rule_error,
    walk_references,
)
from nearcast.eligibility.pair_reference import constant_value
from nearcast.eligibility.rule_types import Kind, Type, convert_arrow_type, holds_nothing
from nearcast.errors import SpecError
from nearcast.suggest import suggest_name

__all__ = ["Schemas", "check_ad_rules", "check_rules"]

MOST_TIMES = 16  # largest number of times in one comparison: more could overflow 64 bits
NO_COLUMNS = pa.schema([])
OWNERS = {"item": "items", "query": "queries", "ad": "ads"}


@dataclass(frozen=True, slots=True)
class Schemas:
    """The types of the columns of items and queries, and of the fields of requests, that rules name."""

    items: Mapping[str, Type]
    queries: Mapping[str, Type]
    request: Mapping[str, Type]


def check_rules(
    rules: Sequence[Rule],
    item_schema: pa.Schema,
    query_schema: pa.Schema,
    *,
    unlisted: Mapping[str, Mapping[str, str]] | None = None,
) -> Schemas:
    """Check rules against the columns of both tables, and return the types that they use.

    item_schema, query_schema: the attributes, and "id". unlisted: for "item" and "query" the columns of the file that
    the attributes do not name, with the line to add for each.
    Raises SpecError with a mark under the first wrong word.
    """
    used = _check({"item": item_schema, "query": query_schema}, rules, unlisted or {})
    return Schemas(used.used["item"], used.used["query"], used.request)


def check_ad_rules(rules: Sequence[Rule], ad_schema: pa.Schema) -> Schemas:
    """Check rules over `ad.NAME` and `request.NAME`, and return the types that they use; `items` are the ads.

    ad_schema: the columns of the ads, and "id". Raises SpecError with a mark under the first wrong word.
    """
    used = _check({"ad": ad_schema}, rules, {})
    return Schemas(used.used["ad"], {}, used.request)


def _check(
    schemas: Mapping[str, pa.Schema], rules: Sequence[Rule], unlisted: Mapping[str, Mapping[str, str]]
) -> _Checker:
    _check_names(rules)
    checker = _Checker(schemas, unlisted)
    for _ in range(1 + sum(1 for rule in rules for _ in walk_references(rule.tree))):
        known = dict(checker.request), dict(checker.empty)
        for rule in rules:
            checker.check(rule)
        if (checker.request, checker.empty) == known:
            break
    for rule in rules:
        checker.settle(rule)
    return checker


def _check_names(rules: Sequence[Rule]) -> None:
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"{names.count(name)} rules are called {name!r}; give each a different name")


class _Checker:
    def __init__(self, schemas: Mapping[str, pa.Schema], unlisted: Mapping[str, Mapping[str, str]]) -> None:
        self.unlisted = unlisted
        self.schemas = schemas  # by the name of the table in a rule
        self.used: dict[str, dict[str, Type]] = {table: {} for table in schemas}
        self.request: dict[str, Type] = {}
        self.empty: dict[tuple[str, str], Type] = {}  # columns without values: the type that they are compared with
        self.rule: Rule

    def wrong(self, span: Span, message: str) -> SpecError:
        return rule_error(self.rule.name, self.rule.text, span, message)

    def check(self, rule: Rule) -> None:
        self.rule = rule
        self.condition(rule.tree)

    def settle(self, rule: Rule) -> None:
        """Give a column without values the type text; raise SpecError for a field of the request without a type."""
        self.rule = rule
        for group in _list_operands(rule.tree):
            if isinstance(group, Reference) and group.side != "request" and self.column(group) is None:
                self.empty[group.side, group.name] = Type(Kind.TEXT, many=True)
                self.check(rule)
        for reference in sorted(walk_references(rule.tree), key=lambda found: found.side == "request"):
            if reference.side != "request" and self.column(reference) is None:
                kind = self.schemas[reference.side].field(reference.name).type
                self.empty[reference.side, reference.name] = Type(Kind.TEXT, many=not pa.types.is_null(kind))
                self.check(rule)
            if reference.side == "request" and reference.name not in self.request:
                way = "compare it with a column or a constant somewhere"
                raise self.wrong(reference.span, f"nothing tells the type of {reference}; {way}")

    # ---- conditions ----

    def condition(self, node: Node) -> None:
        if isinstance(node, And | Or | Not):
            for part in get_parts(node):
                self.condition(part)
        elif isinstance(node, Compare):
            self.comparison(node)
        elif isinstance(node, Member):
            self.membership(node)
        elif isinstance(node, IsNull):
            self.value(node.value)
        else:
            self.expect(node, Type(Kind.BOOLEAN), "a condition is needed here, or a column of booleans")

    def comparison(self, node: Compare) -> None:
        left, right = self.pair(node.left, node.right)
        if left is None or right is None:
            return
        for side, found in ((node.left, left), (node.right, right)):
            if found.many:
                raise self.wrong(side.span, f"{found} takes has, in or overlaps, not {node.operator}")
        if left.kind != right.kind and not (left.numeric and right.numeric):
            raise self.wrong(node.span, f"{left} is compared with {right}; {_way_out(left, right)}")
        if left.kind == Kind.BOOLEAN and node.operator not in ("==", "!="):
            raise self.wrong(node.span, f"booleans have no order; write == or != instead of {node.operator}")
        if left.temporal and _count(node) > MOST_TIMES:
            raise self.wrong(node.span, f"it adds more than {MOST_TIMES} times; make a column of them")

    def pair(self, left: Node, right: Node) -> tuple[Type | None, Type | None]:
        """Return the types of both operands; an unknown type becomes the type of the other."""
        found = self.value(left), self.value(right)
        if found[0] is None and found[1] is not None:
            self.assume(left, found[1])
            return self.value(left), found[1]
        if found[1] is None and found[0] is not None:
            self.assume(right, found[0])
            return found[0], self.value(right)
        return found

    def membership(self, node: Member) -> None:
        if node.operator == "overlaps":
            self.lists(node, node.left, node.right)
            return
        group, value = (node.left, node.right) if node.operator == "has" else (node.right, node.left)
        of_group, of_value = self.value(group), self.value(value)
        if of_group is None and of_value is not None:
            self.assume(group, Type(of_value.kind, many=True))
            of_group = self.value(group)
        elif of_value is None and of_group is not None and of_group.many:
            self.assume(value, Type(of_group.kind))
            of_value = self.value(value)
        if of_group is not None and not of_group.many:
            raise self.wrong(group.span, f"a list is needed here, and this is {of_group}; write == for one value")
        if of_value is not None and of_value.many:
            raise self.wrong(
                value.span, f"one value is needed here, and this is {of_value}; write overlaps for two lists"
            )
        self.same_elements(node, of_group, of_value)

    def lists(self, node: Member, left: Node, right: Node) -> None:
        found = self.pair(left, right)
        for side, kind in zip((left, right), found, strict=True):
            if kind is not None and not kind.many:
                raise self.wrong(side.span, f"overlaps is between two lists, and this is {kind}; write has or in")
        self.same_elements(node, *found)

    def same_elements(self, node: Node, left: Type | None, right: Type | None) -> None:
        if left is None or right is None or left.kind == right.kind:
            return
        if not Type(left.kind).numeric or not Type(right.kind).numeric:
            raise self.wrong(node.span, f"{left} never holds the same as {right}; cast one of them in its source")

    # ---- values ----

    def value(self, node: Node) -> Type | None:
        """Return the type of a value, or None if it is still unknown."""
        if isinstance(node, Reference):
            return self.reference(node)
        if isinstance(node, Constant):
            return Type(_KINDS[type(node.value)])
        if isinstance(node, Moment | Duration):
            return Type(Kind.TIME if isinstance(node, Moment) else Kind.DURATION)
        if isinstance(node, Several):
            return self.several(node)
        if isinstance(node, Sum):
            return self.sum(node)
        if isinstance(node, Product):
            return self.product(node)
        raise self.wrong(node.span, "a value is needed here, and this is a condition; join conditions by and, or, not")

    def reference(self, node: Reference) -> Type | None:
        if node.side == "request":
            schema = self.schemas.get("query", NO_COLUMNS)
            same = convert_arrow_type(schema.field(node.name).type) if node.name in schema.names else None
            same = same or self.empty.get(("query", node.name))
            if same is not None and node.name != "id":  # a field of the request replaces the query's column
                self.request.setdefault(node.name, same)
            return self.request.get(node.name)
        found = self.column(node)
        if found is not None:
            self.used[node.side][node.name] = found
        return found

    def column(self, node: Reference) -> Type | None:
        """Return the type of a column; None for a column without values that is compared with nothing yet."""
        schema = self.schemas[node.side]
        unlisted = self.unlisted.get(node.side, {})
        if node.name not in schema.names and node.name in unlisted:
            raise self.wrong(
                node.span,
                f"the file of the {OWNERS[node.side]} has a column {node.name!r}, and the attributes do not name it; "
                f"add it: {unlisted[node.name]}",
            )
        if node.name not in schema.names:
            raise self.wrong(node.span, f"the {OWNERS[node.side]} have no column {node.name!r}; {self.elsewhere(node)}")
        found = convert_arrow_type(schema.field(node.name).type)
        if found is None and holds_nothing(schema.field(node.name).type):
            return self.empty.get((node.side, node.name))
        if found is None:
            kind = schema.field(node.name).type
            known = "numbers, texts, booleans, dates, times, and lists of them"
            cast = f"cast it in the source of the {OWNERS[node.side]}"
            raise self.wrong(node.span, f"{node} is a column of {kind}, and rules know {known}; {cast}")
        return found

    def elsewhere(self, node: Reference) -> str:
        other = "query" if node.side == "item" else "item"
        names = self.schemas[node.side].names
        if other in self.schemas and node.name in self.schemas[other].names:
            table = OWNERS[node.side]
            add = f"or, if the file of the {table} has it too, add it to the attributes of [{table}]"
            return f"the {OWNERS[other]} have one: write {other}.{node.name}; {add}"
        return suggest_name(node.name, [*names, *self.unlisted.get(node.side, ())], "they have")

    def several(self, node: Several) -> Type:
        kinds = {value.kind for part in node.values if (value := self.value(part)) is not None}
        if kinds == {Kind.INTEGER, Kind.NUMBER}:
            kinds = {Kind.NUMBER}
        kind = next(iter(kinds))
        if len(kinds) > 1 or kind in (Kind.BOOLEAN, Kind.DURATION):
            raise self.wrong(node.span, "a list holds numbers, or texts, or dates, and only one of these")
        return Type(kind, many=True)

    def sum(self, node: Sum) -> Type | None:
        found = [(sign, term, self.value(term)) for sign, term in node.terms]
        known = [(sign, kind) for sign, _, kind in found if kind is not None]
        for _, term, kind in found:
            if kind is not None and not kind.numeric and not kind.temporal:
                raise self.wrong(term.span, f"{kind} cannot be added; numbers, and times with days(n), can")
        if any(kind.numeric for _, kind in known):
            return self.sum_of_numbers(node, found)
        if len(known) < len(found):
            return None
        times = sum(sign for sign, kind in known if kind.kind == Kind.TIME)
        if times not in (0, 1):
            raise self.wrong(node.span, "times can be subtracted from each other, and moved by days(n), but not added")
        return Type(Kind.TIME if times else Kind.DURATION)

    def sum_of_numbers(self, node: Sum, found: Sequence[tuple[int, Node, Type | None]]) -> Type:
        for _, term, kind in found:
            if kind is None:
                self.assume(term, Type(Kind.NUMBER))
            elif not kind.numeric:
                raise self.wrong(term.span, f"{kind} is added to a number; write days(3) to move a time by three days")
        return self.finite(node)

    def product(self, node: Product) -> Type:
        for part in (node.left, node.right):
            self.expect(part, Type(Kind.NUMBER), "only numbers are multiplied and divided")
        if node.operator == "/" and is_constant(node.right) and constant_value(node.right) == 0:
            raise self.wrong(node.right.span, "this divides by zero")
        return self.finite(node)

    def finite(self, node: Sum | Product) -> Type:
        """Return the type of arithmetic; raise SpecError for constants whose result is no number."""
        if is_constant(node):
            found = constant_value(node)
            if found is None or not math.isfinite(found):
                raise self.wrong(node.span, "this comes to no number that float64 holds; write the number itself")
        return Type(Kind.NUMBER)

    def expect(self, node: Node, required: Type, message: str) -> None:
        found = self.value(node)
        if found is None:
            self.assume(node, required)
            found = self.value(node) or required
        if found.many or not (found.kind == required.kind or (found.numeric and required.numeric)):
            raise self.wrong(node.span, f"{message}, and this is {found}")

    # ---- types of request fields ----

    def assume(self, node: Node, required: Type) -> None:
        """Give fields of the request and columns without values the types that make the value of the required type."""
        if isinstance(node, Reference):
            if node.side == "request" and node.name not in self.request:
                self.request[node.name] = required
            elif node.side != "request" and self.column(node) is None:
                self.empty[node.side, node.name] = required
        elif isinstance(node, Sum) and required.temporal:
            self.assume_times(node, required)
        elif isinstance(node, Sum | Product):
            for part in get_parts(node):
                if self.value(part) is None:
                    self.assume(part, Type(Kind.NUMBER))

    def assume_times(self, node: Sum, required: Type) -> None:
        found = [(sign, term, self.value(term)) for sign, term in node.terms]
        times = sum(sign for sign, _, kind in found if kind is not None and kind.kind == Kind.TIME)
        lacking = (1 if required.kind == Kind.TIME else 0) - times
        for sign, term, kind in found:
            if kind is None:
                is_time = lacking != 0 and sign == lacking
                lacking = 0 if is_time else lacking
                self.assume(term, Type(Kind.TIME if is_time else Kind.DURATION))


def _list_operands(node: Node) -> Iterator[Node]:
    """Yield the operands of a condition that must be lists."""
    if isinstance(node, Member):
        yield from {"has": (node.left,), "in": (node.right,)}.get(node.operator, (node.left, node.right))
    elif isinstance(node, And | Or | Not):
        for part in get_parts(node):
            yield from _list_operands(part)


def _way_out(left: Type, right: Type) -> str:
    kinds = {left.kind, right.kind}
    if kinds == {Kind.TIME, Kind.TEXT}:
        return 'write date("2026-11-25") for a constant, and cast a column of texts to dates'
    if Kind.DURATION in kinds:
        return "write days(28) or hours(6) for an amount of time"
    return "compare values of one type, or cast one of the columns in its source"


_KINDS = {bool: Kind.BOOLEAN, int: Kind.INTEGER, float: Kind.NUMBER, str: Kind.TEXT}


def is_constant(node: Node) -> bool:
    """Return whether an expression has no references."""
    return next(walk_references(node), None) is None


def _count(node: Node) -> int:
    parts = get_parts(node)
    return sum(map(_count, parts)) if parts else 1
