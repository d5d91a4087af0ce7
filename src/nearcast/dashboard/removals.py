"""The items that the overlay removes from a generator's lists, by id, in words. Reads a store, knows no pages."""

from __future__ import annotations

import time
from collections.abc import Callable

from nearcast.dashboard.list_explorer import RemovedItems
from nearcast.errors import NearcastError
from nearcast.serve.lookup_data import convert_key
from nearcast.serve.view import View
from nearcast.stores import open_store
from nearcast.stores.base import OverlayEntry, Store
from nearcast.stores.version_facts import read_facts
from nearcast.times import format_utc

__all__ = ["list_removed", "list_view_removals", "make_removals_reader"]


def list_removed(entries: list[OverlayEntry], *, now: float, integers: bool) -> RemovedItems:
    """Return the items that these entries remove now. integers: the table has integer ids, so "7" means 7."""
    rules = {}
    for entry in entries:
        if entry.field is None and entry.value and not entry.lifted and (entry.until is None or entry.until > now):
            item = convert_key(entry.item, "int64" if integers else "string")
            rules[entry.item if item is None else item] = _describe_entry(entry)
    return RemovedItems(rules)


def _describe_entry(entry: OverlayEntry) -> str:
    until = f"until {format_utc(entry.until)}" if entry.until is not None else "until it is restored"
    note = f" ({entry.note})" if entry.note else ""
    return f"removed by the overlay {until}{note}"


def list_view_removals(view: View) -> RemovedItems:
    """Return the items that the overlay of a view removes now."""
    return list_removed(view.overlay.entries, now=time.time(), integers=view.version.item_ids == "int64")


def make_removals_reader(url: str | None) -> Callable[[str], RemovedItems]:
    """Return a function that reads the removed items of a generator; empty if the store cannot be read."""

    def of(generator: str) -> RemovedItems:
        if url is None:
            return RemovedItems()
        try:
            store = open_store(url)
        except NearcastError:
            return RemovedItems()
        try:
            return _read_removed(store, generator)
        except NearcastError:
            return RemovedItems()
        finally:
            store.close()

    return of


def _read_removed(store: Store, generator: str) -> RemovedItems:
    pointer = store.pointer(generator)
    if pointer is None:
        return RemovedItems()
    reader = store.open(generator, pointer.version, verify=False)
    try:
        integers = read_facts(reader, generator, pointer.version).item_ids == "int64"
    finally:
        reader.close()
    return list_removed(list(store.overlay(generator).changes().entries), now=time.time(), integers=integers)
