"""Publish an expansion table: write a new version beside the current one, read it back, and move the pointer.

Expansion tables are small and published often, so they have no audit and no snapshot folder. Values of the overlay that
are older than the export are deleted; paused ads stay paused.
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

from nearcast.ads.ad_export import AdExport, ItemAds, Moment, group_links, prepare_ads, read_export, resolve_time
from nearcast.errors import DamagedError, InputError, NotFoundError, StoreError
from nearcast.publishing.compact_overlay import CLOCK_SKEW_SECONDS, compact_overlay
from nearcast.publishing.repair import find_last_facts, read_pointer, repair_damaged_overlay
from nearcast.publishing.retention import retire_versions
from nearcast.publishing.write_version import add_checksum, open_writer, verify_version
from nearcast.stores.base import Pointer, PointerEvent, PublishLock, Space, Store, Writer, store_time
from nearcast.stores.value_format import encode_items, encode_keys, encode_lists, id_kind, id_type
from nearcast.stores.version_facts import EXPANSION, FACTS_FORMAT, VersionFacts, read_facts
from nearcast.table.expansion_settings import AdSettings, ExpansionSpec
from nearcast.times import format_utc, parse_utc
from nearcast.types import no_progress

__all__ = ["ExpansionReport", "expand_files", "publish_expansion", "publish_export"]


@dataclass(frozen=True, slots=True)
class TargetCounts:
    """The number of ads that match every request, and no request, by one column of the targets."""

    column: str
    everybody: int  # ads with a null column
    nobody: int  # ads with an empty list


@dataclass(frozen=True, slots=True)
class ExpansionReport:
    """The published version of an expansion table, and its counts."""

    name: str
    store: str
    version: int
    previous: int | None
    items: int  # with ads
    ads: int
    links: int
    links_left_out: int  # because their ad is not among the ads
    bytes: int
    seconds: float
    overlay_entries_cut: int
    as_of: float  # seconds since 1970 when ads and links were read from their source
    targeting: tuple[TargetCounts, ...] = ()
    notes: tuple[str, ...] = ()  # messages for the user, for example on skipped files

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def publish_expansion(
    store: Store,
    name: str,
    ads: pa.Table,
    links: pa.Table,
    settings: AdSettings | None = None,
    *,
    as_of: Moment | None = None,
    keep: int = 3,
) -> ExpansionReport:
    """Publish tables in memory, with the columns `ad`, and `item` and `ad` for links; see `publish_export`."""
    return publish_export(store, name, AdExport(ads, links, as_of=as_of), settings, keep=keep)


def publish_export(
    store: Store,
    name: str,
    export: AdExport,
    settings: AdSettings | None = None,
    *,
    keep: int = 3,
    repair: bool = False,
) -> ExpansionReport:
    """Write an export as a new version of an expansion table, and make the version current.

    keep: number of versions to keep, 2 or more. repair: continue without a pointer, a current version or an overlay
    that cannot be read.
    Raises InputError for tables that do not fit, SpecError for a wrong rule, BusyError while another process publishes
    the table, StoreError, and DamagedError if the store returns other bytes. After an error, readers see no change.
    """
    started = time.perf_counter()
    settings = settings or AdSettings()
    if keep < 2:
        raise InputError(f"keep is {keep}: readers need the version before until they have read the new one; keep 2")
    read_at = resolve_time(export.as_of, store_time(store))
    ads = prepare_ads(export, settings)
    pairs, left_out = group_links(export, ads)
    with store.lock(name) as lock:
        notes: list[str] = []
        if repair:
            repair_damaged_overlay(store, name, notes)
        pointer = read_pointer(store, name, notes, repair=repair)
        before = find_last_facts(store, name, pointer, notes, repair=repair)
        _check_kind(store, name, before)
        known = before.as_of if before else None
        if before and known and export.changed is not None and before.source_changed == export.changed:
            read_at = min(read_at, parse_utc(known))
        notes += _note_older_export(known, read_at)
        version = max([*store.versions(name), pointer.version if pointer else 0]) + 1
        facts = _make_facts(name, version, ads, pairs, settings, read_at, export.changed)
        written = _write(store, name, version, ads, pairs, facts)
        moved = _move_pointer(store, name, version, pointer, lock)
        cut = 0
        try:
            cut = _compact_overlay(store, name)
        except (DamagedError, NotFoundError, StoreError) as error:  # the next publication can compact it
            notes.append(f"the overlay is not compacted: {error}")
        retire_versions(store, name, moved, keep)
    return ExpansionReport(
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
        targeting=_count_targets(ads, settings),
        notes=tuple(notes),
    )


def expand_files(
    spec: ExpansionSpec, base: Path, store: Store, *, as_of: Moment | None = None, repair: bool = False
) -> ExpansionReport:
    """Publish the Parquet files of a spec, see `ad_export.read_export` and `publish_export`."""
    export, notes = read_export(spec, base, store_time(store), as_of)
    report = publish_export(store, spec.name, export, spec.serve, keep=spec.keep, repair=repair)
    return replace(report, notes=(*notes, *report.notes))


def _count_targets(ads: pa.Table, settings: AdSettings) -> tuple[TargetCounts, ...]:
    """Count the ads that match every request, and no request, by each column of the targets."""
    counts = []
    for name in dict.fromkeys(target.column for target in settings.targeting):
        column = ads.column(name)
        empty = pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() if pa.types.is_list(column.type) else 0
        counts.append(TargetCounts(name, column.null_count, empty or 0))
    return tuple(counts)


def _check_kind(store: Store, name: str, facts: VersionFacts | None) -> None:
    """Raise InputError if the name is a generator's: its snapshots must not be followed by a table of ads."""
    if facts is None or facts.is_expansion:
        return
    what = "a generator" if facts.kind is None else f"a {facts.kind}"
    raise InputError(f"{name!r} is {what} in {store.url}; give the expansion table another name")


