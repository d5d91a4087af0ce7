"""What a request knows, as weighted keys: the item in view, the last ones, a session, a phrase, a person.

    viewed    the one key that somebody looks at                         weight 1
    recent    the last keys that they engaged with, newest first         all alike
    session   keys with their age, and how much each engagement counts   halved every half hour
    phrase    the keys engaged with most after a search phrase           as the table `phrases` weighs them
    person    the keys engaged with most by a person                     as the table `people` weighs them

A resolver is a function of what the request knows and of what its table says: it reads no store and no clock. To add
one: a class like those below, and a row in `RESOLVERS`. `weighted_keys` puts several together.
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
    "weighted_keys",
]

Key = str | int
Row = Sequence[tuple[Key, float]]  # of a table: keys with their weights, the heaviest first
ReadRow = Callable[[str, Key], Row]  # (table, key) -> its row; empty where there is none

MOST_KEYS = 32  # of a request: more take longer to look up and have hardly a place each
MOST_RECENT = 10
MOST_WEIGHT = 1e9  # so that no sum of them is infinite
HALF_LIFE_SECONDS = 1800.0  # what somebody did half an hour ago counts half


@dataclass(frozen=True, slots=True)
class WeightedKey:
    """A key to look up, what it counts, and what has led to it: names of resolvers, or "keys"."""

    key: Key
    weight: float
    origins: tuple[str, ...]


class Resolver(Protocol):
    """One kind of thing that a request may know. What it is given and what it makes of it are plain values."""

    @property
    def name(self) -> str:
        """What a context calls it."""
        ...

    @property
    def table(self) -> str | None:
        """The table that it reads; None where the request says it all."""
        ...

    def table_key(self, known: Any) -> Key | None:
        """The key of the row that it needs; None without a table. InputError where `known` is not of its kind."""
        ...

    def keys(self, known: Any, row: Row) -> list[tuple[Key, float]]:
        """Keys with weights above 0, the heaviest first, none twice; an empty list where nothing is known.

        row: what the table holds under `table_key`; empty without a table. InputError as there.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Viewed:
    """The key in view."""

    name: str = "viewed"
    table: str | None = None

    def table_key(self, known: Any) -> Key | None:
        _key(known, self.name)
        return None

    def keys(self, known: Any, row: Row) -> list[tuple[Key, float]]:
        return [(_key(known, self.name), 1.0)]


@dataclass(frozen=True, slots=True)
class _Recent:
    """The last keys, each as good as the other: who knows more about them has a session."""

    name: str = "recent"
    table: str | None = None
    most: int = MOST_RECENT

    def table_key(self, known: Any) -> Key | None:
        _listed(known, self.name)
        return None

    def keys(self, known: Any, row: Row) -> list[tuple[Key, float]]:
        distinct = dict.fromkeys(_key(key, self.name) for key in _listed(known, self.name))
        return [(key, 1.0) for key in list(distinct)[: self.most]]


@dataclass(frozen=True, slots=True)
class _Session:
    """Engagements with their ages: (key, seconds ago) or (key, seconds ago, what it counts). They add up."""

    name: str = "session"
    table: str | None = None
    half_life_seconds: float = HALF_LIFE_SECONDS

    def table_key(self, known: Any) -> Key | None:
        _listed(known, self.name)
        return None

    def keys(self, known: Any, row: Row) -> list[tuple[Key, float]]:
        events = [_event(event) for event in _listed(known, self.name)]
        newest = min((age for _, age, _ in events), default=0.0)  # only ages between them matter, and none underflows
        return _added((key, counts * 2.0 ** ((newest - age) / self.half_life_seconds)) for key, age, counts in events)


@dataclass(frozen=True, slots=True)
class _FromTable:
    """What a table holds for a phrase or a person."""

    name: str
    table: str | None

    def table_key(self, known: Any) -> Key | None:
        return normalize_table_key(str(self.table), _key(known, self.name))

    def keys(self, known: Any, row: Row) -> list[tuple[Key, float]]:
        return _added(row)


