"""Parse the text of a rule: a grammar for lark, a tree of nodes, and errors that mark the wrong word.

Comparisons that name both tables are rearranged: terms of the item on the left, all others on the right. Knows nothing
of schemas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
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
    Span,
    Sum,
    collect_tables,
    get_parts,
    rule_error,
    walk_references,
)
from nearcast.errors import SpecError
from nearcast.suggest import suggest_name
from nearcast.times import parse_time

__all__ = ["parse_rule"]

LONGEST = 4000  # largest number of characters; longer rules hold data that belongs into a column
DEEPEST = 50  # largest nesting depth, far below Python's recursion limit
MOST_DAYS = 100_000
TABLES = ("item", "query", "request")
FIRST_WORD = re.compile(r"[A-Za-z_]+")
LAST_WORD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*$")

GRAMMAR = r"""
start: either
?either: both (OR both)*
?both: opposite (AND opposite)*
?opposite: NOT opposite -> opposite
    | comparison
?comparison: sum
    | sum (COMPARES sum)+ -> compare
    | sum (HAS | OVERLAPS | IN) sum -> member
    | sum NOT IN sum -> outside
    | sum IS NULL -> is_null
    | sum IS NOT NULL -> is_not_null
?sum: product ((PLUS | MINUS) product)*
?product: signed
    | product (TIMES | BY) signed -> product
?signed: MINUS signed -> negative
    | value
?value: NUMBER -> number
    | STRING -> string
    | TRUE -> true
    | FALSE -> false
    | WORD "." (WORD | STRING) -> reference
    | WORD "(" [either ("," either)*] ")" -> call
    | "[" [literal ("," literal)*] "]" -> several
    | "(" either ")" -> group
?literal: NUMBER -> number
    | MINUS NUMBER -> negative_number
    | STRING -> string
    | WORD "(" [either ("," either)*] ")" -> call

