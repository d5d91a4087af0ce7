"""The tree of an expression, and its text again. Values only: knows nothing of columns, types or how text is read.

`str(tree)` is the canonical text: read again, it gives an equal tree. Spans say where in the rule's text a node
was; they take no part in equality.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

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
    "Several",
    "Span",
    "Sum",
    "parts_of",
    "references_of",
    "sides_of",
]

Span = tuple[int, int]
NOWHERE: Span = (0, 0)
PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NANOSECONDS = {"days": 86_400_000_000_000, "hours": 3_600_000_000_000}


@dataclass(frozen=True, slots=True)
class Reference:
    """A column of the item or the query, or a field of the request."""

    side: str  # item, query or request
    name: str
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.side}.{self.name if PLAIN_NAME.fullmatch(self.name) else _quoted(self.name)}"


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, a text, true or false."""

    value: int | float | str | bool
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        if isinstance(self.value, bool):
            return str(self.value).lower()
        return _quoted(self.value) if isinstance(self.value, str) else repr(self.value)


@dataclass(frozen=True, slots=True)
class Moment:
    """A date, or a date and a time; without a time zone it is UTC."""

    text: str  # as ISO 8601 has it
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    @property
    def nanoseconds(self) -> int:
        """Since 1970."""
        return parse_time(self.text)

    def __str__(self) -> str:
        return f"date({_quoted(self.text)})"


@dataclass(frozen=True, slots=True)
class Duration:
    """An amount of days or hours."""

    unit: str
    amount: int | float
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    @property
    def nanoseconds(self) -> int:
        """Rounded to whole ones."""
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
    """Terms with their signs, added from the left."""

    terms: tuple[tuple[int, Node], ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        words = "".join(f" {'-' if sign < 0 else '+'} {_inner(term, Sum)}" for sign, term in self.terms)
        return words.removeprefix(" + ") if self.terms[0][0] > 0 else "-" + words.removeprefix(" - ")


@dataclass(frozen=True, slots=True)
class Product:
    """One value times or by another."""

    left: Node
    operator: str  # * or /
    right: Node
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{_inner(self.left, Sum)} {self.operator} {_inner(self.right, Sum, Product)}"


@dataclass(frozen=True, slots=True)
class Compare:
    """One value against another."""

    operator: str  # == != < <= > >=
    left: Node
    right: Node
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{_inner(self.left)} {self.operator} {_inner(self.right)}"


@dataclass(frozen=True, slots=True)
class Member:
    """A list has a value, a value is in a list, or two lists overlap."""

    operator: str  # has, in or overlaps
    left: Node
    right: Node
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{_inner(self.left)} {self.operator} {_inner(self.right)}"


@dataclass(frozen=True, slots=True)
class IsNull:
    """Whether a value is missing."""

    value: Node
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{_inner(self.value)} is null"


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite; unknown stays unknown."""

    part: Node
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return f"not {_inner(self.part, And, Or)}"


@dataclass(frozen=True, slots=True)
class And:
    """All of the parts."""

    parts: tuple[Node, ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return " and ".join(_inner(part, And, Or) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Or:
    """Any of the parts."""

    parts: tuple[Node, ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __str__(self) -> str:
        return " or ".join(_inner(part, Or) for part in self.parts)


Node = Reference | Constant | Moment | Duration | Several | Sum | Product | Compare | Member | IsNull | Not | And | Or
CONDITIONS = (Compare, Member, IsNull, Not, And, Or)


def _inner(node: Node, *wrapped: type) -> str:
    """A part's text, in parentheses where it would be read as something else without them."""
    loose = isinstance(node, wrapped or CONDITIONS)
    return f"({node})" if loose or (wrapped and Sum in wrapped and isinstance(node, CONDITIONS)) else str(node)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parts_of(node: Node) -> tuple[Node, ...]:
    """The nodes right below."""
    if isinstance(node, And | Or):
        return node.parts
    if isinstance(node, Not):
        return (node.part,)
    if isinstance(node, Compare | Member | Product):
        return (node.left, node.right)
    if isinstance(node, Sum):
        return tuple(term for _, term in node.terms)
    return (node.value,) if isinstance(node, IsNull) else ()


def references_of(node: Node) -> Iterator[Reference]:
    """Every reference, in the order of the text."""
    if isinstance(node, Reference):
        yield node
    for part in parts_of(node):
        yield from references_of(part)


def sides_of(node: Node) -> frozenset[str]:
    """The sides of the join that a node speaks of: a request stands on the side of the query."""
    return frozenset("item" if reference.side == "item" else "query" for reference in references_of(node))
