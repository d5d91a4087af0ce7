"""The rules of a published version, applied at look-up: which candidates of a key are eligible for a request.

A request is checked against the published types: an unknown field is an error with the nearest field, and a missing
field is null. Knows nothing of stores.
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

__all__ = ["RuleSet", "serialize_rules"]

MOST_VALUES = 10_000  # of a list of a request
EXAMPLES = {
    Kind.INTEGER: "3",
    Kind.NUMBER: "9.5",
    Kind.TEXT: '"NL"',
    Kind.BOOLEAN: "true",
    Kind.TIME: '"2026-11-25" or "2026-11-25T18:30:00Z"',
    Kind.DURATION: "3600, in seconds",
}


def serialize_rules(rules: Sequence[Rule], item_schema: pa.Schema, query_schema: pa.Schema) -> dict[str, Any]:
    """Return rules and the types of the columns and fields that they name, as plain data for a store.

    Both schemas have an "id". Raises SpecError for wrong rules (see `check_rules`).
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
    """The compiled rules of a published version; see `prepare`."""

    names: tuple[str, ...]
    item_types: Mapping[str, Type]
    query_types: Mapping[str, Type]
    request_types: Mapping[str, Type]  # of all fields that a request may have
    _columns: tuple[str, ...]
    _binders: tuple[Callable[[Context], Bound], ...]

    @classmethod
    def prepare(cls, facts: Mapping[str, Any]) -> RuleSet:
        """Compile the rules of the facts of a version (see `serialize_rules`)."""
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
        """Return an item as a tuple. row: its columns in the store; a missing or mistyped value is null."""
        return (identity, *[stored_value(row.get(name), self.item_types[name]) for name in self._columns])

    def update_values(self, item: Item, values: Mapping[str, Any]) -> Item:
        """Return the item with newer values of some columns."""
        found = list(item)
        for place, name in enumerate(self._columns):
            if name in values:
                found[place + 1] = stored_value(values[name], self.item_types[name])
        return tuple(found)

    def context(self, key: Any, row: Mapping[str, Any], request: Mapping[str, Any] | None) -> Context:
        """Return a query and a request as rules read them; a field of the request replaces the query's column.

        row: the query's columns in the store. Raises InputError for a field that no rule names, or a value of another
        type.
        """
        fields = self._read_request(request) if request else {}
        query: dict[str, Any] = {name: stored_value(row.get(name), kind) for name, kind in self.query_types.items()}
        if fields:
            query.update((name, value) for name, value in fields.items() if name in self.query_types)
        query["id"] = key
        return {"query": query, "request": fields}

    def filter_items(self, context: Context, items: Sequence[Item]) -> tuple[list[int], dict[str, int]]:
        """Return the indices of the eligible items, and how many each rule filters out; the first rule counts."""
        left, filtered = list(range(len(items))), {}
        for name, bind in zip(self.names, self._binders, strict=True):
            test = bind(context)
            if test is True or not left:
                continue
            kept = [] if isinstance(test, bool) else [place for place in left if test(items[place])]
            if len(kept) < len(left):
                filtered[name] = len(left) - len(kept)
                left = kept
        return left, filtered

    def _read_request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in request.items():
            kind = self.request_types.get(name)
            if kind is None:
                hint = suggest_name(str(name), self.request_types, "they ask for")
                raise InputError(f"no rule asks for {str(name)[:50]!r} of a request; {hint}")
            found[name] = read_request_value(name, value, kind)
        return found


def read_request_value(name: str, value: Any, kind: Type) -> Any:
    """Return a field of a request as rules read it. Raises InputError for another type."""
    if value is None:
        return None
    if not kind.many:
        return _convert_field(name, value, kind)
    if not isinstance(value, list | tuple | set | frozenset):
        raise _type_error(name, kind)
    if len(value) > MOST_VALUES:
        raise InputError(f"the request's {name!r} holds {len(value):,} values, and may hold {MOST_VALUES:,}")
    one = Type(kind.kind)
    checked = (_convert_field(name, entry, one) for entry in value if entry is not None)
    return frozenset(entry for entry in checked if entry is not None)


def _convert_field(name: str, value: Any, kind: Type) -> Any:
    if not _fits(value, kind.kind):
        raise _type_error(name, kind)
    found = _read(value, kind.kind)
    if found is None and not isinstance(value, float):  # NaN is null; a text that is no time is an error
        raise _type_error(name, kind)
    return found


def _type_error(name: str, kind: Type) -> InputError:
    example = f"[{EXAMPLES[kind.kind]}]" if kind.many else EXAMPLES[kind.kind]
    return InputError(f"the request's {name!r} is to be {kind}, such as {example}, or null")


def stored_value(value: Any, kind: Type) -> Any:
    """Return a stored value (JSON) as rules read it; a value of another type is null."""
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
    """Convert a value of the right type; None for NaN and for text that is no time."""
    if kind == Kind.TIME and isinstance(value, str):
        try:
            return Nanos(parse_time(value))
        except (ValueError, OverflowError):
            return None
    if kind == Kind.DURATION and not isinstance(value, datetime.timedelta):
        return _parse_duration(value)
    return plain(value)


def _parse_duration(value: float | str) -> Nanos | None:
    if isinstance(value, str):
        found = parse_duration(value)
        return None if found is None else Nanos(found)
    return Nanos(round(value * 1_000_000_000)) if math.isfinite(value) else None