AND.2: /and\b/
OR.2: /or\b/
NOT.2: /not\b/
HAS.2: /has\b/
OVERLAPS.2: /overlaps\b/
IN.2: /in\b/
IS.2: /is\b/
NULL.2: /null\b/
TRUE.2: /true\b/
FALSE.2: /false\b/
COMPARES: "==" | "!=" | "<=" | ">=" | "<" | ">"
PLUS: "+"
MINUS: "-"
TIMES: "*"
BY: "/"
NUMBER: /[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?/
STRING: /"([^"\\]|\\.)*"|'([^'\\]|\\.)*'/s
WORD: /[A-Za-z_][A-Za-z0-9_]*/
%ignore /[ \t\r\n]+/
"""

IN_WORDS = {
    "AND": "and",
    "OR": "or",
    "NOT": "not",
    "HAS": "has",
    "OVERLAPS": "overlaps",
    "IN": "in",
    "IS": "is",
    "NULL": "null",
    "COMPARES": "a comparison",
    "NUMBER": "a number",
    "STRING": 'a text in "quotes"',
    "WORD": "item.NAME, query.NAME or request.NAME",
    "LPAR": "(",
    "RPAR": ")",
    "LSQB": "[",
    "RSQB": "]",
    "COMMA": "a comma",
    "DOT": "a dot and a column",
    "$END": "the end",
}
USUAL_SLIPS = {
    "=": "write == to compare",
    "<>": "write != for unequal",
    "!": "write not, or != for unequal",
    "&": "write and",
    "|": "write or",
    "&&": "write and",
    "||": "write or",
    "%": "it knows + - * and /",
    "**": "it knows + - * and /: write a product",
    ";": "one rule is one expression: join two by and",
    "between": "write LOW <= VALUE <= HIGH",
    "like": "texts are compared whole, by == or in; make a column of the parts",
    "contains": "write LIST has VALUE",
    "AND": "write and, in lower case",
    "OR": "write or, in lower case",
    "NOT": "write not, in lower case",
    "IN": "write in, in lower case",
    "IS": "write is, in lower case",
}
CONSTANTS = {  # words of other languages
    **dict.fromkeys(("null", "NULL", "None", "nil", "nan", "NaN"), "VALUE is null, or VALUE is not null"),
    "True": "true",
    "TRUE": "true",
    "False": "false",
    "FALSE": "false",
}
FUNCTIONS = ("date", "days", "hours")
REWRITES = {  # functions of other languages, and their form in a rule
    "abs": "write two bounds: -LIMIT <= VALUE <= LIMIT",
    "between": "write LOW <= VALUE <= HIGH",
    "min": "a value is at most both of two others: VALUE <= A and VALUE <= B",
    "max": "a value is at least both of two others: VALUE >= A and VALUE >= B",
    "coalesce": "say what null means: VALUE is null or VALUE > 3",
    "ifnull": "say what null means: VALUE is null or VALUE > 3",
    "isnull": "write VALUE is null",
    "is_null": "write VALUE is null",
    "notnull": "write VALUE is not null",
    "contains": "write LIST has VALUE",
    "any": "write LIST overlaps LIST",
    "if": "write CONDITION and VALUE > 3 or not CONDITION and VALUE > 9",
    "sqrt": "compare squares: VALUE * VALUE",
    "pow": "write a product: VALUE * VALUE",
    "datetime": 'write date("2026-11-25T18:30:00Z")',
    "timestamp": 'write date("2026-11-25T18:30:00Z")',
    "timedelta": "write days(28) or hours(6)",
    "weeks": "write days(7)",
    "minutes": "write hours(0.5)",
    "seconds": "write hours(0.5)",
    **dict.fromkeys(
        ("today", "now"),
        "a rule has no clock, so that a run can be repeated: compare with a column, or with request.today",
    ),
    **dict.fromkeys(
        ("lower", "upper", "len", "length", "size", "round", "floor", "ceil", "log", "exp", "str", "int", "float",
         "year", "month", "startswith", "endswith", "like", "concat", "cast"),
        "make a column of it in the source, and name it in the attributes",
    ),
}  # fmt: skip


class _WordError(Exception):
    def __init__(self, span: Span, message: str) -> None:
        super().__init__(message)
        self.span = span


def parse_rule(name: str, text: str, tables: Sequence[str] = TABLES) -> Rule:
    """Parse a rule that may name columns of these tables.

    Raises SpecError with the line and a mark under the wrong word.
    """
    if len(text) > LONGEST:
        raise SpecError(f"rule {name!r} has {len(text)} characters and may have {LONGEST}; put lists into a column")
    try:
        tree = _parse(text, tables)
        return Rule(name, text, tree, _separate_tables(tree))
    except _WordError as wrong:
        raise rule_error(name, text, wrong.span, str(wrong)) from None


def _parse(text: str, tables: Sequence[str]) -> Node:
    from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedToken

    if not text.strip():
        raise _WordError((0, 0), f"it is empty; write a condition, for example {tables[0]}.in_stock")
    try:
        tree = _parser().parse(text)
    except UnexpectedCharacters as error:
        start = error.pos_in_stream or 0
        raise _explain_unexpected(text, (start, start + 1), error.allowed or (), tables) from None
    except UnexpectedToken as error:
        at_end = error.token.type == "$END"
        start = len(text) if at_end else int(error.token.start_pos or 0)
        span = (start, start + (1 if at_end else len(error.token)))
        raise _explain_unexpected(text, span, error.accepts or (), tables) from None
    except UnexpectedEOF as error:
        raise _explain_unexpected(text, (len(text), len(text) + 1), error.expected or (), tables) from None
    node: Node = _build(tree)
    for reference in walk_references(node):
        if reference.side not in tables:
            start, side = reference.span[0], reference.side
            hint = suggest_name(side, tables, "known are")
            raise _WordError((start, start + len(side)), f"there is no {side!r}; {hint}")
    return node


def _explain_unexpected(text: str, span: Span, allowed: Any, tables: Sequence[str]) -> _WordError:
    """Return the error for a span that the grammar does not allow: the usual fix, or the words that may follow."""
    found = text[span[0] : span[1]]
    whole = FIRST_WORD.match(text, span[0])
    if whole is not None and whole[0] in USUAL_SLIPS:
        return _WordError(whole.span(), f"{whole[0]!r} is not understood here; {USUAL_SLIPS[whole[0]]}")
    if set(allowed) == {"DOT", "LPAR"} and (alone := LAST_WORD.search(text[: span[0]])):
        word = alone[1]
        way = f"say whose it is: {', '.join(f'{table}.{word}' for table in tables)}; or quote a text"
        if word in CONSTANTS:
            way = f"write {CONSTANTS[word]}"
        elif word in tables:
            way = f"name a column, for example {word}.id"
        return _WordError(alone.span(1), f"{word!r} stands alone; {way}")
    around = (text[span[0] : span[0] + 2], text[max(0, span[0] - 1) : span[0] + 1], found)
    slip = next((USUAL_SLIPS[word] for word in around if word in USUAL_SLIPS), None)
    if found in ('"', "'"):
        return _WordError(span, "the quote is not closed; end the text with the same mark")
    what = f"{found!r} is not understood here" if found else "it ends too early"
    if slip is None:
        words = list(dict.fromkeys(IN_WORDS[name] for name in sorted(allowed) if name in IN_WORDS))
        slip = f"expected {', '.join(words)}" if words else "see docs/rules.md for the language"
    return _WordError(span, f"{what}; {slip}")


@lru_cache(maxsize=1)
def _parser() -> Any:
    from lark import Lark

    return Lark(GRAMMAR, parser="lalr", lexer="contextual", propagate_positions=True)


def _build(tree: Any, depth: int = 0) -> Any:
    """Convert a tree of lark to a node."""
    if not hasattr(tree, "children"):
        return tree  # a token
    span = (tree.meta.start_pos, tree.meta.end_pos)
    if depth > DEEPEST:
        raise _WordError(span, f"parts are nested more than {DEEPEST} deep; split it into rules, which all must hold")
    parts = [_build(child, depth + 1) for child in tree.children if child is not None]
    return _BUILDERS[tree.data](parts, span)


def _negative(parts: Sequence[Any], span: Span) -> Node:
    value = parts[-1]
    if isinstance(value, Constant) and not isinstance(value.value, bool | str):
        return Constant(-value.value, span)
    return Sum(((-1, value),), span)


def _sum(parts: Sequence[Any], span: Span) -> Node:
    signs = [1, *(-1 if sign == "-" else 1 for sign in parts[1::2])]
    return Sum(tuple(zip(signs, parts[::2], strict=True)), span)


def _number(parts: Sequence[Any], span: Span) -> Constant:
    return Constant(_as_number(parts[0], span), span)


def _as_number(text: str, span: Span) -> int | float:
    value = int(text) if text.isdigit() else float(text)
    if isinstance(value, int) and value > 2**63 - 1:
        raise _WordError(span, "a whole number is at most 9223372036854775807; write it with a point")
    if not math.isfinite(value):
        raise _WordError(span, "this number is too large")
    return value


def _as_text(token: str, span: Span) -> str:
    letters = iter(token[1:-1])
    text = "".join(next(letters) if letter == "\\" else letter for letter in letters)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _WordError(span, "the text holds half of a character; write it again") from None
    return text


def _reference(parts: Sequence[Any], span: Span) -> Reference:
    side, name = parts
    plain = name.type == "WORD"
    if not plain and len(name) == 2:
        raise _WordError(span, "a column has a name")
    return Reference(str(side), str(name) if plain else _as_text(name, span), span)


def _call(parts: Sequence[Any], span: Span) -> Node:
    word, arguments = parts[0], parts[1:]
    if word == "date":
        return _moment(arguments, span)
    if word in ("days", "hours"):
        return _duration(str(word), arguments, span)
    hint = REWRITES.get(str(word).lower())
    if hint is None:
        near_miss = suggest_name(word, FUNCTIONS, "known are")
        hint = near_miss if near_miss.startswith("did") else f"{near_miss}; make a column of it in the source"
    raise _WordError((word.start_pos, word.end_pos), f"there is no function {str(word)!r}; {hint}")


def _read_argument(arguments: Sequence[Any], span: Span) -> tuple[Any, Span]:
    """Return the value of a call's one argument, None if it is no constant, and its span."""
    if len(arguments) != 1:
        return None, span
    (argument,) = arguments
    return (argument.value if isinstance(argument, Constant) else None), argument.span


