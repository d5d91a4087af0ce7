"""Reading a version of an expansion table into memory, and what an overlay says of its ads. Knows nothing of calls."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.errors import DamagedError
from nearcast.expansion.ads import Ads, LiveAds, ads_of, unchanged, with_pauses, with_values
from nearcast.expansion.links import Links, links_of
from nearcast.expansion.settings import KIND, Serving
from nearcast.expansion.targeting import Eligible, Targets
from nearcast.serve.overlay_state import OverlayState
from nearcast.serve.view import Version
from nearcast.spec import parse_model
from nearcast.stores.base import Space
from nearcast.stores.values import decode_lists, numbers_of_keys

__all__ = ["AdsTable", "Live", "is_expansion", "read_table", "under_overlay"]

ROWS_AT_ONCE = 1 << 12  # so that requests have their turn while a large table is read
LISTS_AT_ONCE = 1 << 10
MOST_ITEMS_HELD = 2_000_000  # with ads: what each has is held in memory, some 300 MB at most; of more it is looked up


@dataclass(frozen=True, slots=True, eq=False)
class AdsTable:
    """A version of an expansion table, its ads in memory."""

    version: Version
    ads: Ads
    links: Links | None  # None where there are too many to be held
    settings: Serving
    eligible: Eligible
    as_of: float  # seconds since 1970: what an overlay said of a column before that, the table knows itself


def is_expansion(facts: Mapping[str, Any]) -> bool:
    """Whether a version with these facts is one of an expansion table."""
    return facts.get("kind") == KIND


def read_table(version: Version, eligible: Eligible | None) -> AdsTable:
    """Read the ads of a version. DamagedError where they are not what their facts say."""
    facts = version.facts
    settings = parse_model(Serving, facts["expansion"], f"the settings of {facts['generator']} {version.snapshot}")
    schema = _schema(facts, version.item_ids)
    try:
        parts = [_parsed(rows, schema) for rows in _rows(version)]
        table = pa.concat_tables(parts) if parts else schema.empty_table()
        ads = ads_of(table.sort_by("id"))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DamagedError(f"the ads of {facts['generator']} {version.snapshot} cannot be read: {error}") from error
    as_of = datetime.fromisoformat(facts["as_of"]).timestamp()
    links = _read_links(version, ads) if facts["keys"] <= MOST_ITEMS_HELD else None
    return AdsTable(version, ads, links, settings, eligible or Targets(settings.targeting), as_of)


def _read_links(version: Version, ads: Ads) -> Links:
    """Which ads each item has, read piece by piece."""
    pairs = version.reader.pairs(Space.LISTS)
    numbers, texts, lengths, positions = [], [], [], []
    while some := list(islice(pairs, LISTS_AT_ONCE)):
        lists = decode_lists([value for _, value in some], version.item_ids)
        keys = [key for key, _ in some]
        if version.query_ids == "int64":
            numbers.append(numbers_of_keys(keys))
        else:
            texts += keys
        lengths.append(np.diff(lists.offsets))
        positions.append(ads.positions(lists.ids))
    nothing = np.empty(0, np.int64)
    items = np.concatenate([nothing, *numbers]) if version.query_ids == "int64" else texts
    return links_of(items, np.concatenate([nothing, *lengths]), np.concatenate([nothing, *positions]))


def _schema(facts: Mapping[str, Any], ids: str) -> pa.Schema:
    columns = [pa.field(name, _arrow_type(text)) for name, text in facts["columns"].items()]
    return pa.schema([pa.field("id", pa.int64() if ids == "int64" else pa.string()), *columns])


def _arrow_type(text: str) -> pa.DataType:
    """The type that JSON of a column of this Arrow type is read back as."""
    if text.startswith(("list", "large_list", "fixed_size_list")):
        return pa.list_(
            _arrow_type(text[text.index("<") + 1 : text.rindex(">")].split(": ", 1)[1].removesuffix(" not null"))
        )
    if text.startswith(("timestamp", "date")):
        return pa.timestamp("us")
    if text.startswith(("int", "uint")):
        return pa.int64()
    if text.startswith(("float", "double", "halffloat", "decimal")):
        return pa.float64()
    return pa.bool_() if text == "bool" else pa.string()


def _rows(version: Version) -> Iterator[list[bytes]]:
    pairs = version.reader.pairs(Space.ITEMS)
    while rows := [value for _, value in islice(pairs, ROWS_AT_ONCE)]:
        yield rows


def _parsed(rows: list[bytes], schema: pa.Schema) -> pa.Table:
    """JSON rows as a table: parsed by Arrow, without the interpreter's lock."""
    from pyarrow import json as arrow_json

    text = b"\n".join(rows)
    options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    reading = arrow_json.ReadOptions(use_threads=False, block_size=max(1 << 20, len(text) + 1))
    return arrow_json.read_json(io.BytesIO(text), reading, options).select(schema.names)


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """The ads of a table under an overlay."""

    table: AdsTable
    overlay: OverlayState
    ads: LiveAds


def under_overlay(table: AdsTable, overlay: OverlayState, before: Live | None, now: float) -> Live:
    """The ads of a table as an overlay has them now.

    before: the same as it was a moment ago. Only what is not in it is taken in: budgets change many times a second.
    """
    typed = overlay.typed(table.version.item_ids)
    if before is None or before.table is not table or before.ads.until <= now or typed is not overlay:
        ads = with_values(unchanged(table.ads), {ad: _newer(table, typed, ad) for ad in typed.values}, now)
        return Live(table, overlay, with_pauses(ads, typed.gone, now))
    ads, changed = before.ads, _changed(before.overlay, overlay)
    if changed:
        ads = with_values(ads, {ad: _newer(table, overlay, ad) for ad in changed}, now)
    if any(overlay.gone.get(ad) != before.overlay.gone.get(ad) for ad in changed):
        ads = with_pauses(ads, overlay.gone, now)
    return Live(table, overlay, ads)


def _changed(before: OverlayState, now: OverlayState) -> Collection[str | int]:
    """The ads whose entries differ; of the next state they are known, else all are compared."""
    if (now.epoch, now.after) == (before.epoch, before.serial):
        return now.touched
    known = {*before.values, *before.gone, *now.values, *now.gone}
    return [
        ad for ad in known if before.values.get(ad) != now.values.get(ad) or before.gone.get(ad) != now.gone.get(ad)
    ]


def _newer(table: AdsTable, overlay: OverlayState, ad: str | int) -> dict[str, tuple[Any, float]]:
    """The values of an ad that were written after the table was read from its source."""
    values = overlay.values.get(ad, {})
    return {name: (value, until) for name, (value, until, written) in values.items() if written > table.as_of}