def _note_older_export(known: str | None, read_at: float) -> list[str]:
    """Return a note if the export is older than the current one."""
    if known is None or parse_utc(known) <= read_at + 1e-5:
        return []
    return [f"this export is older than the one that was current, which is as of {format_utc(parse_utc(known))}"]


def _write(store: Store, name: str, version: int, ads: pa.Table, pairs: ItemAds, facts: VersionFacts) -> int:
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


def _copy(writer: Writer, ads: pa.Table, pairs: ItemAds) -> tuple[dict[str, int], int]:
    """Write lists and ads in the order of their keys. Return the checksum of each space, and the bytes of both."""
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
    name: str, version: int, ads: pa.Table, pairs: ItemAds, settings: AdSettings, as_of: float, changed: int | None
) -> VersionFacts:
    return VersionFacts(
        format=FACTS_FORMAT,
        kind=EXPANSION,
        generator=name,
        version=version,
        snapshot=f"{version:06d}",
        started=format_utc(as_of),
        created=format_utc(as_of),
        as_of=_format_exact(as_of),
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
        read_back=True,  # before it became current, with the reader's code
        source_changed=changed,
    )


def _format_exact(seconds: float) -> str:
    """Return a time to the microsecond, since an overlay may be written in the same second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _move_pointer(store: Store, name: str, version: int, pointer: Pointer | None, lock: PublishLock) -> Pointer:
    event = PointerEvent("published", version, format_utc(time.time()))
    moved = (pointer or Pointer(version=0, serial=0)).move(event, pointer.withdrawn if pointer else ())
    store.point(name, moved, lock)
    return moved


def _compact_overlay(store: Store, name: str) -> int:
    """Delete entries that have ended, and values older than all kept versions. Return the number of entries."""
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
            return -math.inf if known is None else parse_utc(known)  # without `as_of`, every value is newer
    except NotFoundError:  # deleted meanwhile
        return float("inf")
