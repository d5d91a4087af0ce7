"""A version of an expansion table in memory, and its ads under an overlay. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from nearcast.ads.targeting import AdFilter, compile_ad_rules
from nearcast.serve.overlay_state import OverlayState
from nearcast.serve.table_version import TableVersion
from nearcast.table.ad_set import Ads, LiveAds, with_pauses, with_values, without_overlay
from nearcast.table.expansion_settings import AdSettings
from nearcast.table.item_links import ItemLinks
from nearcast.table.load_expansion import MOST_ITEMS_HELD, read_stored

__all__ = ["AdsTable", "AdsView", "apply_overlay", "read_table"]


@dataclass(frozen=True, slots=True, eq=False)
class AdsTable:
    """A version of an expansion table, its ads in memory."""

    version: TableVersion
    ads: Ads
    links: ItemLinks | None  # None if there are too many: they are looked up in the store
    settings: AdSettings
    eligible: AdFilter
    as_of: float  # seconds since 1970: older values of the overlay are in the table already


def read_table(version: TableVersion, eligible: AdFilter | None) -> AdsTable:
    """Read the ads of a version. Raises DamagedError if they do not fit the facts of the version."""
    what = f"{version.facts.generator} {version.snapshot}"
    stored = read_stored(version.reader, version.facts, what, most_items_held=MOST_ITEMS_HELD)
    if eligible is None:
        eligible = compile_ad_rules(stored.settings.targeting, stored.rules.rules, stored.rules.request)
    return AdsTable(version, stored.ads, stored.links, stored.settings, eligible, stored.as_of)


@dataclass(frozen=True, slots=True, eq=False)
class AdsView:
    """The ads of a table under an overlay, at one moment."""

    table: AdsTable
    overlay: OverlayState
    ads: LiveAds


def apply_overlay(table: AdsTable, overlay: OverlayState, before: AdsView | None, now: float) -> AdsView:
    """Return the ads of a table under an overlay.

    before: an earlier view. Only entries that differ from it are applied, since budgets change many times a second.
    """
    typed = overlay.convert(table.version.item_ids)
    if before is None or before.table is not table or before.ads.until <= now or typed is not overlay:
        ads = with_values(without_overlay(table.ads), {ad: _newer_values(table, typed, ad) for ad in typed.values}, now)
        return AdsView(table, overlay, with_pauses(ads, typed.tombstones, now))
    ads, changed = before.ads, _list_changes(before.overlay, overlay)
    if changed:
        ads = with_values(ads, {ad: _newer_values(table, overlay, ad) for ad in changed}, now)
    if any(overlay.tombstones.get(ad) != before.overlay.tombstones.get(ad) for ad in changed):
        ads = with_pauses(ads, overlay.tombstones, now)
    return AdsView(table, overlay, ads)


def _list_changes(before: OverlayState, now: OverlayState) -> Collection[str | int]:
    """Return the ads whose entries differ. The overlay lists them if `now` directly follows `before`."""
    if (now.epoch, now.previous_serial) == (before.epoch, before.serial):
        return now.changed_items
    known = {*before.values, *before.tombstones, *now.values, *now.tombstones}
    return [
        ad
        for ad in known
        if before.values.get(ad) != now.values.get(ad) or before.tombstones.get(ad) != now.tombstones.get(ad)
    ]


def _newer_values(table: AdsTable, overlay: OverlayState, ad: str | int) -> dict[str, tuple[Any, float]]:
    """Return the values of an ad that were written after the table was read from its source."""
    values = overlay.values.get(ad, {})
    return {name: (value, until) for name, (value, until, written) in values.items() if written > table.as_of}
