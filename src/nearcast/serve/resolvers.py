"""Resolvers turn facts of a request into weighted keys: the item in view, recent items, a session, a phrase, a person.

    viewed    the key in view                                    weight 1
    recent    the most recent keys, newest first                 equal weights
    session   keys with the age and the weight of each event     the weight halves every half hour
    phrase    the most engaged keys after a search phrase        weights of the table `phrases`
    person    the most engaged keys of a person                  weights of the table `people`

A resolver is a function of the fact and of a row of its weight table. It reads no store and no clock. To add one, write
a class and add a row to `RESOLVERS`. `resolve_keys` combines all keys of a request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nearcast.errors import InputError, SpecError
from nearcast.stores.names import PEOPLE, PHRASES, normalize_table_key

__all__ = [
    "MOST_KEYS",
    "MOST_WEIGHT",
    "RESOLVERS",
    "Key",
    "ReadRow",
    "Resolver",
    "Row",
    "WeightedKey",
    "reads_table",
    "resolve_keys",
]

Key = str | int
Row = Sequence[tuple[Key, float]]  # row of a weight table: keys with weights, the largest first
ReadRow = Callable[[str, Key], Row]  # (table, key) -> row; empty for a missing key

MOST_KEYS = 32  # per request; with more keys, each has hardly a place in the list
MOST_RECENT = 10
MOST_WEIGHT = 1e9  # so that no sum is infinite
HALF_LIFE_SECONDS = 1800.0  # an event of half an hour ago has half the weight


@dataclass(frozen=True, slots=True)
class WeightedKey:
    """A key to look up, its weight, and its origins: names of resolvers, or "keys"."""

    key: Key
    weight: float
    origins: tuple[str, ...]


class Resolver(Protocol):
    """A kind of fact that a request may bring. Its inputs and outputs are plain values."""

    @property
    def name(self) -> str:
        """Its name in a context."""
        ...

    @property
    def table(self) -> str | None:
        """The weight table that it reads; None if it reads none."""
        ...

    def table_key(self, known: Any) -> Key | None:
        """Return the key of the row that it needs; None without a table. Raises InputError for an invalid fact."""
        ...

    def keys(self, known: Any, row: Row) -> list[tuple[Key, float]]:
        """Return distinct keys with weights above 0, the largest first. Raises InputError for an invalid fact.

        row: the row of `table_key` in the table; empty without a table.
        """
        ...


@dataclass(frozen=True, slots=True)
class _ViewedResolver:
    """The key in view."""

    name: str = "viewed"
    table: str | None = None

    def table_key(self, known: Any) -> Key | None:
        _validate_key(known, self.name)
        return None

    def keys(self, known: Any, row: Row) -> list[tuple[Key, float]]:
        return [(_validate_key(known, self.name), 1.0)]


@dataclass(frozen=True, slots=True)
class _RecentResolver:
    """The most recent keys, with equal weights."""

    name: str = "recent"
    table: str | None = None
    most: int = MOST_RECENT

    def table_key(self, known: Any) -> Key | None:
        _validate_list(known, self.name)
        return None

    def keys(self, known: Any, row: Row) -> list[tuple[Key, float]]:
        distinct = dict.fromkeys(_validate_key(key, self.name) for key in _validate_list(known, self.name))
        return [(key, 1.0) for key in list(distinct)[: self.most]]


@dataclass(frozen=True, slots=True)
class _SessionResolver:
    """Events: (key, seconds ago) or (key, seconds ago, weight). The weights of a key add up."""

    name: str = "session"
    table: str | None = None
    half_life_seconds: float = HALF_LIFE_SECONDS

    def table_key(self, known: Any) -> Key | None:
        _validate_list(known, self.name)
        return None

    def keys(self, known: Any, row: Row) -> list[tuple[Key, float]]:
        events = [_parse_event(event) for event in _validate_list(known, self.name)]
        newest = min(
            (age for _, age, _ in events), default=0.0
        )  # weights are relative, so the newest event has weight 1 and none underflows
        return _sum_weights(
            (key, counts * 2.0 ** ((newest - age) / self.half_life_seconds)) for key, age, counts in events
        )


@dataclass(frozen=True, slots=True)
class _TableResolver:
    """The row of a phrase or a person in a weight table."""

    name: str
    table: str | None

    def table_key(self, known: Any) -> Key | None:
        return normalize_table_key(str(self.table), _validate_key(known, self.name))

    def keys(self, known: Any, row: Row) -> list[tuple[Key, float]]:
        return _sum_weights(row)


RESOLVERS: Mapping[str, Resolver] = {
    resolver.name: resolver
    for resolver in (
        _ViewedResolver(),
        _RecentResolver(),
        _SessionResolver(),
        _TableResolver("phrase", PHRASES),
        _TableResolver("person", PEOPLE),
    )
}


def reads_table(context: Mapping[str, Any]) -> bool:
    """Return whether the context needs a weight table."""
    return any(name in context and resolver.table is not None for name, resolver in RESOLVERS.items())


def resolve_keys(
    keys: Iterable[tuple[Key, float]],
    context: Mapping[str, Any],
    read: ReadRow,
    *,
    most: int = MOST_KEYS,
    normalize: Callable[[Key], Key] = lambda key: key,
) -> list[WeightedKey]:
    """Return the distinct keys of a request, the largest weight first; the weights add up to 1.

    keys: given directly, with their weights. context: facts of the request by resolver name; None means unknown.
    read: returns a row of a weight table. normalize: converts a key to the generator's type, for example "7" to 7.
    The direct keys, and the keys of each resolver that finds any, are groups of the same total weight. A key in several
    groups has the sum of its weights. Only the `most` keys with the largest weights stay.
    Raises SpecError for a context that no resolver has, InputError for an invalid key or weight.
    """
    parts = {"keys": _sum_weights((_validate_key(key, "keys"), _validate_weight(weight, key)) for key, weight in keys)}
    for name, known in context.items():
        resolver = RESOLVERS.get(name)
        if resolver is None:
            raise SpecError(f"the context names {str(name)[:50]!r}; known resolvers are {', '.join(RESOLVERS)}")
        if known is not None:
            row_key = resolver.table_key(known)
            row = read(resolver.table, row_key) if resolver.table is not None and row_key is not None else ()
            parts[name] = resolver.keys(known, row)
    groups = {
        name: _sum_weights((normalize(key), weight) for key, weight in part) for name, part in parts.items() if part
    }
    return _combine_groups(groups, most)


def _combine_groups(groups: Mapping[str, Sequence[tuple[Key, float]]], most: int) -> list[WeightedKey]:
    origins: dict[Key, list[str]] = {}
    shares: list[tuple[Key, float]] = []
    for name, group in groups.items():
        total = math.fsum(weight for _, weight in group)
        for key, weight in group:
            origins.setdefault(key, []).append(name)
            shares.append((key, weight / total / len(groups)))
    largest = _sum_weights(shares)[:most]
    total = math.fsum(weight for _, weight in largest)
    return [WeightedKey(key, weight / total, tuple(origins[key])) for key, weight in largest]


def _sum_weights(pairs: Iterable[tuple[Key, float]]) -> list[tuple[Key, float]]:
    """Return each key once with the sum of its weights if above 0, the largest first. Equal sums keep their order."""
    sums: dict[Key, float] = {}
    for key, weight in pairs:
        sums[key] = sums.get(key, 0.0) + weight
    return sorted(((key, weight) for key, weight in sums.items() if weight > 0), key=lambda pair: -pair[1])


def _validate_key(key: Any, name: str) -> Key:
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise InputError(f"{name} holds {str(key)[:50]!r}: a key is text or a whole number")
    return key


def _validate_weight(weight: Any, key: Key) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= MOST_WEIGHT:
        raise InputError(f"the weight of key {str(key)[:50]!r} is {weight!r}: give a number above 0, up to 1e9")
    return float(weight)


def _validate_list(known: Any, name: str) -> Sequence[Any]:
    if isinstance(known, str | bytes | Mapping) or not isinstance(known, Sequence):
        raise InputError(f"{name} is {str(known)[:50]!r}: give a list")
    return known


def _parse_event(event: Any) -> tuple[Key, float, float]:
    parts = _validate_list(event, "session")
    if len(parts) not in (2, 3):
        raise InputError(f"session holds {str(event)[:50]!r}: write (key, seconds ago) or (key, seconds ago, weight)")
    key, age = _validate_key(parts[0], "session"), parts[1]
    if isinstance(age, bool) or not isinstance(age, int | float) or not 0 <= age < math.inf:
        raise InputError(f"session holds {str(age)[:50]!r} as an age: give seconds, 0 or more")
    return key, float(age), _validate_weight(parts[2], key) if len(parts) == 3 else 1.0
