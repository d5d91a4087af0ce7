"""Functions that change the served versions: publish a snapshot or weight table, roll back, expand; list versions."""

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
    input_path,
    open_generator_store,
    open_target_store,
    report_failure,
    resolve_store_target,
    resolve_target,
)
from nearcast.api.retaining import retain_after_publish
from nearcast.errors import AuditError
from nearcast.evaluation.judge_snapshot import open_labels, refuse_learning_from
from nearcast.evaluation.label_table import open_label_table
from nearcast.history.record import record_failed_audit, record_publication
from nearcast.join.listener import Listener
from nearcast.publishing import publish as publishing
from nearcast.publishing import publish_table as weight_tables
from nearcast.publishing import rollback, store_listing
from nearcast.publishing.engagement import TOP, LogColumns, compute_weights
from nearcast.publishing.engagement import read_log as read_engagement
from nearcast.publishing.move_canary import validate_share
from nearcast.publishing.publication import PublishRequest
from nearcast.publishing.targets import PublishTarget, read_snapshot_target
from nearcast.spec import PublishSpec, parse_model
from nearcast.storage.locations import parse_location, resolve_location
from nearcast.table.expansion_settings import ExpansionSpec, load_expansion_spec
from nearcast.table.snapshot import find_snapshot, list_generators
from nearcast.updating.apply_again import apply_again, prune_updates

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
    canary: float | None = None,
    shadow: bool = False,
    replace_canary: bool = False,
    base: str | Path | None = None,
    listener: Listener | None = None,
) -> Publication:
    """Audit a snapshot, the newest by default, copy it into a store, read it back, and make it current.

    generator: a name, with the settings in the manifest of its snapshot; or a spec (a path ending in .toml, a mapping
    or a parsed spec), with its [publish], [audit] and [serve] tables.
    store: overrides the store of the spec; a path is relative to the current folder.
    out: folder of the snapshots. Default: that of the spec, or "nearcast" for a name.
    accept: audit rules that may fail, with reasons; they are stored with the version.
    dry_run: audit, and encode the copy without writing it.
    repair: continue without a pointer or current version that cannot be read, and repair the overlay.
    max_bytes_per_second: throttle of the copy, for example 50_000_000 or "50MB"; overrides the spec.
    canary: share of the keys, in (0, 1], that the version answers beside the current one, instead of becoming current.
    shadow: the version answers no key, and is measured on `canary` of them, by default on all.
    replace_canary: end a canary that is live; it counts as rolled back.
    base: folder that the path of labels in the spec is relative to; default: that of the spec file, else the current.
    Raises AuditError if a rule fails, BusyError while another process publishes the generator or a canary of another
    version is live, NotFoundError if there is no such snapshot, DamagedError if a file was changed, StoreError.
    """
    share = None if canary is None and not shadow else validate_share(1.0 if canary is None else canary)
    target = resolve_target(generator, out, version, base)
    find_snapshot(target.out, target.generator, version)  # before the lock, which creates the generator in the store
    settings, listener = target.publish, listener or Listener()
    if max_bytes_per_second is not None:
        changed = settings.model_dump() | {"max_bytes_per_second": max_bytes_per_second}
        settings = parse_model(PublishSpec, changed, "publish")
    with open_target_store(store, target) as opened:
        request = PublishRequest(
            generator=target.generator,
            store=opened,
            choose=lambda: find_snapshot(target.out, target.generator, version),
            settings=settings,
            audit=target.audit,
            serving=target.serve,
            accept=accept or {},
            named=version is not None,
            repair=repair,
            dry_run=dry_run,
            canary=None if share is None else ("shadow" if shadow else "canary", share),
            replace_canary=replace_canary,
            labels=target.labels,
            listener=listener,
            before_move=lambda before, new, lock: apply_again(
                opened, target.generator, target.out, (before, new), lock, listener
            ),
        )
        try:
            result = publishing.publish(request)
            prune_updates(opened, target.generator, target.out)
            if not dry_run:
                result = retain_after_publish(target, opened, result, listener)
        except AuditError as error:
            if not dry_run:
                newest = find_snapshot(target.out, target.generator, version).version
                report_failure(listener, record_failed_audit(target.out, target.generator, newest, error))
            raise
    report_failure(listener, record_publication(target.out, result))
    return result


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
    """Publish a weight table of a generator: per key of an engagement log, the items with the largest weights.

    table: "phrases" or "people", which resolve requests, or any other word.
    log: a Parquet file, a folder of them, a URL, or an Arrow table, with one row per engagement. It is read whole.
    key, item, weight, time: columns of the log; `item` has keys of the generator. half_life_seconds: the weight of an
    engagement halves per this age, counted from the newest. top: items kept per key.
    fewer: allow less than half as many keys as the current table.
    repair: continue without a pointer or current table that cannot be read.
    Raises InputError for an invalid log, SpecError for the labels of the spec, AuditError for fewer keys, StoreError,
    BusyError.
    """
    target = resolve_store_target(generator, out)
    columns = LogColumns(key, item, weight, time, half_life_seconds, top)
    listener = listener or Listener()
    if not isinstance(log, pa.Table):
        _keep_labels_apart(target, input_path(str(log)))
    engagements = log if isinstance(log, pa.Table) else read_engagement(input_path(str(log)), columns, listener.note)
    rows = compute_weights(engagements, columns, table)
    with open_target_store(store, target) as opened:
        for warning in weight_tables.list_warnings(opened, target.generator, table, rows):
            listener.note(f"warning: {warning}")
        result = weight_tables.publish_table(opened, target.generator, table, rows, fewer=fewer, repair=repair)
    report_failure(listener, record_publication(target.out, result))
    return result


