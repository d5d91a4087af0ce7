"""The ads of an expansion table in memory: ids and columns, as published and under an overlay.

`Ads` is a published version. `LiveAds` is a version under an overlay at one moment. Both are immutable. Knows
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
from nearcast.table.ad_columns import Column, missing_column, to_column
from nearcast.table.expansion_settings import Roles
from nearcast.types import IntArray

__all__ = ["Ads", "LiveAds", "ads_of", "with_pauses", "with_values", "without_overlay"]

INVALID_VALUE = (InputError, TypeError, ValueError, OverflowError)  # for example a list in a column of words
BoolArray = npt.NDArray[np.bool_]
Id = str | int


@dataclass(frozen=True, slots=True, eq=False)
class Ads:
    """n ads, in the order of their ids."""

    arrays: Mapping[str, pa.Array]  # (n,) every published column, with the ids
    ids: IntArray | None  # (n,) ascending; None for ids that are text
    positions_by_id: Mapping[Id, int]
    columns: Mapping[str, Column]  # the columns that conditions support

    def __len__(self) -> int:
        return len(self.positions_by_id)

    def ids_at(self, positions: IntArray) -> list[Any]:
        """Return the ids of some ads."""
        if self.ids is not None:
            return list(self.ids[positions].tolist())
        ids = self.arrays["id"]
        return [ids[position].as_py() for position in positions.tolist()]

    def positions(self, ids: pa.Array) -> IntArray:
        """Return (len(ids),) the positions of ads. Raises DamagedError for an unknown id."""
        if self.ids is None:
            found = np.fromiter((self.positions_by_id.get(ad, -1) for ad in ids.to_pylist()), np.int64, len(ids))
            if len(found) and found.min() < 0:
                raise DamagedError("a list of the expansion table holds an ad that the table does not have")
            return found
        values = ids.to_numpy(zero_copy_only=False)
        positions: IntArray = np.searchsorted(self.ids, values).astype(np.int64, copy=False)
        if len(values) and (positions.max() >= len(self.ids) or not np.array_equal(self.ids[positions], values)):
            raise DamagedError("a list of the expansion table holds an ad that the table does not have")
        return positions


@dataclass(frozen=True, slots=True, eq=False)
class LiveAds:
    """Ads under an overlay: paused ads and newer values."""

    ads: Ads
    columns: Mapping[str, Column]
    paused: BoolArray | None  # (n,); None if no ad is paused
    newer: SharingMap[int, Mapping[str, Any]] = field(default_factory=SharingMap)  # by position: newer values by column
    until: float = math.inf  # when the first entry of the overlay ends

    def rows(self, positions: IntArray, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return columns of some ads as plain values; None for null."""
        arrays = [(name, self.ads.arrays.get(name)) for name in names]
        rows = []
        for position in positions.tolist():
            # One by one, since `take` of Arrow is slower for a few rows.
            row = {name: None if array is None else array[position].as_py() for name, array in arrays}
            newer = self.newer.get(position)
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
    positions_by_id = {ad: position for position, ad in enumerate(ids.to_pylist())}
    arrays = {name: table.column(name).combine_chunks() for name in table.column_names}
    found = {name: to_column(values) for name, values in arrays.items() if name != "id" or id_column}
    columns = {name: column for name, column in found.items() if column is not None}
    for name, kind in _limit_columns(roles).items():
        if name not in arrays:
            columns[name] = missing_column(len(table), kind)
    return Ads(arrays, numbers, positions_by_id, columns)


def _limit_columns(roles: Roles | None) -> dict[str, str]:
    """Return the columns that limit an ad, and their kinds."""
    if roles is None:
        return {}
    return {roles.budget: "number", roles.spent: "number", roles.starts: "time", roles.ends: "time"}


def without_overlay(ads: Ads) -> LiveAds:
    """Return the ads without an overlay."""
    return LiveAds(ads, ads.columns, None)


def with_pauses(live: LiveAds, gone: Mapping[Id, float], now: float) -> LiveAds:
    """Return the ads with these paused, each until a time. gone: the time by id."""
    paused, until = np.zeros(len(live.ads), np.bool_), live.until
    for ad, end in gone.items():
        position = live.ads.positions_by_id.get(ad)
        if position is not None and end > now:
            paused[position] = True
            until = min(until, end)
    return replace(live, paused=paused if paused.any() else None, until=until)


def with_values(live: LiveAds, changes: Mapping[Id, Mapping[str, tuple[Any, float]]], now: float) -> LiveAds:
    """Return the ads with other newer values. changes: by id all newer values of an ad by column, each until a time.

    A value that its column cannot hold becomes null.
    """
    newer, until = live.newer.edit(), live.until  # a copy that shares unchanged parts
    cells: dict[str, dict[int, Any]] = {}
    for ad, values in changes.items():
        position = live.ads.positions_by_id.get(ad)
        if position is None:
            continue
        current = {name: (value, end) for name, (value, end) in values.items() if end > now}
        until = min([until, *(end for _, end in current.values())])
        before, after = newer.pop(position, {}), {name: value for name, (value, _) in current.items()}
        if after:
            newer[position] = after
        for name in {*before, *after} & live.columns.keys():
            cells.setdefault(name, {})[position] = (
                after[name] if name in after else _published_value(live.ads, name, position)
            )
    columns = dict(live.columns)
    for name, changed in cells.items():
        columns[name] = _replace_values(columns[name], changed)
    return replace(live, columns=columns, newer=newer.finish(), until=until)


def _published_value(ads: Ads, name: str, position: int) -> Any:
    values = ads.arrays.get(name)
    return None if values is None else values[position].as_py()


def _replace_values(column: Column, changes: Mapping[int, Any]) -> Column:
    try:
        return column.with_values(changes)
    except INVALID_VALUE:  # the value was checked against the types of another version
        fits = {position: value if _can_hold(column, value) else None for position, value in changes.items()}
        return column.with_values(fits)


def _can_hold(column: Column, value: Any) -> bool:
    try:
        column.with_values({0: value})
    except INVALID_VALUE:
        return False
    return True
