"""Publish an expansion table: write it whole beside the one that is current, read it back, and move the pointer.

Small and often, where a snapshot is large and rare: no audit, and no folder of its own. What an overlay said of an ad
before the table was read from its source is forgotten; ads that are paused stay so.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import DamagedError, InputError, NotFoundError, StoreError
from nearcast.publishing.compact_overlay import CLOCK_SKEW_SECONDS, compact_overlay
from nearcast.publishing.repair import find_last_facts, read_pointer, repair_damaged_overlay
from nearcast.publishing.retention import retire_versions
from nearcast.publishing.write_version import add_checksum, open_writer, verify_version
from nearcast.sources.parquet_files import open_parquet
from nearcast.sources.user_files import UserFile
from nearcast.stores.base import Pointer, PointerEvent, PublishLock, Space, Store, Writer, store_time
from nearcast.stores.value_format import encode_items, encode_keys, encode_lists, id_kind, id_type
from nearcast.stores.version_facts import EXPANSION, FACTS_FORMAT, VersionFacts, read_facts
from nearcast.table.ad_columns import seconds_of_time
from nearcast.table.expansion_checks import check_settings, check_values
from nearcast.table.expansion_schema import convert_columns
from nearcast.table.expansion_settings import AdSettings, ExpansionSpec
from nearcast.times import format_utc, parse_utc
from nearcast.types import no_progress

__all__ = ["Expanded", "expand_files", "publish_expansion"]

SAME_MOMENT_SECONDS = 1.0  # a time that a caller has just read from its own clock is not yet to come


Moment = float | str | datetime


@dataclass(frozen=True, slots=True)
class Targeted:
    """Whom the ads are for by one column that targeting looks at."""

    column: str
    everybody: int  # ads without a value: they are for everybody
    nobody: int  # ads with an empty list: they are for nobody


@dataclass(frozen=True, slots=True)
class Expanded:
    """What was published."""

    name: str
    store: str
    version: int
    previous: int | None
    items: int  # that have ads
    ads: int
    links: int
    links_left_out: int  # of ads that are not among the ads
    bytes: int
    seconds: float
    overlay_entries_cut: int
    as_of: float  # seconds since 1970 when ads and links were read from their source
    targeting: tuple[Targeted, ...] = ()
    notes: tuple[str, ...] = ()  # what is worth a line, such as files that were skipped

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def publish_expansion(
    store: Store,
    name: str,
    ads: pa.Table,
    links: pa.Table,
    settings: AdSettings | None = None,
    *,
    ad_id: str = "ad",
    link_item: str = "item",
    link_ad: str = "ad",
    as_of: Moment | None = None,
    changed: int | None = None,
    keep: int = 3,
    repair: bool = False,
) -> Expanded:
    """Make a table of ads, and of the items that each is promoted for, current in a store.

    ads: a row per ad, with the column `ad_id` and any others. links: a row per item and ad; a pair may be there twice.
    as_of: when both were read from their source: seconds since 1970, a datetime or ISO 8601; now by default, by the
    store's clock. What the overlay said of an ad before that, the table knows itself.
    changed: when the source was last changed, in nanoseconds by the clock of whoever wrote it. The same one again is
    the same export, and as of what it was: so a clock that is ahead does not make it newer than the overlay.
    keep: versions that stay, 2 or more.
    repair: do without a pointer, a current version or an overlay that cannot be read.
    Raises InputError for tables that do not fit, BusyError while another process publishes it, StoreError, DamagedError
    where the store gives back other bytes; then nothing has changed for readers.
    """
    started = time.perf_counter()
    settings = settings or AdSettings()
    if keep < 2:
        raise InputError(f"keep is {keep}: readers need the version before until they have read the new one; keep 2")
    read_at = _moment(as_of, store_time(store))
    ads = _ads(ads, ad_id, settings)
    pairs, left_out = _pairs(links, ads, link_item, link_ad)
    with store.lock(name) as held:
        notes: list[str] = []
        if repair:
            repair_damaged_overlay(store, name, notes)
        pointer = read_pointer(store, name, notes, repair=repair)
        before = find_last_facts(store, name, pointer, notes, repair=repair)
        _check_kind(store, name, before)
        known = before.as_of if before else None
        if before and known and changed is not None and before.source_changed == changed:
            read_at = min(read_at, parse_utc(known))
        notes += _notes_of_order(known, read_at)
        version = max([*store.versions(name), pointer.version if pointer else 0]) + 1
        facts = _make_facts(name, version, ads, pairs, settings, read_at, changed)
        written = _write(store, name, version, ads, pairs, facts)
        moved = _point(store, name, version, pointer, held)
        cut = 0
        try:
            cut = _cut_overlay(store, name)
        except (DamagedError, NotFoundError, StoreError) as error:  # what is over can be cut another time
            notes.append(f"the overlay is not cut back: {error}")
        retire_versions(store, name, moved, keep)
    return Expanded(
        name=name,
        store=store.url,
        version=version,
        previous=pointer.version if pointer else None,
        items=len(pairs.items),
        ads=len(ads),
        links=len(pairs.ads),
        links_left_out=left_out,
        bytes=written,
        seconds=time.perf_counter() - started,
        overlay_entries_cut=cut,
        as_of=read_at,
        targeting=_targets_told(ads, settings),
        notes=tuple(notes),
    )


def expand_files(
    spec: ExpansionSpec, base: Path, store: Store, *, as_of: Moment | None = None, repair: bool = False
) -> Expanded:
    """Publish what the Parquet files of a spec hold now; its paths are relative to `base`.

    as_of: when they were exported; by default when the oldest of them was last changed, so that an export that is
    published twice does not undo what the overlay has said since.
    """
    ads, links, changed, notes = _read_together(spec, base)
    done = publish_expansion(
        store,
        spec.name,
        ads,
        links,
        spec.serve,
        ad_id=spec.ads.id,
        link_item=spec.links.item,
        link_ad=spec.links.ad,
        as_of=_not_after(changed, store_time(store)) if as_of is None else as_of,
        changed=changed.state.mtime_ns if as_of is None else None,
        keep=spec.keep,
        repair=repair,
    )
    return replace(done, notes=(*notes, *done.notes))


def _read_together(spec: ExpansionSpec, base: Path) -> tuple[pa.Table, pa.Table, UserFile, tuple[str, ...]]:
    """Ads and links in one state of both, the file that was changed first, and which files were skipped.

    InputError where a file changes before the last one is read.
    """
    way_out = "check `path` (it is relative to the spec's own folder)"
    ads = open_parquet(spec.ads.path, base, "[ads] path", way_out)
    links = open_parquet(spec.links.path, base, "[links] path", way_out)
    tables = ads.read(), links.read()
    ads.check()
    files = (*ads.listing.files, *links.listing.files)
    return *tables, min(files, key=lambda file: file.state.mtime_ns), (*ads.notes, *links.notes)


def _not_after(file: UserFile, now: float) -> float:
    """When a file was changed; now where clocks differ a little. InputError for a time that is yet to come."""
    changed = file.state.mtime_ns / 1e9
    if changed > now + CLOCK_SKEW_SECONDS:
        raise InputError(
            f"{file.name} was last changed at {format_utc(changed)}, which is yet to come: the clock of whoever wrote "
            f"it is wrong (here it is {format_utc(now)}); say when it was exported with --as-of"
        )
    return min(changed, now)


def _moment(as_of: Moment | None, now: float) -> float:
    """A time as seconds since 1970: the present for None. InputError for what is no time, or is yet to come."""
    if as_of is None:
        return now
    seconds = seconds_of_time(as_of)
    if not math.isfinite(seconds) or seconds < 0:
        raise InputError(f"as_of is {as_of!r}, which is no time; write it like 2026-12-31T18:00:00Z")
    if seconds > now + SAME_MOMENT_SECONDS:
        raise InputError(
            f"as_of is {as_of!r}, which is yet to come: now is {format_utc(now)}; times without a zone are UTC"
        )
    return min(seconds, now)


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Items that have ads, ascending; the ads of item i are ads[offsets[i]:offsets[i + 1]]."""

    items: pa.Array
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    ads: pa.Array


