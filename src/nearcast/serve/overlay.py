"""The overlay of a generator, open for writing: remove items, restore them, give columns newer values.

An entry is in force in every look-up within a second, survives restarts, and applies to every version, also after
a rollback. Knows nothing of how look-ups apply it: see `overlay_state`.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from nearcast.errors import BusyError, InputError, StoreError
from nearcast.serve.follow_store import ClosesOnExit
from nearcast.serve.lookup_data import convert_key
from nearcast.serve.overlay_state import OverlayState
from nearcast.serve.overlay_values import (
    Until,
    add_numbers,
    find_current_number,
    is_in_force,
    list_role_columns,
    parse_until,
    to_json_value,
    validate_amount,
    validate_entries,
    validate_field,
    validate_value,
)
from nearcast.stores import StoreLike, make_unpublished_error, resolve_store
from nearcast.stores.base import ExchangeResult, OverlayEntry, Pointer, Reader, Space, Store, repair_overlay, store_time
from nearcast.stores.value_format import decode_columns, encode_key
from nearcast.stores.version_facts import VersionFacts, nearest_in_version, read_facts

__all__ = ["Overlay", "OverlayState", "open_overlay"]

Item = str | int

MAX_ADD_SECONDS = 30.0  # how long an addition is tried again while other writers come first


def open_overlay(store: StoreLike, generator: str) -> Overlay:
    """Open the overlay of a published generator. store: a URL, the path of an LMDB store, or an open store.

    Raises NotFoundError if nothing is published: the published version defines the type of item ids.
    """
    opened = resolve_store(store)
    overlay = Overlay(opened, generator, owned=opened is not store)
    try:
        overlay.version_facts()
    except BaseException:
        overlay.close()
        raise
    return overlay


class Overlay(ClosesOnExit):
    """The overlay of a generator, open for writing. Made by `nearcast.overlay`; any process may write at any time."""

    def __init__(self, store: Store, generator: str, *, owned: bool) -> None:
        self.generator = generator
        self._store = store
        self._owned = owned
        self._cached_facts: tuple[Pointer | None, VersionFacts] | None = None

    def close(self) -> None:
        """Close the store if it was opened here."""
        if self._owned:
            self._store.close()

    def facts(self) -> Mapping[str, Any]:
        """Return the facts of the current version as JSON data; see `docs/store-format.md`."""
        return self.version_facts().to_json()

    def version_facts(self) -> VersionFacts:
        """Return the facts of the current version. They are read again after the pointer has moved."""
        pointer = self._store.pointer(self.generator)
        if pointer is None or self._cached_facts is None or self._cached_facts[0] != pointer:
            with self._open_current() as (_, facts):
                self._cached_facts = pointer, facts
        return self._cached_facts[1]

    def remove(self, items: Sequence[Item], *, until: Until = None, note: str = "") -> None:
        """Remove items from every answer, permanently or until a time.

        until: seconds since 1970, a datetime or ISO 8601; UTC if it has no time zone. Items need not be in the
        snapshot. Raises InputError for an id of another type than the table's or a time that has passed; then nothing
        is written.
        """
        self._write([(item, None, True) for item in _validate_list(items)], until, note, self.version_facts())

    def update(self, item: Item, field: str, value: Any, *, until: Until = None, note: str = "") -> None:
        """Give a column of an item a newer value: JSON data, of the column's type if the snapshot has the column.

        None means that the item has no value. Raises InputError as `remove` does, and for a value of another type.
        """
        self.update_many([(item, field, value)], until=until, note=note)

    def update_many(self, updates: Sequence[tuple[Item, str, Any]], *, until: Until = None, note: str = "") -> None:
        """Give columns newer values, as (item, field, value), in one step: all are written, or none."""
        changes = [(item, field, to_json_value(value)) for item, field, value in updates]
        facts = self.version_facts()  # once: each time costs a read of the pointer
        for _, field, value in changes:
            validate_field(field)
            validate_value(facts, field, value)
        self._write(changes, until, note, facts)

    def roles(self) -> tuple[str, ...]:
        """Return the role columns of an expansion table, including absent ones; empty for a generator."""
        return list_role_columns(self.version_facts())

    def add(self, item: Item, field: str, amount: float, *, note: str = "", token: str = "") -> float:
        """Add to a number of an item in one atomic step and return the new number.

        It adds to the overlay's value, or else to the current version's, so additions of all writers add up.
        amount: a number; a negative one subtracts. Decimals add up exactly: 0.1 and 0.2 are 0.3.
        token: identifies this step, for example a request id: within a day it is applied once, however often it is
        sent. Raises InputError for an item without such a number, StoreError if it is unknown whether the step
        was applied.
        """
        converted, amount = self._convert_id(item, self.version_facts()), to_json_value(amount)
        validate_field(field)
        validate_amount(field, amount)
        log = self._store.overlay(self.generator)
        if not hasattr(log, "exchange"):
            raise StoreError(f"{self._store.url} is a store of another package that cannot add; it lacks `exchange`")
        key = OverlayEntry(converted, field, None, 0.0).key()
        started = time.monotonic()
        while True:
            facts, now, stored = self.version_facts(), self.now(), log.get(key)
            entry = None if stored is None else OverlayEntry.from_bytes(stored)
            if entry is not None and is_in_force(entry, facts, now):
                number, until = entry.value, entry.until
            else:
                number, until = self._read_published(converted, field), None
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise InputError(
                    f"{field} of {item!r} is {number!r}: there is no number to add to; give it one with `set` first"
                )
            total = add_numbers(number, amount)
            validate_value(facts, field, total)
            changed = OverlayEntry(converted, field, total, _choose_time(facts, now), until, False, note)
            result = log.exchange(changed, stored, token=token, now=now)
            if result is not ExchangeResult.CHANGED:
                return total if result is ExchangeResult.WRITTEN else number
            if time.monotonic() - started > MAX_ADD_SECONDS:
                raise BusyError(f"{field} of {item!r} changes faster than it can be added to; try again")
            time.sleep(random.uniform(0.0, 0.002))

    def _read_published(self, item: Item, field: str) -> Any:
        """Return the value of a column in the current version."""
        with self._open_current() as (reader, facts):
            value = reader.get_many(Space.ITEMS, [encode_key(item)])[0]
        if value is None:
            raise InputError(f"{item!r} is not in the current table of {self.generator}; give it a {field} first")
        return find_current_number(facts, decode_columns(value), field)

    def now(self) -> float:
        """Return seconds since 1970 by the store's clock, since the clocks of writers differ."""
        return store_time(self._store)

    def restore(self, items: Sequence[Item], *, field: str | None = None) -> list[Item]:
        """Restore removed items, or drop the newer values of a column. Return the items that had such an entry."""
        facts = self.version_facts()
        ids = {self._convert_id(item, facts) for item in _validate_list(items)}
        entries = [
            entry for entry in self.entries() if entry.field == field and convert_key(entry.item, facts.item_ids) in ids
        ]
        now = _choose_time(facts, self.now())
        log = self._store.overlay(self.generator)
        log.write([replace(entry, value=None, written=now, lifted=True) for entry in entries])
        return [entry.item for entry in entries]

    def entries(self) -> list[OverlayEntry]:
        """Return all entries that were not restored, oldest first, including expired ones until they are purged."""
        changes = self._store.overlay(self.generator).changes()
        return OverlayState(self.version_facts().item_ids).apply(changes).entries

    def repair(self) -> str | None:
        """Make a damaged or lost overlay readable again, with the entries that are left.

        Returns a description of the damage and of possible losses; None if the overlay is intact.
        """
        return repair_overlay(self._store.overlay(self.generator))

    def in_snapshot(self, items: Sequence[Item]) -> list[bool]:
        """Return per item whether the current version holds it."""
        with self._open_current() as (reader, facts):
            converted = [convert_key(item, facts.item_ids) for item in items]
            valid = [item for item in converted if item is not None]
            values = reader.get_many(Space.ITEMS, [encode_key(item) for item in valid])
        present = {item for item, value in zip(valid, values, strict=True) if value is not None}
        return [item in present for item in converted]

    def nearest_items(self, item: Item) -> str:
        """Return in words the items of the current version with the most similar ids, for an id that it lacks."""
        with self._open_current() as (reader, facts):
            return nearest_in_version(reader, facts, Space.ITEMS, item)

    @contextlib.contextmanager
    def _open_current(self) -> Iterator[tuple[Reader, VersionFacts]]:
        pointer = self._store.pointer(self.generator)
        if pointer is None:
            raise make_unpublished_error(self._store, self.generator)
        with contextlib.closing(self._store.open(self.generator, pointer.version, verify=False)) as reader:
            yield reader, read_facts(reader, self.generator, pointer.version)

    def _write(
        self, changes: Sequence[tuple[Item, str | None, Any]], until: Until, note: str, facts: VersionFacts
    ) -> None:
        """Write entries in one step. Raises InputError before anything is written."""
        now = self.now()
        end, written = parse_until(until, now), _choose_time(facts, now)
        entries = [
            OverlayEntry(self._convert_id(item, facts), field, value, written, end, False, note)
            for item, field, value in changes
        ]
        validate_entries(entries)
        self._store.overlay(self.generator).write(entries)

    def _convert_id(self, item: Item, facts: VersionFacts) -> Item:
        ids = facts.item_ids
        converted = convert_key(item, ids)
        if converted is None:
            raise InputError(f"{item!r} is no id of an item of {self.generator}: its ids are of type {ids}")
        return converted


def _choose_time(facts: VersionFacts, now: float) -> float:
    """Return a write time after the time of the current version, even if that was made by a faster clock."""
    made = facts.as_of or facts.started or facts.created
    return max(now, datetime.fromisoformat(made).timestamp() + 1e-6)


def _validate_list(items: Sequence[Item]) -> Sequence[Item]:
    if isinstance(items, str):
        raise InputError(f"items is {items!r}: give a list of ids, for example [{items!r}]")
    return items
