"""Rules as a store keeps them, applied to one list: which candidates of a key may be shown to this request.

What comes from outside is checked against the types that were published: a field of the request that nobody asks for is
an error with the way out. A field that is not brought is null. Knows nothing of stores.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from nearcast.eligibility.closures import Bound, Context, Item, binder
from nearcast.eligibility.nodes import Rule
from nearcast.eligibility.pair_reference import Nanos, plain
from nearcast.eligibility.parse import parse_rule
from nearcast.eligibility.rule_types import Kind, Type
from nearcast.eligibility.validate import check_rules
from nearcast.errors import InputError
from nearcast.suggest import suggest_name
from nearcast.times import parse_duration, parse_time

__all__ = ["RuleSet", "facts_of_rules"]

MOST_VALUES = 10_000  # of a list that a request brings
EXAMPLES = {
    Kind.INTEGER: "3",
    Kind.NUMBER: "9.5",
    Kind.TEXT: '"NL"',
    Kind.BOOLEAN: "true",
    Kind.TIME: '"2026-11-25" or "2026-11-25T18:30:00Z"',
    Kind.DURATION: "3600, in seconds",
}


def facts_of_rules(rules: Sequence[Rule], item_schema: pa.Schema, query_schema: pa.Schema) -> dict[str, Any]:
    """Rules and the types of all that they name, as plain data for a store; both schemas have an "id".

    Raises SpecError for what `check_rules` refuses.
    """
    schemas = check_rules(rules, item_schema, query_schema)
    sides = {"items": schemas.items, "queries": schemas.queries, "request": schemas.request}
    types = {
        side: {name: kind.as_plain() for name, kind in sorted(found.items()) if name != "id" or side == "request"}
        for side, found in sides.items()
    }
    return {"rules": [{"name": rule.name, "keep": rule.text} for rule in rules], **types}


@dataclass(frozen=True, slots=True, eq=False)
class RuleSet:
    """Rules of a published version, made ready by `prepare`."""

    names: tuple[str, ...]
    item_types: Mapping[str, Type]
    query_types: Mapping[str, Type]
    request_types: Mapping[str, Type]  # all that a request may bring
    _columns: tuple[str, ...]
    _binders: tuple[Callable[[Context], Bound], ...]

    @classmethod
    def prepare(cls, facts: Mapping[str, Any]) -> RuleSet:
        """The rules that facts tell of (see `facts_of_rules`)."""
        rules = [parse_rule(entry["name"], entry["keep"]) for entry in facts["rules"]]
        items, queries, request = (
            {name: Type.from_plain(word) for name, word in facts[side].items()}
            for side in ("items", "queries", "request")
        )
        columns = tuple(items)
        slots = {"id": 0} | {name: place + 1 for place, name in enumerate(columns)}
        binders = tuple(binder(rule.core, slots) for rule in rules)
        return cls(tuple(rule.name for rule in rules), items, queries, {**queries, **request}, columns, binders)

    def item(self, identity: Any, row: Mapping[str, Any]) -> Item:
        """An item as tests take it. row: its columns as a store has them; what is missing or misfits is null."""
        return (identity, *[stored_value(row.get(name), self.item_types[name]) for name in self._columns])

    def updated(self, item: Item, values: Mapping[str, Any]) -> Item:
        """The item with newer values of some columns, as a store has them."""
        found = list(item)
        for place, name in enumerate(self._columns):
            if name in values:
                found[place + 1] = stored_value(values[name], self.item_types[name])
        return tuple(found)

    def context(self, key: Any, row: Mapping[str, Any], request: Mapping[str, Any] | None) -> Context:
        """A query and a request as rules see them: what the request brings stands in for the query's own.

        row: the query's columns as a store has them. Raises InputError for a field of the request that no rule knows,
        or a value of another type.
        """
        brought = self._brought(request) if request else {}
        query: dict[str, Any] = {name: stored_value(row.get(name), kind) for name, kind in self.query_types.items()}
        if brought:
            query.update((name, value) for name, value in brought.items() if name in self.query_types)
        query["id"] = key
        return {"query": query, "request": brought}

    def sift(self, context: Context, items: Sequence[Item]) -> tuple[list[int], dict[str, int]]:
        """The places of the items that all rules keep, and how many each rule has barred that none before it had."""
        left, barred = list(range(len(items))), {}
        for name, bind in zip(self.names, self._binders, strict=True):
            test = bind(context)
            if test is True or not left:
                continue
            kept = [] if isinstance(test, bool) else [place for place in left if test(items[place])]
            if len(kept) < len(left):
                barred[name] = len(left) - len(kept)
                left = kept
        return left, barred

    def _brought(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in request.items():
            kind = self.request_types.get(name)
            if kind is None:
                hint = suggest_name(str(name), self.request_types, "they ask for")
                raise InputError(f"no rule asks for {str(name)[:50]!r} of a request; {hint}")
            found[name] = read_request_value(name, value, kind)
        return found


def read_request_value(name: str, value: Any, kind: Type) -> Any:
    """What a request brings, as rules see it; InputError where it is of another type."""
    if value is None:
        return None
    if not kind.many:
        return _checked(name, value, kind)
    if not isinstance(value, list | tuple | set | frozenset):
        raise _wrong(name, kind)
    if len(value) > MOST_VALUES:
        raise InputError(f"the request's {name!r} holds {len(value):,} values, and may hold {MOST_VALUES:,}")
    one = Type(kind.kind)
    checked = (_checked(name, entry, one) for entry in value if entry is not None)
    return frozenset(entry for entry in checked if entry is not None)


def _checked(name: str, value: Any, kind: Type) -> Any:
    if not _fits(value, kind.kind):
        raise _wrong(name, kind)
    found = _read(value, kind.kind)
    if found is None and not isinstance(value, float):  # not a number is null; a text that is no time is a mistake
        raise _wrong(name, kind)
    return found


def _wrong(name: str, kind: Type) -> InputError:
    example = f"[{EXAMPLES[kind.kind]}]" if kind.many else EXAMPLES[kind.kind]
    return InputError(f"the request's {name!r} is to be {kind}, such as {example}, or null")


def stored_value(value: Any, kind: Type) -> Any:
    """A column as a store has it (JSON), as rules see it. What is of another type is null, and breaks nothing."""
    if kind.many:
        if not isinstance(value, list):
            return None
        read = (_read(entry, kind.kind) for entry in value if _fits(entry, kind.kind))
        return frozenset(entry for entry in read if entry is not None)
    return _read(value, kind.kind) if _fits(value, kind.kind) else None


def _fits(value: Any, kind: Kind) -> bool:
    if isinstance(value, bool):
        return kind == Kind.BOOLEAN
    if kind == Kind.INTEGER:
        return isinstance(value, int)
    if kind == Kind.NUMBER:
        return isinstance(value, int | float)
    if kind == Kind.TEXT:
        return isinstance(value, str)
    if kind == Kind.TIME:
        return isinstance(value, str | datetime.date)
    return kind == Kind.DURATION and isinstance(value, int | float | str | datetime.timedelta)


def _read(value: Any, kind: Kind) -> Any:
    """A value of the right type as rules see it; None for what is no number and no time."""
    if kind == Kind.TIME and isinstance(value, str):
        try:
            return Nanos(parse_time(value))
        except (ValueError, OverflowError):
            return None
    if kind == Kind.DURATION and not isinstance(value, datetime.timedelta):
        return _duration(value)
    return plain(value)


def _duration(value: float | str) -> Nanos | None:
    if isinstance(value, str):
        found = parse_duration(value)
        return None if found is None else Nanos(found)
    return Nanos(round(value * 1_000_000_000)) if math.isfinite(value) else None
