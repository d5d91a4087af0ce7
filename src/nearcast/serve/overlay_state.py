"""The overlay in memory: tombstones of removed items, and newer values of columns. Immutable values.

A state is built from the changes of a log. Expired entries stay in it, so every method takes the time. Budgets change
many times a second, so a new state shares all unchanged parts with the previous one. Knows nothing of stores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.serve.lookup_data import convert_key
from nearcast.sharing import Edit, SharingMap
from nearcast.stores.base import OverlayChanges, OverlayEntry
from nearcast.stores.value_format import IdType
from nearcast.types import IntArray

__all__ = ["OverlayState"]

Item = str | int
Columns = Mapping[str, tuple[Any, float, float]]  # field: value, end, and time of writing
# Number in the order of writing, then the fields of an `OverlayEntry`. Tuples, since there may be many entries and the
# garbage collector soon stops tracking them.
_EntryTuple = tuple[Any, ...]
_as_tuple = attrgetter(*(part.name for part in fields(OverlayEntry)))

FOREVER = math.inf
NO_FILTER = np.zeros(1, np.bool_)
MAX_FILTER_BITS = 20  # one megabyte, which stays in the CPU cache


@dataclass(frozen=True, slots=True, eq=False)
class _TombstoneArrays:
    """The tombstones as arrays, to look up many items at once."""

    ids: IntArray | pa.Array  # ascending if they are integers
    until: npt.NDArray[np.float64]
    bit_filter: npt.NDArray[np.bool_]  # see `_build_filter`; unused for strings


@dataclass(frozen=True, slots=True, eq=False)
class OverlayState:
    """All entries of a log that were not restored, by item. `apply` returns the next state."""

    item_ids: IdType
    epoch: int = -1
    serial: int = 0
    keeps_purged: bool = False  # holds entries that the log has purged: see `apply`
    tombstones: Mapping[Item, float] = field(default_factory=dict)  # item: end of its removal
    values: SharingMap[Item, Columns] = field(default_factory=SharingMap)
    fields: frozenset[str] = frozenset()  # columns with newer values, in force or not
    changed_items: frozenset[Item] = frozenset()  # items of the last changes
    previous_serial: int = -1  # of the state that the last changes were applied to; -1: built from the whole log
    _entries: SharingMap[tuple[Item, str | None], _EntryTuple] = field(default_factory=SharingMap)  # by item and field
    _written: int = 0  # entries so far, including replaced ones
    _arrays: _TombstoneArrays = field(default_factory=lambda: _build_arrays({}, "int64"))

    @property
    def entries(self) -> list[OverlayEntry]:
        """All entries, oldest first. Reads every entry: do not call it for every request."""
        return [OverlayEntry(*entry) for _, *entry in sorted(self._entries.values(), key=itemgetter(0))]

    def apply(self, changes: OverlayChanges, *, keep_purged: bool = False) -> OverlayState:
        """Return the state after these changes, in the order of writing.

        A new epoch means that the log has purged entries which the current version contains. A reader that still uses
        an older version keeps them (`keep_purged`), since removed items would come back otherwise.
        """
        rebuild = changes.epoch != self.epoch or self.keeps_purged
        keeps_purged = rebuild and keep_purged and bool(self._entries)
        if not rebuild and not changes.entries:
            return self if changes.serial == self.serial else replace(self, serial=changes.serial)
        continues = keeps_purged or not rebuild
        entries = self._entries.edit() if continues else SharingMap[Any, _EntryTuple]().edit()
        values = self.values.edit() if continues else SharingMap[Item, Columns]().edit()
        same_tombstones = not rebuild and all(entry.field is not None for entry in changes.entries)
        tombstones = self.tombstones if same_tombstones else dict(self.tombstones) if continues else {}
        changed = {
            (item, entry.field)
            for number, entry in enumerate(changes.entries, self._written)
            if (item := _apply_entry(number, entry, self.item_ids, entries, tombstones, values)) is not None
        }
        next_values = values.finish()
        # A change of a budget, the frequent case, does not search all values again.
        fields = self.fields | {name for _, name in changed if name is not None}
        if rebuild or any(entry.lifted for entry in changes.entries):  # a column may have lost its last value
            fields = frozenset(name for columns in next_values.values() for name in columns)
        return OverlayState(
            *(self.item_ids, changes.epoch, changes.serial, keeps_purged, tombstones, next_values, fields),
            changed_items=frozenset(item for item, _ in changed),
            previous_serial=-1 if rebuild else self.serial,
            _entries=entries.finish(),
            _written=self._written + len(changes.entries),
            _arrays=self._arrays if same_tombstones else _build_arrays(tombstones, self.item_ids),
        )

    def convert(self, item_ids: IdType) -> OverlayState:
        """Return the same entries for a version whose item ids have this type."""
        if item_ids == self.item_ids:
            return self
        changes = OverlayChanges(self.epoch, self.serial, tuple(self.entries))
        return replace(OverlayState(item_ids).apply(changes), keeps_purged=self.keeps_purged)

    def size(self, now: float) -> int:
        """Return the number of entries in force."""
        held = sum(until > now for columns in self.values.values() for _, until, _ in columns.values())
        return held + sum(until > now for until in self.tombstones.values())

    def removes_any(self, ids: Sequence[Item]) -> bool:
        """Return whether one of these items has a tombstone, expired or not. Fast: nearly every list has none."""
        return bool(self.tombstones) and not self.tombstones.keys().isdisjoint(ids)

    def find_removed(self, ids: Sequence[Item | None], now: float) -> list[bool]:
        """Return per item whether it is removed."""
        tombstones = self.tombstones
        return [tombstones.get(item, 0.0) > now for item in ids]  # type: ignore[arg-type]

    def positions_removed(self, ids: pa.Array, now: float) -> IntArray | None:
        """Return the ascending positions of the removed items in `ids`; None if there are none."""
        if not self.tombstones or len(ids) == 0:
            return None
        arrays = self._arrays
        if isinstance(arrays.ids, np.ndarray):
            numbers = ids.to_numpy()
            positions = np.flatnonzero(arrays.bit_filter[numbers & (len(arrays.bit_filter) - 1)])
            maybe = numbers[positions]
            hits = np.searchsorted(arrays.ids, maybe)
            hits[hits == len(arrays.ids)] = 0
            equal = arrays.ids[hits] == maybe
            positions, hits = positions[equal], hits[equal]
        else:
            found = pc.index_in(ids, value_set=arrays.ids.cast(ids.type))
            positions = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
            hits = found.drop_null().to_numpy()
        in_force: IntArray = positions[arrays.until[hits] > now]
        return in_force if len(in_force) else None

    def removed_now(self, now: float) -> list[Item]:
        """Return the items that are removed at this time. Reads all tombstones: do not call it for every request."""
        return [item for item, until in self.tombstones.items() if until > now]

    def find_values(self, item: Item, now: float) -> dict[str, Any]:
        """Return the newer values of an item's columns, by column."""
        columns = self.values.get(item)
        return {name: value for name, (value, until, _) in columns.items() if until > now} if columns else {}


