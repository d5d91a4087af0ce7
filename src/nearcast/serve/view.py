"""Answering from one version of a table and the overlay as it was at one moment: nothing here ever changes.

Everything that a call needs is in its `View`, so no answer can mix two versions. Knows nothing of how the current
version is found.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from nearcast.errors import DamagedError, InputError, NotFoundError
from nearcast.serve.answers import NOWHERE, TABLE, Answer, Answers
from nearcast.serve.cuts import cut
from nearcast.serve.keys import Keys, typed_key, wanted_keys
from nearcast.serve.overlay_state import OverlayState
from nearcast.stores.base import Pointer, Reader, Space, Store
from nearcast.stores.values import IdType, decode_list, decode_lists, encode_key
from nearcast.types import IntArray

__all__ = ["Version", "View", "open_version"]

FACTS_FORMAT = 1


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Version:
    """A version of a table, open. It is closed when nobody uses it any more."""

    reader: Reader
    facts: Mapping[str, Any]
    number: int
    snapshot: str  # such as 000007
    created: float  # seconds since 1970
    query_ids: IdType
    item_ids: IdType


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
    facts = reader.facts
    try:
        if facts["format"] != FACTS_FORMAT:
            raise ValueError(f"their format is {facts['format']}, and this version of nearcast reads {FACTS_FORMAT}")
        if (facts["generator"], facts["version"]) != (generator, number):
            raise ValueError(f"they are those of {facts['generator']} {facts['version']}")
        for kind in (facts["query_ids"], facts["item_ids"]):
            if kind not in ("int64", "string"):
                raise ValueError(f"ids are of type {kind!r}")
        created = datetime.fromisoformat(facts["created"]).timestamp()
        return Version(reader, facts, number, facts["snapshot"], created, facts["query_ids"], facts["item_ids"])
    except (KeyError, ValueError, TypeError) as error:
        raise DamagedError(f"the facts of {generator} {number} in the store cannot be used ({error!r})") from error


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
        self, key: str | int, *, k: int | None = None, min_score: float | None = None, fields: Sequence[str] = ()
    ) -> Answer:
        """The candidates of one key; see `Lookup.get`."""
        version, now = self.version, time.time()
        typed = typed_key(key, version.query_ids)
        value = None if typed is None else version.reader.get_many(Space.LISTS, [encode_key(typed)])[0]
        if typed is None or value is None:
            key = key if typed is None else typed
            none: Mapping[str, Sequence[Any]] = {name: [] for name in self._known(fields)} if fields else {}
            return Answer(key, False, [], [], None, 0, none, NOWHERE, None, version.snapshot, self.age_seconds)
        ids, scores, reason = decode_list(value)
        removed = 0
        if self.overlay.removes_any(ids):
            kept = [place for place, gone in enumerate(self.overlay.removed(ids, now)) if not gone]
            removed = len(ids) - len(kept)
            ids, scores = [ids[place] for place in kept], [scores[place] for place in kept]
        if min_score is not None:
            bound = float(np.float32(min_score))  # scores are float32: 0.7 is to be at least 0.7
            n = sum(score >= bound for score in scores)
            ids, scores = ids[:n], scores[:n]
        if k is not None:
            ids, scores = ids[: _checked(k)], scores[:k]
        columns = self._columns(ids, fields) if fields else {}
        age = max(0.0, now - version.created)
        return Answer(typed, True, ids, scores, reason, removed, columns, TABLE, typed, version.snapshot, age)

    def get_many(self, keys: Keys, *, k: int | None = None, min_score: float | None = None) -> Answers:
        """The candidates of many keys as arrays; see `Lookup.get_many`."""
        version, now = self.version, time.time()
        typed, encoded, places = wanted_keys(keys, version.query_ids)
        values = version.reader.get_many(Space.LISTS, encoded)
        if places is not None:
            values = _spread(values, places, len(typed))
        lists = decode_lists(values, version.item_ids)
        gone = self.overlay.places_removed(lists.ids, now)
        offsets, ids, scores, removed = cut(lists, gone, None if k is None else _checked(k), min_score)
        age = max(0.0, now - version.created)
        return Answers(typed, lists.found, offsets, ids, scores, lists.reasons, removed, version.snapshot, age)

    def items(self, ids: Sequence[str | int], fields: Sequence[str]) -> list[dict[str, Any]]:
        """These columns of these items, a dictionary per id; None where the snapshot and the overlay have no value."""
        now, names = time.time(), self._known(fields)
        typed = [typed_key(item, self.version.item_ids) for item in ids]
        distinct = list(dict.fromkeys(item for item in typed if item is not None))
        values = self.version.reader.get_many(Space.ITEMS, [encode_key(item) for item in distinct])
        stored = {item: _columns_of(value) for item, value in zip(distinct, values, strict=True) if value is not None}
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
        columns = self.version.facts.get("columns", {})
        for name in fields:
            if name not in columns and name not in self.overlay.fields:
                held = ", ".join(sorted({*columns, *self.overlay.fields})) or "none"
                what = f"{self.version.facts['generator']} {self.snapshot}"
                raise NotFoundError(f"{what} holds no item column {name!r}; it holds {held}")
        return fields

    def _columns(self, ids: Sequence[Any], fields: Sequence[str]) -> dict[str, list[Any]]:
        rows = self.items(ids, fields)
        return {name: [row[name] for row in rows] for name in fields}


def _checked(k: int) -> int:
    if k < 1:
        raise InputError(f"k is {k}; ask for one candidate at least")
    return k


def _columns_of(value: bytes) -> dict[str, Any]:
    try:
        row = json.loads(value)
        if not isinstance(row, dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise DamagedError(f"a value in the store holds no columns of an item ({error})") from error
    return row


def _spread(values: list[bytes | None], places: IntArray, n: int) -> list[bytes | None]:
    spread: list[bytes | None] = [None] * n
    for place, value in zip(places.tolist(), values, strict=True):
        spread[place] = value
    return spread
