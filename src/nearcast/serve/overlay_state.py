"""The overlay in memory: which items are gone, and which columns of items have newer values. Pure values.

It is built up from the changes of a log. What has expired stays in it and is not in force: every question is asked
with the time. Budgets change many times a second, so a state shares with the one before all that has not changed.
Knows nothing of stores.
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
Columns = Mapping[str, tuple[Any, float, float]]  # field: its value, until when, and when it was written
# Which entry it is in the order of writing, and what `OverlayEntry` is made of: plain tuples, since there may be many,
# and the collector of cycles soon leaves them alone.
_Noted = tuple[Any, ...]
_as_tuple = attrgetter(*(part.name for part in fields(OverlayEntry)))

FOREVER = math.inf
NO_SIEVE = np.zeros(1, np.bool_)
LARGEST_SIEVE_BITS = 20  # a megabyte: stays in the cache


@dataclass(frozen=True, slots=True, eq=False)
class _Sieved:
    """The items that are gone, as arrays."""

    ids: IntArray | pa.Array  # ascending where they are numbers
    until: npt.NDArray[np.float64]
    sieve: npt.NDArray[np.bool_]  # see `_sieve`; of no use for texts


@dataclass(frozen=True, slots=True, eq=False)
class OverlayState:
    """All entries of a log that were not lifted, and what they amount to. `apply` makes the next one."""

    item_ids: IdType
    epoch: int = -1
    serial: int = 0
    carried: bool = False  # holds entries that the log has forgotten already: see `apply`
    gone: Mapping[Item, float] = field(default_factory=dict)  # item: until when
    values: SharingMap[Item, Columns] = field(default_factory=SharingMap)
    fields: frozenset[str] = frozenset()  # columns that it has values of, in force or not
    touched: frozenset[Item] = frozenset()  # items that the last changes were about
    after: int = -1  # serial of the state that these changes were applied to; -1: it was made afresh
    _noted: SharingMap[tuple[Item, str | None], _Noted] = field(default_factory=SharingMap)  # by item and field
    _written: int = 0  # entries so far, of which some have taken the place of others
    _sieved: _Sieved = field(default_factory=lambda: _sieved({}, "int64"))  # `gone`, for many items at once

    @property
    def entries(self) -> list[OverlayEntry]:
        """All of them, oldest first. Looks at every one: not for every request."""
        return [OverlayEntry(*told) for _, *told in sorted(self._noted.values(), key=itemgetter(0))]

    def apply(self, changes: OverlayChanges, *, keep_purged: bool = False) -> OverlayState:
        """The state after these changes, in the order in which they were written.

        A new epoch means that the log has forgotten entries, since the current version knows better. A reader that
        still answers from an older version keeps them (`keep_purged`), or items that are gone would come back.
        """
        afresh = changes.epoch != self.epoch or self.carried
        carried = afresh and keep_purged and bool(self._noted)
        if not afresh and not changes.entries:
            return self if changes.serial == self.serial else replace(self, serial=changes.serial)
        goes_on = carried or not afresh
        entries = self._noted.edit() if goes_on else SharingMap[Any, _Noted]().edit()
        values = self.values.edit() if goes_on else SharingMap[Item, Columns]().edit()
        same_gone = not afresh and all(entry.field is not None for entry in changes.entries)
        gone = self.gone if same_gone else dict(self.gone) if goes_on else {}
        noted = {
            (item, entry.field)
            for number, entry in enumerate(changes.entries, self._written)
            if (item := _note(number, entry, self.item_ids, entries, gone, values)) is not None
        }
        next_values = values.finish()
        # What budgets have no say in is not looked through again.
        fields = self.fields | {name for _, name in noted if name is not None}
        if afresh or any(entry.lifted for entry in changes.entries):  # a column may have lost its last value
            fields = frozenset(name for columns in next_values.values() for name in columns)
        return OverlayState(
            *(self.item_ids, changes.epoch, changes.serial, carried, gone, next_values, fields),
            touched=frozenset(item for item, _ in noted),
            after=-1 if afresh else self.serial,
            _noted=entries.finish(),
            _written=self._written + len(changes.entries),
            _sieved=self._sieved if same_gone else _sieved(gone, self.item_ids),
        )

    def convert(self, item_ids: IdType) -> OverlayState:
        """The same entries for a version whose items have ids of this type."""
        if item_ids == self.item_ids:
            return self
        again = OverlayChanges(self.epoch, self.serial, tuple(self.entries))
        return replace(OverlayState(item_ids).apply(again), carried=self.carried)

    def size(self, now: float) -> int:
        """Entries in force."""
        held = sum(until > now for columns in self.values.values() for _, until, _ in columns.values())
        return held + sum(until > now for until in self.gone.values())

    def removes_any(self, ids: Sequence[Item]) -> bool:
        """Whether one of these items may be gone: a quick no for nearly every list."""
        return bool(self.gone) and not self.gone.keys().isdisjoint(ids)

    def removed(self, ids: Sequence[Item | None], now: float) -> list[bool]:
        """Whether these items are gone."""
        gone = self.gone
        return [gone.get(item, 0.0) > now for item in ids]  # type: ignore[arg-type]

    def positions_removed(self, ids: pa.Array, now: float) -> IntArray | None:
        """The places of those of these items that are gone, ascending; None where none is."""
        if not self.gone or len(ids) == 0:
            return None
        gone = self._sieved
        if isinstance(gone.ids, np.ndarray):
            numbers = ids.to_numpy()
            places = np.flatnonzero(gone.sieve[numbers & (len(gone.sieve) - 1)])
            wanted = numbers[places]
            known = np.searchsorted(gone.ids, wanted)
            known[known == len(gone.ids)] = 0
            there = gone.ids[known] == wanted
            places, known = places[there], known[there]
        else:
            found = pc.index_in(ids, value_set=gone.ids.cast(ids.type))
            places = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
            known = found.drop_null().to_numpy()
        in_force: IntArray = places[gone.until[known] > now]
        return in_force if len(in_force) else None

    def removed_now(self, now: float) -> list[Item]:
        """Return the items that are removed at this time. Looks at every one: not for every request."""
        return [item for item, until in self.gone.items() if until > now]

    def values_of(self, item: Item, now: float) -> dict[str, Any]:
        """The columns of an item that have newer values."""
        columns = self.values.get(item)
        return {name: value for name, (value, until, _) in columns.items() if until > now} if columns else {}


def _note(
    number: int,
    entry: OverlayEntry,
    item_ids: IdType,
    entries: Edit[tuple[Item, str | None], _Noted],
    gone: Mapping[Item, float],
    values: Edit[Item, Columns],
) -> Item | None:
    """Take one entry in, and tell which item of the table it concerns: None where its id is none of the table's.

    An id of another type than the table's is taken as people write it: "7" for 7.
    """
    known = convert_key(entry.item, item_ids)
    item = entry.item if known is None else known
    until = FOREVER if entry.until is None else entry.until
    if entry.lifted:
        entries.pop((item, entry.field), None)
    else:
        entries[item, entry.field] = (number, *_as_tuple(entry))
    if known is None:
        return None
    if entry.field is None:
        assert isinstance(gone, dict)  # a copy, where an entry says that an item is gone
        gone.pop(item, None)
        if not entry.lifted and entry.value:
            gone[item] = until
        return known
    columns = dict(values.get(item, {}))
    columns.pop(entry.field, None)
    if not entry.lifted:
        columns[entry.field] = (entry.value, until, entry.written)
    if columns:
        values[item] = columns
    else:
        values.pop(item, None)
    return known


def _sieved(gone: Mapping[Item, float], item_ids: IdType) -> _Sieved:
    until = np.fromiter(gone.values(), np.float64, len(gone))
    if item_ids == "string":
        return _Sieved(pa.array(list(gone), pa.string()), until, NO_SIEVE)
    ids = np.fromiter(gone, np.int64, len(gone))
    order = np.argsort(ids)
    return _Sieved(ids[order], until[order], _sieve(ids))


def _sieve(ids: IntArray) -> npt.NDArray[np.bool_]:
    """Where the low bits of a number lead to False, it is none of these: nearly all are told so at a glance."""
    size = 1 << min(LARGEST_SIEVE_BITS, max(8, (64 * len(ids)).bit_length()))
    sieve = np.zeros(size, np.bool_)
    sieve[ids & (size - 1)] = True
    return sieve
