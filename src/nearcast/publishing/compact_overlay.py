"""Compact an overlay: delete the entries that every version in the store contains already.

An entry is deleted only when no version that can become current needs it: a rollback must not restore an item. A
removed item that is in no version any more may come back in a later snapshot: its entry is kept for 90 days.
Reads items of every version in the store; writes only to the overlay.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from nearcast.errors import DamagedError
from nearcast.stores.base import OverlayEntry, Reader, Space, Store, get_unpatched
from nearcast.stores.value_format import encode_key
from nearcast.stores.version_facts import VersionFacts, read_facts
from nearcast.times import parse_utc

__all__ = ["compact_overlay"]

CLOCK_SKEW_SECONDS = 60.0  # between the clocks of overlay writers and of runs
REMOVAL_KEPT_SECONDS = 90 * 86_400.0  # at least, for an item that was removed without an end
ITEMS_AT_ONCE = 1 << 14

Columns = dict[str, Any] | None  # of an item; None: the version does not have it


def compact_overlay(store: Store, generator: str, versions: Sequence[int], *, now: float) -> int:
    """Delete expired, restored and contained entries; return their number.

    Raises NearcastError if a version cannot be read.
    """
    log = store.overlay(generator)
    seen = log.changes()
    expired = [entry for entry in seen.entries if _is_expired(entry, now)]
    rest = [entry for entry in seen.entries if not (_is_expired(entry, now) or _is_recent_removal(entry, now))]
    needless = expired + (_find_contained_in_all(store, generator, versions, rest) if rest else [])
    if needless:
        log.purge([entry.key() for entry in needless], upto=seen.serial)
    return len(needless)


def _is_expired(entry: OverlayEntry, now: float) -> bool:
    return entry.lifted or (entry.until is not None and entry.until < now - CLOCK_SKEW_SECONDS)


def _is_recent_removal(entry: OverlayEntry, now: float) -> bool:
    return entry.field is None and entry.until is None and entry.written > now - REMOVAL_KEPT_SECONDS


def _find_contained_in_all(
    store: Store, generator: str, versions: Sequence[int], entries: list[OverlayEntry]
) -> list[OverlayEntry]:
    for version in versions:
        if not entries:
            break
        with contextlib.closing(store.open(generator, version, verify=False)) as reader:
            entries = _find_contained(reader, read_facts(reader, generator, version), entries)
    return entries if versions else []


def _find_contained(reader: Reader, facts: VersionFacts, entries: list[OverlayEntry]) -> list[OverlayEntry]:
    """Return the entries that a later version contains: it lacks the item, or its field has the entry's value."""
    read_inputs = parse_utc(facts.started or facts.created)
    older = [entry for entry in entries if entry.written < read_inputs - CLOCK_SKEW_SECONDS]
    found = []
    for start in range(0, len(older), ITEMS_AT_ONCE):
        batch = older[start : start + ITEMS_AT_ONCE]
        keys = [encode_key(entry.item) for entry in batch]
        pairs = (one.get_many(Space.ITEMS, keys) for one in (reader, get_unpatched(reader)))  # patches can be undone
        found += [
            entry
            for entry, *values in zip(batch, *pairs, strict=True)
            if all(_agrees(_decode_columns(value), entry) for value in values)
        ]
    return found


def _decode_columns(value: bytes | None) -> Columns:
    if value is None:
        return None
    try:
        columns = json.loads(value)
    except ValueError as error:
        raise DamagedError(f"an item's value in the store is not JSON ({error})") from error
    return dict(columns)


def _agrees(columns: Columns, entry: OverlayEntry) -> bool:
    if columns is None:
        return True
    return entry.field is not None and entry.field in columns and columns[entry.field] == entry.value
