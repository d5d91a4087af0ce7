"""The overlay of a generator, for those who write it: take an item out, put it back, give one of its columns a value.

An entry is in force in every look-up within a second, survives restarts, and applies to every version, also after
a rollback. Knows nothing of how look-ups apply it: that is `overlay_state`.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Self

import numpy as np

from nearcast.errors import BusyError, InputError, StoreError
from nearcast.serve.lookup_data import convert_key
from nearcast.serve.overlay_state import OverlayState
from nearcast.spec import parse_model
from nearcast.stores import StoreLike, make_unpublished_error, resolve_store
from nearcast.stores.base import ExchangeResult, OverlayEntry, Pointer, Reader, Space, Store, repair_overlay, store_time
from nearcast.stores.value_format import decode_columns, encode_key
from nearcast.stores.version_facts import VersionFacts, nearest_in_version, read_facts
from nearcast.table.ad_columns import seconds_of_time
from nearcast.table.expansion_checks import check_role, kind_of_role
from nearcast.table.expansion_settings import AdSettings

__all__ = ["Overlay", "OverlayState", "fits", "open_overlay"]

Item = str | int

FLOATS = ("halffloat", "float", "double", "decimal")
# beginnings of Arrow types: what JSON data their values are
KINDS: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("bool",), bool),
    (("int", "uint"), int),
    (FLOATS, int | float),
    (("string", "large_string", "date", "time", "timestamp"), str),
)
LAST_SECOND = 253_402_300_799  # of the year 9999
LISTS = ("list", "large_list", "fixed_size_list")
MOST_ADD_SECONDS = 30.0  # that an addition is tried again while others come in between


def open_overlay(store: StoreLike, generator: str) -> Overlay:
    """Open the overlay of a generator that is published. store: a URL, a path (of an LMDB store), or an open store.

    Raises NotFoundError where nothing is published: the type of the items' ids is known from what is.
    """
    opened = resolve_store(store)
    overlay = Overlay(opened, generator, owned=opened is not store)
    try:
        overlay.version_facts()
    except BaseException:
        overlay.close()
        raise
    return overlay


class Overlay:
    """The overlay of a generator, open for writing. Made by `nearcast.overlay`; any process may write at any time."""

    def __init__(self, store: Store, generator: str, *, owned: bool) -> None:
        self.generator = generator
        self._store = store
        self._owned = owned
        self._known: tuple[Pointer | None, VersionFacts] | None = None  # facts of where the pointer is

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the store."""
        if self._owned:
            self._store.close()

    def facts(self) -> Mapping[str, Any]:
        """Return the facts of the current version as JSON data; see `docs/store-format.md`."""
        return self.version_facts().to_json()

    def version_facts(self) -> VersionFacts:
        """Return the facts of the current version. They are read again after the pointer has moved."""
        pointer = self._store.pointer(self.generator)
        if pointer is None or self._known is None or self._known[0] != pointer:
            with self._current() as (_, facts):
                self._known = pointer, facts
        return self._known[1]

    def remove(self, items: Sequence[Item], *, until: float | str | datetime | None = None, note: str = "") -> None:
        """Take items out of every answer, for good or until a time.

        until: seconds since 1970, a datetime or ISO 8601, in UTC where it names no zone. The items need not be in the
        snapshot. InputError for an id that cannot be one of the table's, or a time that has passed; nothing is
        written then.
        """
        self._write([(item, None, True) for item in _several(items)], until, note, self.version_facts())

    def update(
        self, item: Item, field: str, value: Any, *, until: float | str | datetime | None = None, note: str = ""
    ) -> None:
        """Give a column of an item a newer value: JSON data, of the column's type where the snapshot has the column.

        None says that the item has no value any more. InputError as for `remove`, and for a value of another type.
        """
        self.update_many([(item, field, value)], until=until, note=note)

    def update_many(
        self, updates: Sequence[tuple[Item, str, Any]], *, until: float | str | datetime | None = None, note: str = ""
    ) -> None:
        """The same for many (item, field, value) in one step: all are written, or none."""
        plain = [(item, field, _plain(value)) for item, field, value in updates]
        facts = self.version_facts()  # once: each time costs a read of the pointer
        for _, field, value in plain:
            self._check_field(field)
            _check_value(facts, field, value)
        self._write(plain, until, note, facts)

    def _check_field(self, field: str) -> None:
        if not field or field == "id":
            raise InputError(f"{field!r} is no column that can have a value")

    def roles(self) -> tuple[str, ...]:
        """Columns that mean something in an expansion table, whether it has them or not; none for a generator."""
        expansion = self.version_facts().expansion
        return tuple(expansion["columns"].values()) if expansion else ()

    def add(self, item: Item, field: str, amount: float, *, note: str = "", token: str = "") -> float:
        """Add to a number of an item in one step that no other writer comes between. Returns the new number.

        It counts from the overlay's value, or else from the current version's: so spending adds up, whoever spends.
        amount: a number, below 0 to take away. Decimals add up exactly: 0.1 and 0.2 are 0.3.
        token: of this step, such as a request's id: within a day it is done once, however often it is sent.
        InputError for an item without such a number, StoreError where the store cannot say whether it was done.
        """
        typed, amount = self._typed(item, self.version_facts()), _plain(amount)
        self._check_field(field)
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not math.isfinite(amount):
            raise InputError(f"{amount!r} cannot be added to {field}: give a number")
        log = self._store.overlay(self.generator)
        if not hasattr(log, "exchange"):
            raise StoreError(f"{self._store.url} is a store of another package that cannot add; it lacks `exchange`")
        key = OverlayEntry(typed, field, None, 0.0).key()
        started = time.monotonic()
        while True:
            facts, now, held = self.version_facts(), self.now(), log.get(key)
            entry = None if held is None else OverlayEntry.from_bytes(held)
            counts = entry is not None and _counts(entry, now, facts)
            number = entry.value if counts and entry is not None else self._published(typed, field)
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise InputError(
                    f"{field} of {item!r} is {number!r}: there is no number to add to; give it one with `set` first"
                )
            total = _sum(number, amount)
            _check_value(facts, field, total)
            until = entry.until if counts and entry is not None else None
            news = OverlayEntry(typed, field, total, _stamp(facts, now), until, False, note)
            done = log.exchange(news, held, token=token, now=now)
            if done is not ExchangeResult.CHANGED:
                return total if done is ExchangeResult.WRITTEN else number
            if time.monotonic() - started > MOST_ADD_SECONDS:
                raise BusyError(f"{field} of {item!r} changes faster than it can be added to; try again")
            time.sleep(random.uniform(0.0, 0.002))

    def _published(self, item: Item, field: str) -> Any:
        """The value of the current version. Nothing spent is 0."""
        with self._current() as (reader, facts):
            value = reader.get_many(Space.ITEMS, [encode_key(item)])[0]
        if value is None:
            raise InputError(f"{item!r} is not in the current table of {self.generator}; give it a {field} first")
        number = decode_columns(value).get(field)
        if number is None and facts.expansion and field == facts.expansion["columns"]["spent"]:
            return 0
        if isinstance(number, str) and facts.columns.get(field, "").startswith("decimal"):
            return float(number)
        return number

    def now(self) -> float:
        """Seconds since 1970 by the store's clock, which is the one that counts: those of writers differ."""
        return store_time(self._store)

    def restore(self, items: Sequence[Item], *, field: str | None = None) -> list[Item]:
        """Take back that items are gone, or the newer value of a column. Returns those of which it was said at all."""
        facts = self.version_facts()
        ids = facts.item_ids
        wanted = {self._typed(item, facts) for item in _several(items)}
        said = [e for e in self.entries() if e.field == field and convert_key(e.item, ids) in wanted]
        now = _stamp(facts, self.now())
        self._store.overlay(self.generator).write([replace(e, value=None, written=now, lifted=True) for e in said])
        return [entry.item for entry in said]

    def entries(self) -> list[OverlayEntry]:
        """All that was written and not taken back, oldest first; what has expired is among it until it is purged."""
        changes = self._store.overlay(self.generator).changes()
        return OverlayState(self.version_facts().item_ids).apply(changes).entries

    def repair(self) -> str | None:
        """Make an overlay that was damaged or lost readable again, with what is left of it.

        Returns what was found and what may be lost, None where it is whole.
        """
        return repair_overlay(self._store.overlay(self.generator))

    def in_snapshot(self, items: Sequence[Item]) -> list[bool]:
        """Whether the current version holds these items, an answer per item."""
        with self._current() as (reader, facts):
            typed = [convert_key(item, facts.item_ids) for item in items]
            known = [item for item in typed if item is not None]
            values = reader.get_many(Space.ITEMS, [encode_key(item) for item in known])
        there = {item for item, value in zip(known, values, strict=True) if value is not None}
        return [item in there for item in typed]

    def nearest_items(self, item: Item) -> str:
        """Return in words which items of the current version are most like one that it does not hold."""
        with self._current() as (reader, facts):
            return nearest_in_version(reader, facts, Space.ITEMS, item)

    @contextlib.contextmanager
    def _current(self) -> Iterator[tuple[Reader, VersionFacts]]:
        pointer = self._store.pointer(self.generator)
        if pointer is None:
            raise make_unpublished_error(self._store, self.generator)
        with contextlib.closing(self._store.open(self.generator, pointer.version, verify=False)) as reader:
            yield reader, read_facts(reader, self.generator, pointer.version)

    def _write(
        self,
        news: Sequence[tuple[Item, str | None, Any]],
        until: float | str | datetime | None,
        note: str,
        facts: VersionFacts,
    ) -> None:
        now = self.now()
        end = _seconds(until)
        if end is not None and not math.isfinite(end):
            raise InputError(f"until is no time: {end}")
        if end is not None and end > LAST_SECOND:
            raise InputError(f"until is {end:g}, after the year 9999; without an end it is for good")
        if end is not None and end <= now:
            raise InputError(f"until is {datetime.fromtimestamp(end, UTC):%Y-%m-%dT%H:%M:%SZ}: that has passed")
        written = _stamp(facts, now)
        entries = [
            OverlayEntry(self._typed(item, facts), field, value, written, end, False, note)
            for item, field, value in news
        ]
        try:
            json.dumps(
                [[e.item, e.field, e.value, note] for e in entries], allow_nan=False, ensure_ascii=False
            ).encode()
        except (TypeError, ValueError) as error:
            raise InputError(f"the overlay holds JSON data, and this is none: {error}") from error
        self._store.overlay(self.generator).write(entries)

    def _typed(self, item: Item, facts: VersionFacts) -> Item:
        ids = facts.item_ids
        typed = convert_key(item, ids)
        if typed is None:
            raise InputError(f"{item!r} is no id of an item of {self.generator}: its ids are of type {ids}")
        return typed