def _ads(ads: pa.Table, ad_id: str, settings: AdSettings) -> pa.Table:
    """The ads as a store keeps them: their id first and called `id`, ascending."""
    if ad_id not in ads.column_names:
        raise InputError(f"the ads have no column {ad_id!r}; they have {', '.join(ads.column_names)}")
    if ads.column_names.count(ad_id) > 1:
        raise InputError(f"the ads have several columns called {ad_id!r}; rename all but one")
    ids = _ids(ads.column(ad_id), "ads", ad_id)
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


def _targets_told(ads: pa.Table, settings: AdSettings) -> tuple[Targeted, ...]:
    """How many ads are for everybody and for nobody, by each column that targeting looks at."""
    told = []
    for name in dict.fromkeys(target.column for target in settings.targeting):
        column = ads.column(name)
        empty = pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() if pa.types.is_list(column.type) else 0
        told.append(Targeted(name, column.null_count, empty or 0))
    return tuple(told)


def _ids(column: pa.ChunkedArray, what: str, name: str) -> pa.Array:
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


def _pairs(links: pa.Table, ads: pa.Table, link_item: str, link_ad: str) -> tuple[_Pairs, int]:
    for name in (link_item, link_ad):
        if name not in links.column_names:
            raise InputError(f"the links have no column {name!r}; they have {', '.join(links.column_names)}")
        if links.column_names.count(name) > 1:
            raise InputError(f"the links have several columns called {name!r}; rename all but one")
    items, linked = _ids(links.column(link_item), "links", link_item), _ids(links.column(link_ad), "links", link_ad)
    known = ads.column("id").combine_chunks()
    if linked.type != known.type:
        raise InputError(f"ads are {id_type(known.type)} in the ads, and {id_type(linked.type)} in the links")
    pairs = pa.table({"item": items, "ad": linked})
    held = pairs.filter(pc.is_in(linked, value_set=known))
    distinct = held.group_by(["item", "ad"]).aggregate([]).sort_by([("item", "ascending"), ("ad", "ascending")])
    if len(distinct) == 0:
        raise InputError(f"none of {len(pairs):,} links is of one of {len(ads):,} ads; nothing would be promoted")
    of_items = distinct.column("item").combine_chunks().dictionary_encode()  # in order of appearance: ascending
    counts = np.bincount(of_items.indices.to_numpy(zero_copy_only=False), minlength=len(of_items.dictionary))
    offsets = np.append(0, np.cumsum(counts)).astype(np.int64)
    return _Pairs(of_items.dictionary, offsets, distinct.column("ad").combine_chunks()), len(pairs) - len(held)