def _keep_labels_apart(target: PublishTarget, log: Path | str) -> None:
    """Raise SpecError if the log is the labels of the generator: its tables must not learn from them."""
    settings = target.labels
    if settings.spec is None:
        return
    if settings.base is not None:
        labels = open_labels(settings.spec, settings.base).digests()
    else:
        record = find_snapshot(target.out, target.generator).manifest.labels
        labels = [] if record is None else record["labels"]["files"]
    refuse_learning_from(labels, {"the log": open_label_table(log, Path(), "the log").digests()})


def roll_back(
    generator: SpecLike,
    *,
    to: int | None = None,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> Publication:
    """Make another version current: the newest older one that was not rolled back, or `to`, older or newer.

    Raises NotFoundError if the store has no such version, DamagedError if its bytes changed, BusyError while another
    process publishes the generator. The current version stays then.
    """
    listener = listener or Listener()
    with open_generator_store(generator, store, out) as (target, opened):
        result = rollback.roll_back(opened, target.generator, to, listener=listener)
    report_failure(listener, record_publication(target.out, result))
    return result


def expand(
    spec: str | Path | Mapping[str, Any],
    *,
    base: str | Path | None = None,
    store: StoreLike | None = None,
    as_of: float | str | datetime | None = None,
    repair: bool = False,
) -> ExpansionReport:
    """Read ads and links from Parquet and publish them as an expansion table; see `docs/expansion.md`.

    spec: a path to a TOML file, or a mapping. store: overrides the store of the spec.
    base: the folder that paths of the spec are relative to. Default: that of the spec file, else the current folder.
    as_of: when ads and links were exported: seconds since 1970, a datetime or ISO 8601, in UTC if it has no time zone.
    Default: the time of the last change of the older file. Later overlay entries of an ad stay in force.
    repair: continue without a pointer, current table or overlay that cannot be read, and add a note.
    Raises the errors of `nearcast.ads.publish_expansion.publish_expansion`.
    """
    if isinstance(spec, str | Path):
        parsed, folder = load_expansion_spec(Path(spec)), Path(base) if base is not None else Path(spec).parent
    else:
        parsed, folder = parse_model(ExpansionSpec, spec, "the spec"), Path(base or ".")
    target = PublishTarget(
        parsed.name,
        resolve_location(folder, parsed.out),
        PublishSpec() if parsed.store is None else PublishSpec(store=parsed.store),
    )
    with open_target_store(store, target) as opened:
        return expand_files(parsed, folder, opened, as_of=as_of, repair=repair)


def published(
    generator: SpecLike | None = None, *, store: StoreLike | None = None, out: str | Path | None = None
) -> list[store_listing.PublishedGenerator]:
    """Return the published versions: of one generator, of all in a store, or of all with snapshots in `out`."""
    if generator is not None:
        targets = [resolve_store_target(generator, out)]
    elif store is not None:
        with open_target_store(store, PublishTarget("", parse_location(out or OUT))) as opened:
            return [store_listing.read_published(opened, name, now=time.time()) for name in opened.generators()]
    else:
        targets = [
            read_snapshot_target(name, parse_location(out or OUT))
            for name in list_generators(parse_location(out or OUT))
        ]
    generators = []
    for target in targets:
        with open_target_store(store, target) as opened:
            if generator is not None or opened.pointer(target.generator) is not None:
                generators.append(store_listing.read_published(opened, target.generator, now=time.time()))
    return generators
