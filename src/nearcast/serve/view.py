"""Answering from one version of a table and the overlay as it was at one moment: nothing here ever changes.

Everything that a call needs is in its `View`, so no answer can mix two versions. Knows nothing of how the current
version is found.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.eligibility.closures import Context
from nearcast.eligibility.ruleset import RuleSet
from nearcast.errors import DamagedError, InputError, NotFoundError, SpecError
from nearcast.serve.filter_lists import cut
from nearcast.serve.item_columns import Attributes, columns_in_value
from nearcast.serve.lookup_answers import NOWHERE, TABLE, Answer, Answers
from nearcast.serve.lookup_keys import Keys, typed_key, wanted_keys
from nearcast.serve.overlay_state import OverlayState
from nearcast.stores.base import Pointer, Reader, Space, Store
from nearcast.stores.value_format import IdType, Lists, decode_list, decode_lists, encode_key
from nearcast.stores.version_facts import VersionFacts, read_facts
from nearcast.types import IntArray, as_score

__all__ = ["StoredLists", "Version", "View", "open_version"]

Request = Mapping[str, Any] | None  # what a request brings, by name


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Version:
    """A version of a table, open. It is closed when nobody uses it any more."""

    reader: Reader
    facts: VersionFacts
    number: int
    snapshot: str  # such as 000007
    created: float  # seconds since 1970
    query_ids: IdType
    item_ids: IdType
    attributes: Attributes | None  # what its rules need; None without rules


def open_version(store: Store, generator: str, number: int, *, verify: bool) -> Version:
    """Open a version and read what it says of itself. DamagedError where it is not what it should be."""
    reader = store.open(generator, number, verify=verify)
    try:
        version = _version(reader, generator, number)
    except BaseException:
        reader.close()
        raise
    weakref.finalize(version, reader.close).atexit = False  # those who are at it may finish
    return version


def _version(reader: Reader, generator: str, number: int) -> Version:
    facts = read_facts(reader, generator, number)
    try:
        attributes = _attributes(reader, facts)
    except (KeyError, ValueError, TypeError, SpecError) as error:
        raise DamagedError(f"the rules of {generator} {number} in the store cannot be used ({error!r})") from error
    ids = facts.query_ids, facts.item_ids
    return Version(reader, facts, number, facts.snapshot, facts.created_seconds, *ids, attributes)


def _attributes(reader: Reader, facts: VersionFacts) -> Attributes | None:
    if not facts.rules:
        return None
    rules = RuleSet.prepare(facts.rules)
    return Attributes(reader, rules, own_query_columns=bool(facts.rules["own_query_columns"]))


@dataclass(frozen=True, slots=True, eq=False)
class StoredLists:
    """Lists as a version holds them, before any rule: list i is ids[offsets[i]:offsets[i + 1]], best first."""

    keys: Sequence[str | int | None] | IntArray  # (n,)
    found: npt.NDArray[np.bool_]  # (n,)
    offsets: IntArray  # (n + 1,)
    ids: pa.Array
    removed: IntArray  # ascending places in `ids` of the candidates that the overlay removes


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A version and an overlay, to be asked. Holding it holds the version open, whatever is published meanwhile."""

    version: Version
    overlay: OverlayState
    pointer: Pointer  # that led here

    @property
    def snapshot(self) -> str:
        """The snapshot that every answer is from, such as 000007."""
        return self.version.snapshot

    @property
    def age_seconds(self) -> float:
        """Since the snapshot was made; 0 where the clock says that this is yet to come."""
        return max(0.0, time.time() - self.version.created)

    def get(
        self,
        key: str | int,
        *,
        k: int | None = None,
        min_score: float | None = None,
        fields: Sequence[str] = (),
        request: Request = None,
    ) -> Answer:
        """The candidates of one key; see `Lookup.get`."""
        version, now = self.version, time.time()
        typed = typed_key(key, version.query_ids)
        value = None if typed is None else version.reader.get_many(Space.LISTS, [encode_key(typed)])[0]
        if typed is None or value is None:
            if request:
                self.context(typed, request)  # a request that makes no sense is told so on a miss too
            key = key if typed is None else typed
            none: Mapping[str, Sequence[Any]] = {name: [] for name in self._known(fields)} if fields else {}
            return Answer(key, False, [], [], None, 0, none, NOWHERE, None, version.snapshot, self.age_seconds)
        ids, scores, reason = decode_list(value)
        removed, stored = 0, len(ids)
        barred: Mapping[str, int] = {}
        if self.overlay.removes_any(ids):
            kept = [place for place, gone in enumerate(self.overlay.removed(ids, now)) if not gone]
            removed = len(ids) - len(kept)
            ids, scores = [ids[place] for place in kept], [scores[place] for place in kept]
        if version.attributes is not None or request:
            left, barred = self.sift(typed, ids, request, now)
            if barred:
                ids, scores = [ids[place] for place in left], [scores[place] for place in left]
        if min_score is not None:
            bound = float(as_score(min_score))  # scores are float32: 0.7 is to be at least 0.7
            n = sum(score >= bound for score in scores)
            ids, scores = ids[:n], scores[:n]
        if k is not None:
            ids, scores = ids[: _checked(k)], scores[:k]
        columns = self._columns(ids, fields) if fields else {}
        age = max(0.0, now - version.created)
        told = (removed, columns, TABLE, typed, version.snapshot, age, stored, barred)
        return Answer(typed, True, ids, scores, reason, *told)

    def context(self, key: str | int | None, request: Request) -> Context:
        """A query and a request as the rules see them; InputError for a request that does not go with the rules."""
        attributes = self.version.attributes
        if attributes is None:
            if not request:
                return {}
            raise InputError(f"{self.version.facts.generator} {self.snapshot} has no rules that ask for a request")
        return attributes.rules.context(key, attributes.query(key), request)

    def sift(
        self, key: str | int | None, ids: Sequence[Any], request: Request, now: float
    ) -> tuple[Sequence[int], dict[str, int]]:
        """The places of the items that the rules let this key and request have, and how many each rule has barred."""
        context, attributes = self.context(key, request), self.version.attributes
        if attributes is None:
            return range(len(ids)), {}
        return attributes.rules.sift(context, attributes.items(ids, self.overlay, now))

    def get_many(
        self, keys: Keys, *, k: int | None = None, min_score: float | None = None, request: Request = None
    ) -> Answers:
        """The candidates of many keys as arrays; see `Lookup.get_many`."""
        version, now = self.version, time.time()
        typed, encoded, places = wanted_keys(keys, version.query_ids)
        values = version.reader.get_many(Space.LISTS, encoded)
        if places is not None:
            values = _spread(values, places, len(typed))
        lists = decode_lists(values, version.item_ids)
        gone = self.overlay.places_removed(lists.ids, now)
        barred: dict[str, IntArray] = {}
        out = gone
        if version.attributes is not None or request:
            out, barred = self._barred(typed, lists, gone, request, now)
        offsets, ids, scores, removed = cut(lists, out, None if k is None else _checked(k), min_score)
        removed = removed - sum(barred.values(), np.zeros_like(removed))
        age = max(0.0, now - version.created)
        told = (removed, version.snapshot, age, np.diff(lists.offsets), barred)
        return Answers(typed, lists.found, offsets, ids, scores, lists.reasons, *told)

    def stored(self, keys: Keys, now: float) -> StoredLists:
        """Return the lists of many keys as they are stored, and which candidates the overlay removes at `now`."""
        typed, encoded, places = wanted_keys(keys, self.version.query_ids)
        values = self.version.reader.get_many(Space.LISTS, encoded)
        if places is not None:
            values = _spread(values, places, len(typed))
        lists = decode_lists(values, self.version.item_ids)
        removed = self.overlay.places_removed(lists.ids, now)
        none = np.empty(0, np.int64)
        return StoredLists(typed, lists.found, lists.offsets, lists.ids, none if removed is None else removed)

    def _barred(
        self, keys: Sequence[Any] | IntArray, lists: Lists, gone: IntArray | None, request: Request, now: float
    ) -> tuple[IntArray | None, dict[str, IntArray]]:
        """The places of all that is out, by the overlay or by a rule, and how many of each list a rule has barred."""
        self.context(None, request)
        keep = np.ones(len(lists.scores), np.bool_)
        if gone is not None:
            keep[gone] = False
        ids, counts = lists.ids.to_pylist(), dict[str, IntArray]()
        for row in np.flatnonzero(np.diff(lists.offsets)).tolist():
            start, end = int(lists.offsets[row]), int(lists.offsets[row + 1])
            places = start + np.flatnonzero(keep[start:end])
            key = keys[row].item() if isinstance(keys, np.ndarray) else keys[row]
            kept, barred = self.sift(key, [ids[place] for place in places], request, now)
            if barred:
                keep[start:end] = False
                keep[places[kept]] = True
            for rule, count in barred.items():
                counts.setdefault(rule, np.zeros(len(lists.found), np.int64))[row] = count
        return (np.flatnonzero(~keep) if not keep.all() else None), counts

    def items(self, ids: Sequence[str | int], fields: Sequence[str]) -> list[dict[str, Any]]:
        """These columns of these items, a dictionary per id; None where the snapshot and the overlay have no value."""
        now, names = time.time(), self._known(fields)
        typed = [typed_key(item, self.version.item_ids) for item in ids]
        distinct = list(dict.fromkeys(item for item in typed if item is not None))
        values = self.version.reader.get_many(Space.ITEMS, [encode_key(item) for item in distinct])
        stored = {
            item: columns_in_value(value) for item, value in zip(distinct, values, strict=True) if value is not None
        }
        updates = self.overlay
        rows = []
        for item in typed:
            row = {} if item is None else stored.get(item, {})
            if item is not None and updates.values:
                row = row | updates.values_of(item, now)
            rows.append({name: row.get(name) for name in names})
        return rows

    def removed(self, ids: Sequence[str | int]) -> list[bool]:
        """Whether the overlay has taken out these items, an answer per id."""
        return self.overlay.removed([typed_key(item, self.version.item_ids) for item in ids], time.time())

    def _known(self, fields: Sequence[str]) -> Sequence[str]:
        columns = self.version.facts.columns
        for name in fields:
            if name not in columns and name not in self.overlay.fields:
                held = ", ".join(sorted({*columns, *self.overlay.fields})) or "none"
                what = f"{self.version.facts.generator} {self.snapshot}"
                raise NotFoundError(f"{what} holds no item column {name!r}; it holds {held}")
        return fields

    def _columns(self, ids: Sequence[Any], fields: Sequence[str]) -> dict[str, list[Any]]:
        rows = self.items(ids, fields)
        return {name: [row[name] for row in rows] for name in fields}


def _checked(k: int) -> int:
    if k < 1:
        raise InputError(f"k is {k}; ask for one candidate at least")
    return k


def _spread(values: list[bytes | None], places: IntArray, n: int) -> list[bytes | None]:
    spread: list[bytes | None] = [None] * n
    for place, value in zip(places.tolist(), values, strict=True):
        spread[place] = value
    return spread