RESOLVERS: Mapping[str, Resolver] = {
    resolver.name: resolver
    for resolver in (_Viewed(), _Recent(), _Session(), _FromTable("phrase", PHRASES), _FromTable("person", PEOPLE))
}


def reads_table(context: Mapping[str, Any]) -> bool:
    """Whether a table is needed to know the keys."""
    return any(name in context and resolver.table is not None for name, resolver in RESOLVERS.items())


def weighted_keys(
    keys: Iterable[tuple[Key, float]],
    context: Mapping[str, Any],
    read: ReadRow,
    *,
    most: int = MOST_KEYS,
    same: Callable[[Key], Key] = lambda key: key,
) -> list[WeightedKey]:
    """The keys of a request, the heaviest first, none twice; weights add up to 1.

    keys: given outright, with their weights. context: what the request knows, by the names of resolvers; what is None
    counts as not known. read: how a row of a table is had. same: a key as the generator has it, such as 7 for "7".
    The keys that were given outright and those of each resolver that finds any count alike: each group's weights are
    made to add up to the same. A key that several lead to has the sum. Only the `most` heaviest stay.
    Raises SpecError for a context that no resolver knows, InputError for a key or weight that is none.
    """
    parts = {"keys": _added((_key(key, "keys"), _weight(weight, key)) for key, weight in keys)}
    for name, known in context.items():
        resolver = RESOLVERS.get(name)
        if resolver is None:
            raise SpecError(f"the context names {str(name)[:50]!r}; what can be known is {', '.join(RESOLVERS)}")
        if known is not None:
            wanted = resolver.table_key(known)
            row = read(resolver.table, wanted) if resolver.table is not None and wanted is not None else ()
            parts[name] = resolver.keys(known, row)
    typed = {name: _added((same(key), weight) for key, weight in part) for name, part in parts.items() if part}
    return _together(typed, most)


def _together(parts: Mapping[str, Sequence[tuple[Key, float]]], most: int) -> list[WeightedKey]:
    origins: dict[Key, list[str]] = {}
    shares: list[tuple[Key, float]] = []
    for name, part in parts.items():
        total = math.fsum(weight for _, weight in part)
        for key, weight in part:
            origins.setdefault(key, []).append(name)
            shares.append((key, weight / total / len(parts)))
    heaviest = _added(shares)[:most]
    total = math.fsum(weight for _, weight in heaviest)
    return [WeightedKey(key, weight / total, tuple(origins[key])) for key, weight in heaviest]


def _added(pairs: Iterable[tuple[Key, float]]) -> list[tuple[Key, float]]:
    """Each key once, with the sum of its weights: the heaviest first, equal ones as they came, without those of 0."""
    sums: dict[Key, float] = {}
    for key, weight in pairs:
        sums[key] = sums.get(key, 0.0) + weight
    return sorted(((key, weight) for key, weight in sums.items() if weight > 0), key=lambda pair: -pair[1])


def _key(key: Any, name: str) -> Key:
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise InputError(f"{name} holds {str(key)[:50]!r}: a key is text or a whole number")
    return key


def _weight(weight: Any, key: Key) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= MOST_WEIGHT:
        raise InputError(f"the weight of key {str(key)[:50]!r} is {weight!r}: give a number above 0, up to 1e9")
    return float(weight)


def _listed(known: Any, name: str) -> Sequence[Any]:
    if isinstance(known, str | bytes | Mapping) or not isinstance(known, Sequence):
        raise InputError(f"{name} is {str(known)[:50]!r}: give a list")
    return known


def _event(event: Any) -> tuple[Key, float, float]:
    parts = _listed(event, "session")
    if len(parts) not in (2, 3):
        raise InputError(f"session holds {str(event)[:50]!r}: write (key, seconds ago) or (key, seconds ago, weight)")
    key, age = _key(parts[0], "session"), parts[1]
    if isinstance(age, bool) or not isinstance(age, int | float) or not 0 <= age < math.inf:
        raise InputError(f"session holds {str(age)[:50]!r} as an age: give seconds, 0 or more")
    return key, float(age), _weight(parts[2], key) if len(parts) == 3 else 1.0
