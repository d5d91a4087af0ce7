"""Read a version of an expansion table from a store into memory, in pieces, so that requests run in between.

Publishing reads a version back with this code, so a version that readers cannot open never becomes current.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import numpy as np
import pyarrow as pa

from nearcast.errors import DamagedError, GoneError, NearcastError, StoreError
from nearcast.spec import parse_model
from nearcast.stores.base import Reader, Space
from nearcast.stores.value_format import decode_integer_keys, decode_lists
from nearcast.stores.version_facts import VersionFacts
from nearcast.table.ad_set import Ads, ads_of
from nearcast.table.expansion_schema import AdRuleTypes, parse_ad_rules
from nearcast.table.expansion_settings import AdSettings
from nearcast.table.item_links import ItemLinks, build_links

__all__ = ["MOST_ITEMS_HELD", "StoredAds", "read_stored"]

ROWS_AT_ONCE = 1 << 12
LISTS_AT_ONCE = 1 << 10
MOST_ITEMS_HELD = 2_000_000  # largest number of items whose links are in memory, about 300 MB; others are looked up


@dataclass(frozen=True, slots=True, eq=False)
class StoredAds:
    """A version of an expansion table, its ads in memory."""

    ads: Ads
    links: ItemLinks | None  # None if there are too many: they are looked up in the store
    settings: AdSettings
    rules: AdRuleTypes
    as_of: float  # seconds since 1970: when the source was read


def read_stored(reader: Reader, facts: VersionFacts, what: str, *, most_items_held: int = MOST_ITEMS_HELD) -> StoredAds:
    """Read the ads and links of a version. what: its name in errors, for example "ads 000007".

    Raises DamagedError if it cannot be read.
    """
    try:
        if facts.expansion is None or facts.as_of is None:
            raise ValueError("its facts have no 'expansion' or no 'as_of'")
        settings = parse_model(AdSettings, facts.expansion, f"the settings of {what}")
        schema = _make_schema(facts)
        parts = [_parse_rows(rows, schema) for rows in _read_rows(reader)]
        table = pa.concat_tables(parts) if parts else schema.empty_table()
        rules = parse_ad_rules(settings, table.schema)
        ads = ads_of(table.sort_by("id"), settings.columns, id_column="id" in rules.columns)
        _check_columns(settings, rules, ads)
        as_of = datetime.fromisoformat(facts.as_of).timestamp()
        links = _read_links(reader, facts, ads) if facts.keys <= most_items_held else None
    except (StoreError, GoneError):
        raise
    except NearcastError as error:
        raise DamagedError(f"{what} cannot be read: {error}") from error
    except (pa.ArrowException, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DamagedError(f"the ads of {what} cannot be read: {error}") from error
    return StoredAds(ads, links, settings, rules, as_of)


def _check_columns(settings: AdSettings, rules: AdRuleTypes, ads: Ads) -> None:
    """Raise DamagedError if a condition names a column that the version does not have."""
    targets, caps = [target.column for target in settings.targeting], [n for n in settings.caps if n != "item"]
    for name in [*targets, *caps, *rules.columns]:
        if name not in ads.columns:
            raise DamagedError(f"its settings name {name!r}, which is no column that conditions support")


def _read_links(reader: Reader, facts: VersionFacts, ads: Ads) -> ItemLinks:
    """Read the ads of each item in pieces."""
    pairs = reader.pairs(Space.LISTS)
    numbers, texts, lengths, positions = [], [], [], []
    while some := list(islice(pairs, LISTS_AT_ONCE)):
        lists = decode_lists([value for _, value in some], facts.item_ids)
        keys = [key for key, _ in some]
        if facts.query_ids == "int64":
            numbers.append(decode_integer_keys(keys))
        else:
            texts += keys
        lengths.append(np.diff(lists.offsets))
        positions.append(ads.positions(lists.ids))
    nothing = np.empty(0, np.int64)
    items = np.concatenate([nothing, *numbers]) if facts.query_ids == "int64" else texts
    return build_links(items, np.concatenate([nothing, *lengths]), np.concatenate([nothing, *positions]))


def _make_schema(facts: VersionFacts) -> pa.Schema:
    columns = [pa.field(name, _arrow_type(text)) for name, text in facts.columns.items()]
    return pa.schema([pa.field("id", pa.int64() if facts.item_ids == "int64" else pa.string()), *columns])


def _arrow_type(text: str) -> pa.DataType:
    """Return the Arrow type as which the JSON of a column is read. text: the published Arrow type."""
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


def _read_rows(reader: Reader) -> Iterator[list[bytes]]:
    pairs = reader.pairs(Space.ITEMS)
    while rows := [value for _, value in islice(pairs, ROWS_AT_ONCE)]:
        yield rows


def _parse_rows(rows: list[bytes], schema: pa.Schema) -> pa.Table:
    """Parse JSON rows to a table with Arrow, which releases the GIL."""
    from pyarrow import json as arrow_json

    text = b"\n".join(rows)
    options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    reading = arrow_json.ReadOptions(use_threads=False, block_size=max(1 << 20, len(text) + 1))
    return arrow_json.read_json(io.BytesIO(text), reading, options).select(schema.names)
