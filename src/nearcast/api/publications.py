"""The verbs that decide what is served: publish a snapshot or a table, roll back, expand, and say what is published."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nearcast.ads.publish_expansion import ExpansionReport, expand_files
from nearcast.api.arguments import (
    OUT,
    SpecLike,
    StoreLike,
    open_target_store,
    report_failure,
    resolve_store_target,
    resolve_target,
)
from nearcast.errors import AuditError
from nearcast.history.record import record_failed_audit, record_publication
from nearcast.join.listener import Listener
from nearcast.publishing import publish as publishing
from nearcast.publishing import publish_table as weight_tables
from nearcast.publishing import rollback, store_listing
from nearcast.publishing.engagement import TOP, LogColumns, compute_weights
from nearcast.publishing.engagement import read_log as read_engagement
from nearcast.publishing.publication import PublishRequest
from nearcast.publishing.targets import PublishTarget, target_of_snapshot
from nearcast.spec import PublishSpec, parse_model
from nearcast.table.expansion_settings import ExpansionSpec, load_expansion_spec
from nearcast.table.snapshot import find_snapshot, list_generators

if TYPE_CHECKING:
    from nearcast.publishing.publication import Publication

__all__ = ["expand", "publish", "publish_table", "published", "roll_back"]


def publish(
    generator: SpecLike,
    version: int | None = None,
    *,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    accept: Mapping[str, str] | None = None,
    dry_run: bool = False,
    repair: bool = False,
    max_bytes_per_second: int | str | None = None,
    listener: Listener | None = None,
) -> Publication:
    """Audit a snapshot, the newest by default, copy it into a store, read it back, and make it current.

    generator: a name, with the settings that its snapshot was made by; or a spec (a path ending in .toml, a mapping or
    a parsed one), whose [publish], [audit] and [serve] tables count as they are now.
    store: in place of the spec's; a path is relative to the current folder.
    out: folder of the snapshots; the spec's own, or "nearcast" for a name.
    accept: rules that may fail, and why; it is kept with the version.
    dry_run: audit and rehearse the copy; change nothing.
    repair: do without a pointer or a current version that cannot be read, and heal the overlay.
    max_bytes_per_second: throttle of the copy, in place of the spec's: 50_000_000 or "50MB".
    Raises AuditError where a rule fails, BusyError while another process publishes the generator, NotFoundError for a
    snapshot that is not there, DamagedError for a file with other bytes than were written, StoreError.
    """
    place = resolve_target(generator, out, version)
    find_snapshot(place.out, place.generator, version)  # before the lock, which makes a place in the store
    settings, listener = place.publish, listener or Listener()
    if max_bytes_per_second is not None:
        changed = settings.model_dump() | {"max_bytes_per_second": max_bytes_per_second}
        settings = parse_model(PublishSpec, changed, "publish")
    with open_target_store(store, place) as opened:
        order = PublishRequest(
            generator=place.generator,
            store=opened,
            choose=lambda: find_snapshot(place.out, place.generator, version),
            settings=settings,
            audit=place.audit,
            serving=place.serve,
            accept=accept or {},
            named=version is not None,
            repair=repair,
            dry_run=dry_run,
            listener=listener,
        )
        try:
            done = publishing.publish(order)
        except AuditError as error:
            if not dry_run:
                newest = find_snapshot(place.out, place.generator, version).version
                report_failure(listener, record_failed_audit(place.out, place.generator, newest, error))
            raise
    report_failure(listener, record_publication(place.out, done))
    return done


def publish_table(
    generator: SpecLike,
    table: str,
    log: object,
    *,
    key: str,
    item: str,
    weight: str | None = None,
    time: str | None = None,
    half_life_seconds: float | None = None,
    top: int = TOP,
    fewer: bool = False,
    repair: bool = False,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> Publication:
    """Publish a table of a generator: for each key of an engagement log the items engaged with most, with weights.

    table: "phrases" or "people", by which requests are resolved, or a word of one's own.
    log: a Parquet file, a folder of them, or an Arrow table; a row per engagement. It is read whole.
    key, item, weight, time: its columns; item holds keys of the generator. half_life_seconds: an engagement that much
    older than the newest counts half. top: items kept of a key.
    fewer: the table may have less than half as many keys as the current one.
    repair: do without a pointer or a current table that cannot be read.
    Raises InputError for a log that cannot be used, AuditError for fewer keys, StoreError, BusyError.
    """
    place = resolve_store_target(generator, out)
    columns = LogColumns(key, item, weight, time, half_life_seconds, top)
    listener = listener or Listener()
    found = log if isinstance(log, pa.Table) else read_engagement(Path(str(log)), columns, listener.note)
    rows = compute_weights(found, columns, table)
    with open_target_store(store, place) as opened:
        for doubt in weight_tables.list_warnings(opened, place.generator, table, rows):
            listener.note(f"warning: {doubt}")
        done = weight_tables.publish_table(opened, place.generator, table, rows, fewer=fewer, repair=repair)
    report_failure(listener, record_publication(place.out, done))
    return done


def roll_back(
    generator: SpecLike,
    *,
    to: int | None = None,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> Publication:
    """Make an older version current again: the newest one that was not rolled back from, or `to`, older or newer.

    Raises NotFoundError where the store has no such version, DamagedError where it is not as it was written,
    BusyError while another process publishes the generator; then nothing has changed.
    """
    place, listener = resolve_store_target(generator, out), listener or Listener()
    with open_target_store(store, place) as opened:
        done = rollback.roll_back(opened, place.generator, to, listener=listener)
    report_failure(listener, record_publication(place.out, done))
    return done


def expand(
    spec: str | Path | Mapping[str, Any],
    *,
    base: str | Path | None = None,
    store: StoreLike | None = None,
    as_of: float | str | datetime | None = None,
    repair: bool = False,
) -> ExpansionReport:
    """Read ads and links from Parquet and make them the current expansion table; see `docs/expansion.md`.

    spec: a path to a TOML file, or a mapping. store: in place of the spec's.
    base: the folder that its paths are relative to; the spec file's own, else the current one.
    as_of: when ads and links were exported: seconds since 1970, a datetime or ISO 8601, UTC where it names no zone. By
    default when the older file was last changed. What the overlay said of an ad after that stays in force.
    repair: do without a pointer, a current table or an overlay that cannot be read; `notes` say so.
    Raises as `nearcast.ads.publish_expansion.publish_expansion` does.
    """
    if isinstance(spec, str | Path):
        parsed, folder = load_expansion_spec(Path(spec)), Path(base) if base is not None else Path(spec).parent
    else:
        parsed, folder = parse_model(ExpansionSpec, spec, "the spec"), Path(base or ".")
    place = PublishTarget(
        parsed.name, folder / parsed.out, PublishSpec() if parsed.store is None else PublishSpec(store=parsed.store)
    )
    with open_target_store(store, place) as opened:
        return expand_files(parsed, folder, opened, as_of=as_of, repair=repair)


def published(
    generator: SpecLike | None = None, *, store: StoreLike | None = None, out: str | Path | None = None
) -> list[store_listing.PublishedGenerator]:
    """What is published: of one generator, of all in a store, or of all that have snapshots in `out`."""
    if generator is not None:
        places = [resolve_store_target(generator, out)]
    elif store is not None:
        with open_target_store(store, PublishTarget("", Path(out or OUT))) as opened:
            return [store_listing.read_published(opened, name, now=time.time()) for name in opened.generators()]
    else:
        places = [target_of_snapshot(name, Path(out or OUT)) for name in list_generators(Path(out or OUT))]
    found = []
    for place in places:
        with open_target_store(store, place) as opened:
            if generator is not None or opened.pointer(place.generator) is not None:
                found.append(store_listing.read_published(opened, place.generator, now=time.time()))
    return found
