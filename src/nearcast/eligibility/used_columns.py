"""What rules speak of: which columns they need, and whether they can be told before the request is known."""

from __future__ import annotations

from collections.abc import Sequence

from nearcast.eligibility.nodes import references_of
from nearcast.eligibility.parse import Rule

__all__ = ["columns_of", "item_only", "request_time"]


def columns_of(rules: Sequence[Rule]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The columns of the items, those of the queries, and the fields of requests that rules name; ids are not told.

    Each name once, in the order of the rules.
    """
    named: dict[str, dict[str, None]] = {"item": {}, "query": {}, "request": {}}
    for rule in rules:
        for reference in references_of(rule.tree):
            if (reference.side, reference.name) not in (("item", "id"), ("query", "id")):
                named[reference.side][reference.name] = None
    return tuple(named["item"]), tuple(named["query"]), tuple(named["request"])


def item_only(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules that the item alone decides: an engine without rules may leave such items out of its index."""
    return tuple(rule for rule in rules if all(reference.side == "item" for reference in references_of(rule.tree)))


def request_time(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules that ask for a field of the request: they do not bind at the join."""
    return tuple(rule for rule in rules if any(reference.side == "request" for reference in references_of(rule.tree)))
