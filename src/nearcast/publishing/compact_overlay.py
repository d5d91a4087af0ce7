"""Cut an overlay back: forget what every version in the store says already.

An entry may go only when no version that can become current needs it: a rollback must not bring an item back. An item
that was removed for good and has left the snapshots may come back into them: it is remembered for a while.
Reads items from every version that is kept; writes to the overlay alone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from nearcast.errors import DamagedError
from nearcast.stores.base import OverlayEntry, Reader, Space, Store
from nearcast.stores.value_format import encode_key
from nearcast.stores.version_facts import VersionFacts, read_facts
from nearcast.times import parse_utc

__all__ = ["compact_overlay"]

CLOCK_SKEW_SECONDS = 60.0  # between whoever writes to the overlay and whoever makes snapshots
REMEMBERED_SECONDS = 90 * 86_400.0  # that an item was removed for good, after it is in no version any more
ITEMS_AT_ONCE = 1 << 14

Columns = dict[str, Any] | None  # of an item; None: the version does not have it


def compact_overlay(store: Store, generator: str, versions: Sequence[int], *, now: float) -> int:
    """Forget expired, lifted and contained entries. Returns how many. NearcastError where a version cannot be read."""
    log = store.overlay(generator)
    seen = log.changes()
    over = [entry for entry in seen.entries if _is_over(entry, now)]
    rest = [entry for entry in seen.entries if not (_is_over(entry, now) or _is_remembered(entry, now))]
    needless = over + (_contained_in_all(store, generator, versions, rest) if rest else [])
    if needless:
        log.purge([entry.key() for entry in needless], upto=seen.serial)
    return len(needless)


def _is_over(entry: OverlayEntry, now: float) -> bool:
    return entry.lifted or (entry.until is not None and entry.until < now - CLOCK_SKEW_SECONDS)


def _is_remembered(entry: OverlayEntry, now: float) -> bool:
    return entry.field is None and entry.until is None and entry.written > now - REMEMBERED_SECONDS


def _contained_in_all(
    store: Store, generator: str, versions: Sequence[int], entries: list[OverlayEntry]
) -> list[OverlayEntry]:
    for version in versions:
        if not entries:
            break
        with contextlib.closing(store.open(generator, version, verify=False)) as reader:
            entries = _contained(reader, read_facts(reader, generator, version), entries)
    return entries if versions else []


def _contained(reader: Reader, facts: VersionFacts, entries: list[OverlayEntry]) -> list[OverlayEntry]:
    """The entries whose fact a version knows: it was made later, and the item is gone or the field is equal."""
    read_inputs = parse_utc(facts.started or facts.created)
    older = [entry for entry in entries if entry.written < read_inputs - CLOCK_SKEW_SECONDS]
    found = []
    for start in range(0, len(older), ITEMS_AT_ONCE):
        some = older[start : start + ITEMS_AT_ONCE]
        held = reader.get_many(Space.ITEMS, [encode_key(entry.item) for entry in some])
        found += [entry for entry, value in zip(some, held, strict=True) if _says_so(_columns(value), entry)]
    return found


def _columns(value: bytes | None) -> Columns:
    if value is None:
        return None
    try:
        columns = json.loads(value)
    except ValueError as error:
        raise DamagedError(f"an item's value in the store is not JSON ({error})") from error
    return dict(columns)


def _says_so(columns: Columns, entry: OverlayEntry) -> bool:
    if columns is None:
        return True
    return entry.field is not None and entry.field in columns and columns[entry.field] == entry.value
