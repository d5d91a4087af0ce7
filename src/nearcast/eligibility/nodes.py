"""A rule, the tree of its expression, and the columns that it names. Knows nothing of types, tables or the parser.

`str(tree)` is the canonical text: parsing it gives an equal tree. A span is the place of a node in the rule's text;
spans do not count for equality.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nearcast.errors import SpecError
from nearcast.times import parse_time

__all__ = [
    "And",
    "Compare",
    "Constant",
    "Duration",
    "IsNull",
    "Literal",
    "Member",
    "Moment",
    "Node",
    "Not",
    "Or",
    "Product",
    "Reference",
    "Rule",
    "Several",
    "Span",
    "Sum",
    "collect_columns",
    "collect_tables",
    "get_parts",
    "item_only",
    "request_time",
    "rule_error",
    "walk_references",
]

Span = tuple[int, int]
NOWHERE: Span = (0, 0)
PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NANOSECONDS = {"days": 86_400_000_000_000, "hours": 3_600_000_000_000}


@dataclass(frozen=True, slots=True)
class Reference:
    """A column of an item, a query or an ad, or a field of the request."""

    side: str  # item, query, ad or request
    name: str
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.side}.{self.name if PLAIN_NAME.fullmatch(self.name) else _quote_text(self.name)}"


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, a text, true or false."""

    value: int | float | str | bool
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        if isinstance(self.value, bool):
            return str(self.value).lower()
        return _quote_text(self.value) if isinstance(self.value, str) else repr(self.value)


@dataclass(frozen=True, slots=True)
class Moment:
    """A constant time; without a time zone it is in UTC."""

    text: str  # as ISO 8601 has it
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    @property
    def nanoseconds(self) -> int:
        """Return nanoseconds since 1970."""
        return parse_time(self.text)

    def __str__(self) -> str:
        return f"date({_quote_text(self.text)})"


@dataclass(frozen=True, slots=True)
class Duration:
    """An amount of days or hours."""

    unit: str
    amount: int | float
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    @property
    def nanoseconds(self) -> int:
        """Return whole nanoseconds."""
        return round(self.amount * NANOSECONDS[self.unit])

    def __str__(self) -> str:
        return f"{self.unit}({self.amount!r})"


Literal = Constant | Moment | Duration


@dataclass(frozen=True, slots=True)
class Several:
    """A list of constants."""

    values: tuple[Literal, ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return "[" + ", ".join(map(str, self.values)) + "]"


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum of terms with signs, added from the left."""

    terms: tuple[tuple[int, Node], ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        words = "".join(f" {'-' if sign < 0 else '+'} {_format_part(term, Sum)}" for sign, term in self.terms)
        return words.removeprefix(" + ") if self.terms[0][0] > 0 else "-" + words.removeprefix(" - ")


@dataclass(frozen=True, slots=True)
class Product:
    """A product or a quotient of two values."""

    left: Node
    operator: str  # * or /
    right: Node
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{_format_part(self.left, Sum)} {self.operator} {_format_part(self.right, Sum, Product)}"


@dataclass(frozen=True, slots=True)
class Compare:
    """A comparison of two values."""

    operator: str  # == != < <= > >=
    left: Node
    right: Node
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{_format_part(self.left)} {self.operator} {_format_part(self.right)}"


@dataclass(frozen=True, slots=True)
class Member:
    """A membership: a list has a value, a value is in a list, or two lists overlap."""

    operator: str  # has, in or overlaps
    left: Node
    right: Node
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{_format_part(self.left)} {self.operator} {_format_part(self.right)}"


@dataclass(frozen=True, slots=True)
class IsNull:
    """A test for null."""

    value: Node
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{_format_part(self.value)} is null"


@dataclass(frozen=True, slots=True)
class Not:
    """A negation; unknown stays unknown."""

    part: Node
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return f"not {_format_part(self.part, And, Or)}"


@dataclass(frozen=True, slots=True)
class And:
    """A conjunction."""

    parts: tuple[Node, ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return " and ".join(_format_part(part, And, Or) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Or:
    """A disjunction."""

    parts: tuple[Node, ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return " or ".join(_format_part(part, Or) for part in self.parts)


Node = Reference | Constant | Moment | Duration | Several | Sum | Product | Compare | Member | IsNull | Not | And | Or
CONDITIONS = (Compare, Member, IsNull, Not, And, Or)


def _format_part(node: Node, *wrapped: type) -> str:
    """Return the text of a part, in parentheses where the grammar needs them."""
    loose = isinstance(node, wrapped or CONDITIONS)
    return f"({node})" if loose or (wrapped and Sum in wrapped and isinstance(node, CONDITIONS)) else str(node)


def _quote_text(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def get_parts(node: Node) -> tuple[Node, ...]:
    """Return the children of a node."""
    if isinstance(node, And | Or):
        return node.parts
    if isinstance(node, Not):
        return (node.part,)
    if isinstance(node, Compare | Member | Product):
        return (node.left, node.right)
    if isinstance(node, Sum):
        return tuple(term for _, term in node.terms)
    return (node.value,) if isinstance(node, IsNull) else ()


def walk_references(node: Node) -> Iterator[Reference]:
    """Yield every reference, in the order of the text."""
    if isinstance(node, Reference):
        yield node
    for part in get_parts(node):
        yield from walk_references(part)


def collect_tables(node: Node) -> frozenset[str]:
    """Return the tables that a node names: "item" (or an ad), and "query", which includes the request."""
    return frozenset("item" if found.side in ("item", "ad") else "query" for found in walk_references(node))


# ---- rules ----


@dataclass(frozen=True, slots=True)
class Rule:
    """A named expression. A pair of a query and an item is eligible if the expression is true for it."""

    name: str
    text: str = field(compare=False)
    tree: Node  # as written
    core: Node = field(compare=False, repr=False)  # the item is on at most one side of each comparison

    def __str__(self) -> str:
        return str(self.tree)


def collect_columns(rules: Sequence[Rule]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the columns of the items, the columns of the queries and the fields of the request that rules name.

    Ids are left out. Each name occurs once, in the order of the rules.
    """
    named: dict[str, dict[str, None]] = {"item": {}, "query": {}, "request": {}}
    for rule in rules:
        for reference in walk_references(rule.tree):
            if (reference.side, reference.name) not in (("item", "id"), ("query", "id")):
                named[reference.side][reference.name] = None
    return tuple(named["item"]), tuple(named["query"]), tuple(named["request"])


def item_only(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Return the rules that name the item alone: an engine without rules can leave such items out of its index."""
    return tuple(rule for rule in rules if all(reference.side == "item" for reference in walk_references(rule.tree)))


def request_time(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Return the rules that name a field of the request. The join skips them; the look-up applies them."""
    return tuple(rule for rule in rules if any(reference.side == "request" for reference in walk_references(rule.tree)))


def rule_error(name: str, text: str, span: Span, message: str) -> SpecError:
    """Return an error with the message, the line of the rule and a mark under the span."""
    start, end = min(span[0], len(text)), max(span)
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", start)
    line = text[line_start : line_end if line_end >= 0 else len(text)]
    marked = max(1, min(end, line_start + len(line)) - start)
    shown = "".join(letter if letter.isprintable() else " " for letter in line)
    return SpecError(f"rule {name!r}: {message}\n  {shown}\n  {' ' * (start - line_start)}{'^' * marked}")