def _duration(unit: str, arguments: Sequence[Any], span: Span) -> Duration:
    amount, inside = _read_argument(arguments, span)
    if isinstance(amount, bool | str) or amount is None:
        raise _WordError(inside, f"{unit} takes a number, for example {unit}(28)")
    if amount < 0:
        raise _WordError(inside, f"{unit} takes a number of at least 0; subtract it: -{unit}({-amount:g})")
    if amount > MOST_DAYS:
        raise _WordError(inside, f"{unit} takes at most {MOST_DAYS}")
    return Duration(unit, amount, span)


def _moment(arguments: Sequence[Any], span: Span) -> Moment:
    text, inside = _read_argument(arguments, span)
    if not isinstance(text, str):
        raise _WordError(inside, 'date takes a text, for example date("2026-11-25")')
    try:
        parse_time(text)
    except (ValueError, OverflowError):
        raise _WordError(inside, 'it is no date; write it like "2026-11-25" or "2026-11-25T18:30:00Z"') from None
    return Moment(text, span)


# ---- comparisons in a row ----

ORDERS = (("<", "<="), (">", ">="), ("==",), ("!=",))  # the comparisons that may stand in one row


def _compare(parts: Sequence[Any], span: Span) -> Node:
    """Build a comparison. A chain `a <= x <= b` is `a <= x and x <= b`; its operators have one direction."""
    values, operators = parts[::2], parts[1::2]
    pairs = [
        Compare(str(operator), left, right, span)
        for operator, left, right in zip(operators, values, values[1:], strict=False)
    ]
    if len(pairs) == 1:
        return pairs[0]
    first = next(order for order in ORDERS if str(operators[0]) in order)
    for operator, pair in zip(operators, pairs, strict=True):
        here = (operator.start_pos, operator.start_pos + len(operator))
        if str(operator) not in first or operator == "!=":
            way = " and ".join(map(str, pairs))
            raise _WordError(here, f"comparisons in a row go one way, as 1 <= VALUE <= 5 does; else write {way}")
        if not collect_tables(pair):
            raise _WordError(here, "this compares two constants; join two comparisons by and")
    return And(tuple(pairs), span)


