"""The ads of an expansion table in memory: their ids, their columns, and what an overlay says of them since.

`Ads` is a version as it was published. `LiveAds` is that and an overlay, at one moment; both never change. Knows
nothing of stores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import DamagedError, InputError
from nearcast.expansion.columns import Column, column_of
from nearcast.expansion.settings import Serving
from nearcast.types import IntArray

__all__ = ["Ads", "Change", "LiveAds", "ads_of", "check_settings", "under_changes"]

BoolArray = npt.NDArray[np.bool_]
Id = str | int
Change = tuple[Id, str | None, Any, float]  # ad, column (None: it is paused), value, until when (seconds since 1970)


@dataclass(frozen=True, slots=True, eq=False)
class Ads:
    """n ads, in the order of their ids."""

    table: pa.Table  # (n,) rows, in one chunk
    ids: IntArray | None  # (n,) ascending, where ids are numbers
    places: Mapping[Id, int]  # of each id
    columns: Mapping[str, Column]  # those that conditions can be asked of

    def __len__(self) -> int:
        return int(self.table.num_rows)

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
    newer: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # of a position: values by column
    until: float = math.inf  # when something in the overlay ends, and this is no longer true

    def row(self, position: int, names: Sequence[str]) -> dict[str, Any]:
        """These columns of one ad, as plain values."""
        newer, table = self.newer.get(position, {}), self.ads.table
        return {
            name: newer[name] if name in newer else table.column(name)[position].as_py() if name in table.column_names
            else None
            for name in names
        }  # fmt: skip


def ads_of(table: pa.Table) -> Ads:
    """A table of ads with the column `id`, in the order of ids."""
    table = table.combine_chunks()
    ids = table.column("id").combine_chunks()
    numbers = ids.to_numpy(zero_copy_only=False).astype(np.int64) if pa.types.is_integer(ids.type) else None
    places = {ad: place for place, ad in enumerate(ids.to_pylist())}
    found = {name: column_of(table.column(name).combine_chunks()) for name in table.column_names if name != "id"}
    return Ads(table, numbers, places, {name: column for name, column in found.items() if column is not None})


def under_changes(ads: Ads, changes: Iterable[Change], now: float) -> LiveAds:
    """The ads as these changes have them now. A value that its column cannot hold makes it a missing one."""
    paused: BoolArray | None = None
    newer: dict[int, dict[str, Any]] = {}
    until = math.inf
    for ad, name, value, end in changes:
        place = ads.places.get(ad)
        if place is None or end <= now:
            continue
        until = min(until, end)
        if name is None:
            paused = np.zeros(len(ads), np.bool_) if paused is None else paused
            paused[place] = True
        else:
            newer.setdefault(place, {})[name] = value
    columns = dict(ads.columns)
    for name in {name for values in newer.values() for name in values} & columns.keys():
        columns[name] = _changed(columns[name], {place: v[name] for place, v in newer.items() if name in v})
    return LiveAds(ads, columns, paused, newer, until)


def _changed(column: Column, changes: Mapping[int, Any]) -> Column:
    try:
        return column.with_values(changes)
    except InputError:  # the overlay checks values where they are written; by another table's types, perhaps
        fits = {place: value if _holds(column, value) else None for place, value in changes.items()}
        return column.with_values(fits)


def _holds(column: Column, value: Any) -> bool:
    try:
        column.with_values({0: value})
    except InputError:
        return False
    return True


def check_settings(serving: Serving, columns: Mapping[str, Column]) -> None:
    """InputError where the settings name a column for targeting or a cap that the ads do not have."""
    there = ", ".join(sorted(columns)) or "none"
    for name in [*(target.column for target in serving.targeting), *(n for n in serving.caps if n != "item")]:
        if name not in columns:
            raise InputError(f"the ads have no column {name!r} that conditions can be asked of; they have {there}")
    for target in serving.targeting:
        if (target.test in ("has", "overlaps")) != (columns[target.column].kind == "list"):
            kind = columns[target.column].kind
            raise InputError(
                f"targeting: {target.column} is a column of {kind}s, of which {target.test!r} cannot be asked"
            )
