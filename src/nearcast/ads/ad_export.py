"""An export of ads and links: read from Parquet files, validated, and converted to the types that a store keeps.

Knows nothing of stores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.publishing.compact_overlay import CLOCK_SKEW_SECONDS
from nearcast.sources.parquet_files import open_parquet
from nearcast.sources.user_files import UserFile
from nearcast.stores.value_format import id_type
from nearcast.table.ad_columns import to_seconds
from nearcast.table.expansion_checks import check_settings, check_values
from nearcast.table.expansion_schema import convert_columns
from nearcast.table.expansion_settings import AdSettings, ExpansionSpec
from nearcast.times import format_utc

__all__ = ["AdExport", "ItemAds", "Moment", "group_links", "prepare_ads", "read_export", "resolve_time"]

CLOCK_TOLERANCE_SECONDS = 1.0  # a time that a caller has just read from its own clock is not in the future

Moment = float | str | datetime  # seconds since 1970, ISO 8601 or a datetime


@dataclass(frozen=True, slots=True, eq=False)
class AdExport:
    """Ads and links of one export."""

    ads: pa.Table  # a row per ad
    links: pa.Table  # a row per item and ad; a pair may occur twice
    ad_id: str = "ad"  # column of the ads
    link_item: str = "item"  # columns of the links
    link_ad: str = "ad"
    as_of: Moment | None = None  # when the source was read; None: now. It holds all older values of the overlay
    # When the source was last changed, in nanoseconds by the clock of its writer. The same number means the same
    # export, which keeps its `as_of`: a clock that is ahead does not make it newer than the overlay.
    changed: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ItemAds:
    """The ads of each item: item i, in ascending order, has ads[offsets[i]:offsets[i + 1]]."""

    items: pa.Array
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    ads: pa.Array


def read_export(
    spec: ExpansionSpec, base: Path, now: float, as_of: Moment | None = None
) -> tuple[AdExport, tuple[str, ...]]:
    """Read the Parquet files of a spec, and return the export and notes about skipped files.

    base: the folder that paths are relative to. as_of: when the files were exported. Default: when the oldest file was
    last changed, so that publishing an export twice does not undo later values of the overlay.
    Raises InputError if a file changes before the last one is read.
    """
    fix = "check `path` (it is relative to the spec's own folder)"
    ads = open_parquet(spec.ads.path, base, "[ads] path", fix)
    links = open_parquet(spec.links.path, base, "[links] path", fix)
    tables = ads.read(), links.read()
    ads.check()
    oldest = min((*ads.listing.files, *links.listing.files), key=lambda file: file.mtime_ns)
    export = AdExport(
        *tables,
        ad_id=spec.ads.id,
        link_item=spec.links.item,
        link_ad=spec.links.ad,
        as_of=_time_of_change(oldest, now) if as_of is None else as_of,
        changed=oldest.mtime_ns if as_of is None else None,
    )
    return export, (*ads.notes, *links.notes)


def _time_of_change(file: UserFile, now: float) -> float:
    """Return when a file was changed, at most now. Raises InputError for a time in the future."""
    changed = file.mtime_ns / 1e9
    if changed > now + CLOCK_SKEW_SECONDS:
        raise InputError(
            f"{file.name} was last changed at {format_utc(changed)}, which is yet to come: the clock of its writer is "
            f"wrong (here it is {format_utc(now)}); set the time of the export with --as-of"
        )
    return min(changed, now)


def resolve_time(as_of: Moment | None, now: float) -> float:
    """Return a time as seconds since 1970; now for None. Raises InputError for an invalid time or one in the future."""
    if as_of is None:
        return now
    seconds = to_seconds(as_of)
    if not math.isfinite(seconds) or seconds < 0:
        raise InputError(f"as_of is {as_of!r}, which is no time; write it like 2026-12-31T18:00:00Z")
    if seconds > now + CLOCK_TOLERANCE_SECONDS:
        raise InputError(
            f"as_of is {as_of!r}, which is yet to come: now is {format_utc(now)}; times without a zone are UTC"
        )
    return min(seconds, now)


def prepare_ads(export: AdExport, settings: AdSettings) -> pa.Table:
    """Return the ads as a store keeps them: the column `id` first and ascending.

    Raises InputError for columns or values that do not fit the settings, SpecError for a wrong rule.
    """
    ads, ad_id = export.ads, export.ad_id
    if ad_id not in ads.column_names:
        raise InputError(f"the ads have no column {ad_id!r}; they have {', '.join(ads.column_names)}")
    if ads.column_names.count(ad_id) > 1:
        raise InputError(f"the ads have several columns called {ad_id!r}; rename all but one")
    ids = _read_ids(ads.column(ad_id), "ads", ad_id)
    rest = ads.drop_columns([ad_id])
    if "id" in rest.column_names:
        raise InputError("a column of the ads is called 'id', which is the name of an ad's own id; rename it")
    check_settings(settings, {field.name: field.type for field in rest.schema})
    table = convert_columns(rest, settings).add_column(0, "id", ids) if rest.num_columns else pa.table({"id": ids})
    check_values(table, settings)
    table = table.sort_by("id").combine_chunks()
    if len(pc.unique(table.column("id"))) < len(table):
        counts = table.group_by("id").aggregate([("id", "count")])
        twice = counts.filter(pc.greater(counts.column("id_count"), 1)).column("id")[0].as_py()
        raise InputError(f"{twice!r} is the id of several ads; an ad has one row")
    return table


def _read_ids(column: pa.ChunkedArray, what: str, name: str) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (pa.types.is_integer(kind) or texts):
        raise InputError(f"{name} of the {what} is of type {kind}; ids are whole numbers or text")
    if column.null_count:
        raise InputError(f"{name} of the {what} is missing in {column.null_count:,} rows; every row needs one")
    try:
        ids = column.cast(kind).cast(pa.string() if texts else pa.int64()).combine_chunks()
        ids.validate(full=True)
    except pa.ArrowException as error:
        raise InputError(f"{name} of the {what} holds an id that cannot be one: {error}") from error
    return ids


def group_links(export: AdExport, ads: pa.Table) -> tuple[ItemAds, int]:
    """Return the ads of each item, and the number of links whose ad is not among the ads; these are left out."""
    links, link_item, link_ad = export.links, export.link_item, export.link_ad
    for name in (link_item, link_ad):
        if name not in links.column_names:
            raise InputError(f"the links have no column {name!r}; they have {', '.join(links.column_names)}")
        if links.column_names.count(name) > 1:
            raise InputError(f"the links have several columns called {name!r}; rename all but one")
    items, linked = (
        _read_ids(links.column(link_item), "links", link_item),
        _read_ids(links.column(link_ad), "links", link_ad),
    )
    known = ads.column("id").combine_chunks()
    if linked.type != known.type:
        raise InputError(f"ads are {id_type(known.type)} in the ads, and {id_type(linked.type)} in the links")
    pairs = pa.table({"item": items, "ad": linked})
    kept = pairs.filter(pc.is_in(linked, value_set=known))
    distinct = kept.group_by(["item", "ad"]).aggregate([]).sort_by([("item", "ascending"), ("ad", "ascending")])
    if len(distinct) == 0:
        raise InputError(f"none of {len(pairs):,} links is of one of {len(ads):,} ads; nothing would be promoted")
    by_item = distinct.column("item").combine_chunks().dictionary_encode()  # in order of appearance, which is ascending
    counts = np.bincount(by_item.indices.to_numpy(zero_copy_only=False), minlength=len(by_item.dictionary))
    offsets = np.append(0, np.cumsum(counts)).astype(np.int64)
    return ItemAds(by_item.dictionary, offsets, distinct.column("ad").combine_chunks()), len(pairs) - len(kept)