def _several(parts: Sequence[Any], span: Span) -> Several:
    if not parts:
        raise _WordError(span, "the list is empty, so nothing is in it; name a value at least")
    return Several(tuple(parts), span)


_BUILDERS: Mapping[str, Any] = {
    "start": lambda parts, _: parts[0],
    "group": lambda parts, _: parts[0],
    "either": lambda parts, span: Or(tuple(parts[::2]), span),
    "both": lambda parts, span: And(tuple(parts[::2]), span),
    "opposite": lambda parts, span: Not(parts[1], span),
    "compare": _compare,
    "member": lambda parts, span: Member(str(parts[1]), parts[0], parts[2], span),
    "outside": lambda parts, span: Not(Member("in", parts[0], parts[3], span), span),
    "is_null": lambda parts, span: IsNull(parts[0], span),
    "is_not_null": lambda parts, span: Not(IsNull(parts[0], span), span),
    "sum": _sum,
    "product": lambda parts, span: Product(parts[0], str(parts[1]), parts[2], span),
    "negative": _negative,
    "number": _number,
    "negative_number": lambda parts, span: Constant(-_as_number(parts[1], span), span),
    "string": lambda parts, span: Constant(_as_text(parts[0], span), span),
    "true": lambda _, span: Constant(True, span),
    "false": lambda _, span: Constant(False, span),
    "reference": _reference,
    "call": _call,
    "several": _several,
}


# ---- one table on each side ----


def _separate_tables(node: Node) -> Node:
    """Return the condition with the item on at most one side of each comparison."""
    if isinstance(node, And):
        return And(tuple(map(_separate_tables, node.parts)), node.span)
    if isinstance(node, Or):
        return Or(tuple(map(_separate_tables, node.parts)), node.span)
    if isinstance(node, Not):
        return Not(_separate_tables(node.part), node.span)
    if isinstance(node, Compare) and (_is_mixed(node.left) or _is_mixed(node.right)):
        return _move_terms(node)
    if isinstance(node, Member | IsNull):
        for part in get_parts(node):
            if _is_mixed(part):
                raise _WordError(
                    part.span, "this value depends on the item and the query; write a condition on one of them"
                )
    return node


def _is_mixed(node: Node) -> bool:
    return len(collect_tables(node)) > 1


def _move_terms(node: Compare) -> Compare:
    """Move the terms of the item to the left, and all others to the right."""
    terms = [*_collect_terms(node.left, 1), *_collect_terms(node.right, -1)]
    for _, term in terms:
        if _is_mixed(term):
            way = "only sums can be taken apart; write the item's value on one side and the query's on the other"
            raise _WordError(term.span, f"this value depends on the item and the query; {way}")
    left = tuple((sign, term) for sign, term in terms if "item" in collect_tables(term))
    right = tuple((-sign, term) for sign, term in terms if "item" not in collect_tables(term))
    return Compare(node.operator, Sum(left, node.left.span), Sum(right, node.right.span), node.span)


def _collect_terms(node: Node, sign: int) -> list[tuple[int, Node]]:
    if isinstance(node, Sum) and _is_mixed(node):
        return [found for own, term in node.terms for found in _collect_terms(term, sign * own)]
    return [(sign, node)]