def _stamp(facts: VersionFacts, now: float) -> float:
    """When something is written that is newer than what is current, by whatever clock that was made."""
    made = facts.as_of or facts.started or facts.created
    return max(now, datetime.fromisoformat(made).timestamp() + 1e-6)


def _counts(entry: OverlayEntry, now: float, facts: VersionFacts) -> bool:
    """Whether a look-up takes this entry for the newest that is known."""
    over = entry.lifted or (entry.until is not None and entry.until <= now)
    return not over and entry.written > _read_at(facts)


def _read_at(facts: VersionFacts) -> float:
    """When the current version of an expansion table was read from its source: what is older it knows itself."""
    return -math.inf if facts.as_of is None else datetime.fromisoformat(facts.as_of).timestamp()


def _sum(number: float, amount: float) -> float:
    """The sum, exact in decimals; InputError where no number can hold it."""
    if isinstance(number, int) and isinstance(amount, int):
        total: float = number + amount
        fits_in = -(1 << 63) <= total < 1 << 63
    else:
        total = float(Decimal(repr(number)) + Decimal(repr(amount)))
        fits_in = math.isfinite(total)
    if not fits_in:
        raise InputError(f"{number!r} and {amount!r} are more than a number can hold")
    return total


def fits(value: Any, column: str) -> bool:
    """Whether a value can be one of a column of this Arrow type, given as text. Types of no simple kind take any."""
    if value is None:
        return True
    most = 1 << (64 if column.startswith("uint64") else 63)
    if type(value) is int and not column.startswith(FLOATS) and not -(1 << 63) <= value < most:
        return False
    for names, kinds in KINDS:
        if column.startswith(names):
            return isinstance(value, kinds) and (isinstance(value, bool) == (kinds is bool))
    return True