def _apply_entry(
    number: int,
    entry: OverlayEntry,
    item_ids: IdType,
    entries: Edit[tuple[Item, str | None], _EntryTuple],
    tombstones: Mapping[Item, float],
    values: Edit[Item, Columns],
) -> Item | None:
    """Apply one entry. Return its item in the table's id type, or None if it cannot be an item of the table.

    An id of another type is converted: "7" becomes 7.
    """
    converted = convert_key(entry.item, item_ids)
    item = entry.item if converted is None else converted
    until = FOREVER if entry.until is None else entry.until
    if entry.lifted:
        entries.pop((item, entry.field), None)
    else:
        entries[item, entry.field] = (number, *_as_tuple(entry))
    if converted is None:
        return None
    if entry.field is None:
        assert isinstance(tombstones, dict)  # `apply` passes a copy if an entry has no field
        tombstones.pop(item, None)
        if not entry.lifted and entry.value:
            tombstones[item] = until
        return converted
    columns = dict(values.get(item, {}))
    columns.pop(entry.field, None)
    if not entry.lifted:
        columns[entry.field] = (entry.value, until, entry.written)
    if columns:
        values[item] = columns
    else:
        values.pop(item, None)
    return converted


def _build_arrays(tombstones: Mapping[Item, float], item_ids: IdType) -> _TombstoneArrays:
    until = np.fromiter(tombstones.values(), np.float64, len(tombstones))
    if item_ids == "string":
        return _TombstoneArrays(pa.array(list(tombstones), pa.string()), until, NO_FILTER)
    ids = np.fromiter(tombstones, np.int64, len(tombstones))
    order = np.argsort(ids)
    return _TombstoneArrays(ids[order], until[order], _build_filter(ids))


def _build_filter(ids: IntArray) -> npt.NDArray[np.bool_]:
    """Return a bit filter by the low bits of an id: False means that the id is not one of these."""
    size = 1 << min(MAX_FILTER_BITS, max(8, (64 * len(ids)).bit_length()))
    bit_filter = np.zeros(size, np.bool_)
    bit_filter[ids & (size - 1)] = True
    return bit_filter
