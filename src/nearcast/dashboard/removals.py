"""What the overlay has taken out of a generator's lists, by id, in words. Looks into a store, knows no pages."""

from __future__ import annotations

import time
from collections.abc import Callable

from nearcast.dashboard.list_explorer import Removal
from nearcast.errors import NearcastError
from nearcast.serve.lookup_data import convert_key
from nearcast.serve.view import View
from nearcast.stores import open_store
from nearcast.stores.base import OverlayEntry, Store
from nearcast.stores.version_facts import read_facts
from nearcast.times import format_utc

__all__ = ["removals_in", "removals_of_store", "removals_of_view"]


def removals_in(entries: list[OverlayEntry], *, now: float, integers: bool) -> Removal:
    """The items that these entries remove now. integers: ids of the table are integers, so "7" means 7."""
    rules = {}
    for entry in entries:
        if entry.field is None and entry.value and not entry.lifted and (entry.until is None or entry.until > now):
            item = convert_key(entry.item, "int64" if integers else "string")
            rules[entry.item if item is None else item] = _words(entry)
    return Removal(rules)


def _words(entry: OverlayEntry) -> str:
    until = f"until {format_utc(entry.until)}" if entry.until is not None else "until it is lifted"
    note = f" ({entry.note})" if entry.note else ""
    return f"removed by the overlay {until}{note}"


def removals_of_view(view: View) -> Removal:
    """The same for what a service answers from."""
    return removals_in(view.overlay.entries, now=time.time(), integers=view.version.item_ids == "int64")


def removals_of_store(url: str | None) -> Callable[[str], Removal]:
    """What is removed of each generator in a store; nothing where there is no store or it cannot be asked."""

    def of(generator: str) -> Removal:
        if url is None:
            return Removal()
        try:
            store = open_store(url)
        except NearcastError:
            return Removal()
        try:
            return _of(store, generator)
        except NearcastError:
            return Removal()
        finally:
            store.close()

    return of


def _of(store: Store, generator: str) -> Removal:
    pointer = store.pointer(generator)
    if pointer is None:
        return Removal()
    reader = store.open(generator, pointer.version, verify=False)
    try:
        integers = read_facts(reader, generator, pointer.version).item_ids == "int64"
    finally:
        reader.close()
    return removals_in(list(store.overlay(generator).changes().entries), now=time.time(), integers=integers)