def _check_value(facts: VersionFacts, field: str, value: Any) -> None:
    """Raise InputError for a value that the column cannot hold: look-ups would take it for a missing one."""
    columns = facts.columns
    if facts.expansion:
        kind = kind_of_role(parse_model(AdSettings, facts.expansion, "the settings"), field)
        if kind is not None and (field not in columns or isinstance(value, int | float)):
            check_role(field, kind, value)
            return
    if field in columns and not _is_usable(value, columns[field]):
        raise InputError(f"{field} is a column of type {columns[field]}, and {value!r} is no such value")


def _is_usable(value: Any, column: str) -> bool:
    """Whether look-ups can use a value in a column of this type: as `fits`, and lists hold values of their type."""
    if value is not None and column.startswith(LISTS) and "<" in column:
        inner = column[column.index("<") + 1 : column.rindex(">")].split(": ", 1)[-1].removesuffix(" not null")
        return isinstance(value, list | tuple) and all(_is_usable(each, inner) for each in value)
    if isinstance(value, str) and column.startswith(("date", "timestamp")):
        return _is_time(value)
    return fits(value, column)


def _is_time(text: str) -> bool:
    try:
        seconds_of_time(text)
    except InputError:
        return False
    return True


def _several(items: Sequence[Item]) -> Sequence[Item]:
    if isinstance(items, str):
        raise InputError(f"items is {items!r}: give a list of ids, such as [{items!r}]")
    return items


def _seconds(until: float | str | datetime | None) -> float | None:
    return None if until is None else seconds_of_time(until)


def _plain(value: Any) -> Any:
    """A NumPy scalar as the number that it is, a date or time as ISO 8601: what JSON has; all else as it stands."""
    if isinstance(value, np.generic):
        value = value.item()
    return value.isoformat() if isinstance(value, date) else value