def _check_kind(store: Store, name: str, facts: VersionFacts | None) -> None:
    """InputError where the name is a generator's: its snapshots must not be followed by a table of ads."""
    if facts is None or facts.is_expansion:
        return
    what = "a generator" if facts.kind is None else f"a {facts.kind}"
    raise InputError(f"{name!r} is {what} in {store.url}; give the expansion table another name")


def _notes_of_order(known: str | None, read_at: float) -> list[str]:
    """A line where an export is older than the one that is current."""
    if known is None or parse_utc(known) <= read_at + 1e-5:
        return []
    return [f"this export is older than the one that was current, which is as of {format_utc(parse_utc(known))}"]


def _write(store: Store, name: str, version: int, ads: pa.Table, pairs: _Pairs, facts: VersionFacts) -> int:
    with open_writer(store, name, version) as writer:
        sums, size = _copy(writer, ads, pairs)
        writer.finish(replace(facts, checksum=sums, payload_bytes=size).to_json())
    where = f"version {version:06d} of {name} in {store.url}"
    try:
        verify_version(store, name, version, where, no_progress)
    except BaseException:
        store.retire(name, version)
        raise
    return size


def _copy(writer: Writer, ads: pa.Table, pairs: _Pairs) -> tuple[dict[str, int], int]:
    """Put lists and ads in the order of their keys. Returns the checksum of each space, and the bytes of both."""
    scores = pa.array(np.ones(len(pairs.ads), np.float32))
    offsets = pa.array(pairs.offsets.astype(np.int32))
    lists = encode_lists(
        pa.ListArray.from_arrays(offsets, pairs.ads),
        pa.ListArray.from_arrays(offsets, scores),
        [None] * len(pairs.items),
        id_kind(pairs.ads),
    )
    sums: dict[str, int] = {}
    size = 0
    rows = {Space.LISTS: (pairs.items, lists), Space.ITEMS: (ads.column("id").combine_chunks(), encode_items(ads))}
    for space, (ids, values) in rows.items():
        some = sorted(zip(encode_keys(ids), values, strict=True))
        writer.put(space, some)
        sums[space] = add_checksum(0, [key for key, _ in some], [value for _, value in some])
        size += sum(len(key) + len(value) for key, value in some)
    return sums, size


def _make_facts(
    name: str, version: int, ads: pa.Table, pairs: _Pairs, settings: AdSettings, as_of: float, changed: int | None
) -> VersionFacts:
    return VersionFacts(
        format=FACTS_FORMAT,
        kind=EXPANSION,
        generator=name,
        version=version,
        snapshot=f"{version:06d}",
        started=format_utc(as_of),
        created=format_utc(as_of),
        as_of=_exact(as_of),
        published=format_utc(time.time()),
        query_ids=id_type(pairs.items.type),
        item_ids=id_type(pairs.ads.type),
        id_kind=id_kind(pairs.ads),
        keys=len(pairs.items),
        items=len(ads),
        links=len(pairs.ads),
        k=int(np.diff(pairs.offsets).max()),
        columns={field.name: str(field.type) for field in ads.schema if field.name != "id"},
        expansion=settings.model_dump(mode="json"),
        read_back=True,  # before it became current, by a reader's own code
        source_changed=changed,
    )


def _exact(seconds: float) -> str:
    """A time to the microsecond: an overlay may be written in the same second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _point(store: Store, name: str, version: int, pointer: Pointer | None, held: PublishLock) -> Pointer:
    event = PointerEvent("published", version, format_utc(time.time()))
    moved = (pointer or Pointer(version=0, serial=0)).moved(event, pointer.withdrawn if pointer else ())
    store.point(name, moved, held)
    return moved


def _cut_overlay(store: Store, name: str) -> int:
    """Forget what every version that is kept knows itself: values older than all of them, and what is over."""
    versions = store.versions(name)
    cut = compact_overlay(store, name, versions, now=store_time(store))
    oldest = min(_as_of(store, name, version) for version in versions)
    log = store.overlay(name)
    seen = log.changes()
    stale = [e.key() for e in seen.entries if e.field is not None and e.written < oldest - CLOCK_SKEW_SECONDS]
    if stale:
        log.purge(stale, upto=seen.serial)
    return cut + len(stale)


def _as_of(store: Store, name: str, version: int) -> float:
    try:
        with contextlib.closing(store.open(name, version, verify=False)) as reader:
            known = read_facts(reader, name, version).as_of
            return -math.inf if known is None else parse_utc(known)  # of a version that does not say, all is newer
    except NotFoundError:  # taken away meanwhile
        return float("inf")
