"""The ads of an expansion table in memory: their ids, their columns, and what an overlay says of them since.

`Ads` is a version as it was published. `LiveAds` is that and an overlay, at one moment; both never change. Knows
nothing of stores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import DamagedError, InputError
from nearcast.sharing import SharingMap
from nearcast.table.ad_columns import Column, column_of, missing_column
from nearcast.table.expansion_settings import Roles
from nearcast.types import IntArray

__all__ = ["Ads", "LiveAds", "ads_of", "unchanged", "with_pauses", "with_values"]

NO_VALUE = (InputError, TypeError, ValueError, OverflowError)  # a list among words, say
BoolArray = npt.NDArray[np.bool_]
Id = str | int


@dataclass(frozen=True, slots=True, eq=False)
class Ads:
    """n ads, in the order of their ids."""

    arrays: Mapping[str, pa.Array]  # (n,) every column as it was published, the ids among them
    ids: IntArray | None  # (n,) ascending, where ids are numbers
    places: Mapping[Id, int]  # of each id
    columns: Mapping[str, Column]  # those that conditions can be asked of

    def __len__(self) -> int:
        return len(self.places)

    def ids_at(self, positions: IntArray) -> list[Any]:
        """The ids of some ads."""
        if self.ids is not None:
            return list(self.ids[positions].tolist())
        ids = self.arrays["id"]
        return [ids[place].as_py() for place in positions.tolist()]

    def positions(self, ids: pa.Array) -> IntArray:
        """(len(ids),) where these ads are. DamagedError for one that is not there: a list holds ads of its version."""
        if self.ids is None:
            found = np.fromiter((self.places.get(ad, -1) for ad in ids.to_pylist()), np.int64, len(ids))
            if len(found) and found.min() < 0:
                raise DamagedError("a list of the expansion table holds an ad that the table does not have")
            return found
        wanted = ids.to_numpy(zero_copy_only=False)
        positions: IntArray = np.searchsorted(self.ids, wanted).astype(np.int64, copy=False)
        if len(wanted) and (positions.max() >= len(self.ids) or not np.array_equal(self.ids[positions], wanted)):
            raise DamagedError("a list of the expansion table holds an ad that the table does not have")
        return positions


@dataclass(frozen=True, slots=True, eq=False)
class LiveAds:
    """Ads under an overlay: which are paused, and which values are newer."""

    ads: Ads
    columns: Mapping[str, Column]
    paused: BoolArray | None  # (n,); None where none is
    newer: SharingMap[int, Mapping[str, Any]] = field(default_factory=SharingMap)  # of a position: values by column
    until: float = math.inf  # when something in the overlay ends, and this is no longer true

    def rows(self, positions: IntArray, names: Sequence[str]) -> list[dict[str, Any]]:
        """These columns of some ads, as plain values; None for a column that an ad has no value of."""
        arrays = [(name, self.ads.arrays.get(name)) for name in names]
        rows = []
        for place in positions.tolist():
            # One by one: to have Arrow take a handful takes it longer.
            row = {name: None if array is None else array[place].as_py() for name, array in arrays}
            newer = self.newer.get(place)
            if newer:
                row.update({name: newer[name] for name in names if name in newer})
            rows.append(row)
        return rows


def ads_of(table: pa.Table, roles: Roles | None = None, *, id_column: bool = False) -> Ads:
    """Return the ads of a table with the column `id`, in the order of ids.

    roles: columns that limit when and how often an ad is shown. A limit that the table lacks becomes a column of nulls,
    since an overlay may set it: `spent` need not be in the export. id_column: rules name `ad.id`.
    """
    ids = table.column("id").combine_chunks()
    numbers = ids.to_numpy(zero_copy_only=False).astype(np.int64) if pa.types.is_integer(ids.type) else None
    places = {ad: place for place, ad in enumerate(ids.to_pylist())}
    arrays = {name: table.column(name).combine_chunks() for name in table.column_names}
    found = {name: column_of(values) for name, values in arrays.items() if name != "id" or id_column}
    columns = {name: column for name, column in found.items() if column is not None}
    for name, kind in _limits(roles).items():
        if name not in arrays:
            columns[name] = missing_column(len(table), kind)
    return Ads(arrays, numbers, places, columns)


def _limits(roles: Roles | None) -> dict[str, str]:
    """The columns that limit an ad, and what they hold."""
    if roles is None:
        return {}
    return {roles.budget: "number", roles.spent: "number", roles.starts: "time", roles.ends: "time"}


def unchanged(ads: Ads) -> LiveAds:
    """The ads as they were published."""
    return LiveAds(ads, ads.columns, None)


def with_pauses(live: LiveAds, gone: Mapping[Id, float], now: float) -> LiveAds:
    """The ads, of which these are paused until a time each."""
    paused, until = np.zeros(len(live.ads), np.bool_), live.until
    for ad, end in gone.items():
        place = live.ads.places.get(ad)
        if place is not None and end > now:
            paused[place] = True
            until = min(until, end)
    return replace(live, paused=paused if paused.any() else None, until=until)


def with_values(live: LiveAds, changes: Mapping[Id, Mapping[str, tuple[Any, float]]], now: float) -> LiveAds:
    """The ads, of which these have other newer values than before: all of an ad's, by column, until a time each.

    A value that its column cannot hold makes it a missing one.
    """
    newer, until = live.newer.edit(), live.until  # of which the next one shares what has not changed
    cells: dict[str, dict[int, Any]] = {}
    for ad, values in changes.items():
        place = live.ads.places.get(ad)
        if place is None:
            continue
        in_force = {name: (value, end) for name, (value, end) in values.items() if end > now}
        until = min([until, *(end for _, end in in_force.values())])
        before, after = newer.pop(place, {}), {name: value for name, (value, _) in in_force.items()}
        if after:
            newer[place] = after
        for name in {*before, *after} & live.columns.keys():
            cells.setdefault(name, {})[place] = after[name] if name in after else _published(live.ads, name, place)
    columns = dict(live.columns)
    for name, changed in cells.items():
        columns[name] = _changed(columns[name], changed)
    return replace(live, columns=columns, newer=newer.finish(), until=until)


def _published(ads: Ads, name: str, place: int) -> Any:
    values = ads.arrays.get(name)
    return None if values is None else values[place].as_py()


def _changed(column: Column, changes: Mapping[int, Any]) -> Column:
    try:
        return column.with_values(changes)
    except NO_VALUE:  # the overlay checks values where they are written; by another table's types, perhaps
        fits = {place: value if _holds(column, value) else None for place, value in changes.items()}
        return column.with_values(fits)


def _holds(column: Column, value: Any) -> bool:
    try:
        column.with_values({0: value})
    except NO_VALUE:
        return False
    return True
