"""The overlay of a generator, for those who write it: take an item out, put it back, give one of its columns a value.

An entry is in force in every look-up within a second, survives restarts, and applies to every version, also after
a rollback. Knows nothing of how look-ups apply it: that is `overlay_state`.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from nearcast.errors import InputError
from nearcast.serve.keys import typed_key
from nearcast.serve.lookup import StoreLike, nothing_published, store_of
from nearcast.serve.overlay_state import OverlayState
from nearcast.stores.base import OverlayEntry, Pointer, Reader, Space, Store, repair_overlay
from nearcast.stores.values import encode_key

__all__ = ["Overlay", "OverlayState", "fits", "open_overlay"]

Item = str | int

# beginnings of Arrow types: what JSON data their values are
KINDS: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("bool",), bool),
    (("int", "uint"), int),
    (("halffloat", "float", "double", "decimal"), int | float),
    (("string", "large_string", "date", "time", "timestamp"), str),
)


def open_overlay(store: StoreLike, generator: str) -> Overlay:
    """Open the overlay of a generator that is published. store: a URL, a path (of an LMDB store), or an open store.

    Raises NotFoundError where nothing is published: the type of the items' ids is known from what is.
    """
    opened = store_of(store)
    overlay = Overlay(opened, generator, owned=opened is not store)
    try:
        overlay.facts()
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
        self._known: tuple[Pointer | None, Mapping[str, Any]] | None = None  # facts of where the pointer is

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
        """What the current version says of itself."""
        pointer = self._store.pointer(self.generator)
        if pointer is None or self._known is None or self._known[0] != pointer:
            with self._current() as reader:
                self._known = pointer, reader.facts
        return self._known[1]

    def remove(self, items: Sequence[Item], *, until: float | datetime | None = None, note: str = "") -> None:
        """Take items out of every answer, for good or until a time.

        until: seconds since 1970, or a datetime, which is UTC if it names no zone. The items need not be in the
        snapshot. InputError for an id that cannot be one of the table's, or a time that has passed; nothing is
        written then.
        """
        self._write([(item, None, True) for item in _several(items)], until, note)

    def update(
        self, item: Item, field: str, value: Any, *, until: float | datetime | None = None, note: str = ""
    ) -> None:
        """Give a column of an item a newer value: JSON data, of the column's type where the snapshot has the column.

        None says that the item has no value any more. InputError as for `remove`, and for a value of another type.
        """
        self.update_many([(item, field, value)], until=until, note=note)

    def update_many(
        self, updates: Sequence[tuple[Item, str, Any]], *, until: float | datetime | None = None, note: str = ""
    ) -> None:
        """The same for many (item, field, value) in one step: all are written, or none."""
        columns = self.facts().get("columns", {})
        for _, field, value in updates:
            if not field or field == "id":
                raise InputError(f"{field!r} is no column that can have a value")
            if not fits(value, columns.get(field, "")):
                raise InputError(f"{field} is a column of type {columns[field]}, and {value!r} is no such value")
        self._write(updates, until, note)

    def restore(self, items: Sequence[Item], *, field: str | None = None) -> list[Item]:
        """Take back that items are gone, or the newer value of a column. Returns those of which it was said at all."""
        wanted = {self._typed(item) for item in _several(items)}
        ids = self.facts()["item_ids"]
        said = [e for e in self.entries() if e.field == field and typed_key(e.item, ids) in wanted]
        now = time.time()
        self._store.overlay(self.generator).write([replace(e, value=None, written=now, lifted=True) for e in said])
        return [entry.item for entry in said]

    def entries(self) -> list[OverlayEntry]:
        """All that was written and not taken back, oldest first; what has expired is among it until it is purged."""
        changes = self._store.overlay(self.generator).changes()
        return OverlayState(self.facts()["item_ids"]).apply(changes).entries

    def repair(self) -> str | None:
        """Make an overlay that was damaged or lost readable again, with what is left of it.

        Returns what was found and what may be lost, None where it is whole.
        """
        return repair_overlay(self._store.overlay(self.generator))

    def in_snapshot(self, items: Sequence[Item]) -> list[bool]:
        """Whether the current version holds these items, an answer per item."""
        with self._current() as reader:
            ids = reader.facts["item_ids"]
            typed = [typed_key(item, ids) for item in items]
            known = [item for item in typed if item is not None]
            values = reader.get_many(Space.ITEMS, [encode_key(item) for item in known])
        there = {item for item, value in zip(known, values, strict=True) if value is not None}
        return [item in there for item in typed]

    def _current(self) -> contextlib.closing[Reader]:
        pointer = self._store.pointer(self.generator)
        if pointer is None:
            raise nothing_published(self._store, self.generator)
        return contextlib.closing(self._store.open(self.generator, pointer.version, verify=False))

    def _write(self, news: Sequence[tuple[Item, str | None, Any]], until: float | datetime | None, note: str) -> None:
        now = time.time()
        end = _seconds(until)
        if end is not None and not math.isfinite(end):
            raise InputError(f"until is no time: {end}")
        if end is not None and end <= now:
            raise InputError(f"until is {datetime.fromtimestamp(end, UTC):%Y-%m-%dT%H:%M:%SZ}: that has passed")
        entries = [OverlayEntry(self._typed(item), field, value, now, end, False, note) for item, field, value in news]
        try:
            json.dumps(
                [[e.item, e.field, e.value, note] for e in entries], allow_nan=False, ensure_ascii=False
            ).encode()
        except (TypeError, ValueError) as error:
            raise InputError(f"the overlay holds JSON data, and this is none: {error}") from error
        self._store.overlay(self.generator).write(entries)

    def _typed(self, item: Item) -> Item:
        ids = self.facts()["item_ids"]
        typed = typed_key(item, ids)
        if typed is None:
            raise InputError(f"{item!r} is no id of an item of {self.generator}: its ids are of type {ids}")
        return typed


def fits(value: Any, column: str) -> bool:
    """Whether a value can be one of a column of this Arrow type, given as text. Types of no simple kind take any."""
    if value is None:
        return True
    for names, kinds in KINDS:
        if column.startswith(names):
            return isinstance(value, kinds) and (isinstance(value, bool) == (kinds is bool))
    return True


def _several(items: Sequence[Item]) -> Sequence[Item]:
    if isinstance(items, str):
        raise InputError(f"items is {items!r}: give a list of ids, such as [{items!r}]")
    return items


def _seconds(until: float | datetime | None) -> float | None:
    if isinstance(until, datetime):
        return (until if until.tzinfo is not None else until.replace(tzinfo=UTC)).timestamp()
    return until
