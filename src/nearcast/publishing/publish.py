"""Publish a snapshot: the order of the steps.

    lock -> choose -> verify its files -> audit -> copy -> read back -> point -> cut back the overlay -> retire

Nothing that readers see changes before `point`, and that is one step. Killed before it, what was copied is thrown
away or used by the next publish; killed after it, the next publish does the rest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from nearcast.errors import DamagedError, NotFoundError, StoreError
from nearcast.publishing.audit import CurrentVersion, audit_snapshot, enforce, validate_accepted
from nearcast.publishing.audit_rules import Finding
from nearcast.publishing.compact_overlay import compact_overlay
from nearcast.publishing.copy_snapshot import CopyFigures, NullWriter, Throttle, compare_sample, copy_snapshot
from nearcast.publishing.publication import Publication, PublishListener, SilentListener
from nearcast.publishing.repair import read_pointer, repair_damaged_overlay, retire_damaged
from nearcast.publishing.retention import list_rolled_back, remove_snapshots, retire_versions
from nearcast.publishing.snapshot_rows import SnapshotShape, read_shape
from nearcast.publishing.write_version import open_writer, verify_version
from nearcast.spec import AuditSpec, PublishSpec, ServeSpec
from nearcast.stores.base import Pointer, PointerEvent, PublishLock, Store, store_time
from nearcast.stores.version_facts import FACTS_FORMAT, VersionFacts, read_facts
from nearcast.table.snapshot import Snapshot
from nearcast.times import format_utc, parse_utc

__all__ = ["PublishRequest", "publish", "publish_snapshot"]

NAMED = "it was named explicitly"


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """What is to be published where, and how."""

    generator: str
    store: Store
    choose: Callable[[], Snapshot]  # called under the lock, so that nobody publishes a newer one meanwhile
    settings: PublishSpec
    audit: AuditSpec
    serving: ServeSpec
    accept: Mapping[str, str] = field(default_factory=dict)
    named: bool = False  # the version was asked for, which accepts that it was rolled back from
    repair: bool = False  # do without what cannot be read of the current version
    dry_run: bool = False
    listener: PublishListener = field(default_factory=SilentListener)

    def where(self, version: int) -> str:
        """A version of the store in words."""
        return f"version {version:06d} of {self.generator} in {self.store.url}"


def publish_snapshot(
    snapshot: Snapshot,
    store: Store,
    settings: PublishSpec,
    audit_settings: AuditSpec,
    *,
    serving: ServeSpec | None = None,
    accept: Mapping[str, str] | None = None,
    dry_run: bool = False,
    repair: bool = False,
    max_bytes_per_second: int | None = None,
    listener: PublishListener | None = None,
) -> Publication:
    """Publish this snapshot, as `publish` does."""
    if max_bytes_per_second is not None:
        settings = settings.model_copy(update={"max_bytes_per_second": max_bytes_per_second})
    return publish(
        PublishRequest(
            snapshot.generator,
            store,
            lambda: snapshot,
            settings,
            audit_settings,
            serving or ServeSpec(),
            accept or {},
            named=True,
            repair=repair,
            dry_run=dry_run,
            listener=listener or SilentListener(),
        )
    )


def publish(order: PublishRequest) -> Publication:
    """Carry out an order.

    Raises AuditError where a rule fails that is not accepted, BusyError where another process publishes the
    generator, DamagedError for a snapshot or a copy with other bytes than were written, StoreError where the store
    does not do as it is told. Then nothing has changed for readers.
    """
    validate_accepted(order.accept)
    if order.dry_run:
        return _carry_out(order, None)
    with order.store.lock(order.generator) as held:
        return _carry_out(order, held)


def _carry_out(order: PublishRequest, held: PublishLock | None) -> Publication:
    snapshot = order.choose()
    notes: list[str] = []
    if order.repair and held is not None:
        repair_damaged_overlay(order.store, order.generator, notes)
    pointer = read_pointer(order.store, order.generator, notes, repair=order.repair)
    for text in notes:
        order.listener.note(text)
    with contextlib.ExitStack() as stack:
        current = _current(order, pointer, stack)
        if current is not None and current.version == snapshot.version:
            _check_same(order, current, snapshot)
            _note_current(order, current)
            done = Publication(order.generator, order.store.url, snapshot.version, snapshot.version, "already_current")
            return done if held is None else _tidied(order, done, pointer, snapshot)
        snapshot.verify()
        shape = read_shape(snapshot)
        findings, accepted = _audited(order, snapshot, current, pointer)
    before = pointer.version or None if pointer else None  # 0 is that of a pointer that could not be read
    done = Publication(
        order.generator, order.store.url, snapshot.version, before, "would_publish", tuple(findings), accepted
    )
    facts = _make_facts(order, snapshot, shape, done)
    if held is None:
        return _rehearsed(order, snapshot, shape, facts, done)
    started = time.perf_counter()
    copied = _have_copy(order, snapshot, shape, facts, held)
    done = replace(done, outcome="published", copied=copied, copy_seconds=time.perf_counter() - started)
    pointer = _pointed(order, pointer, done, held)
    return _tidied(order, done, pointer, snapshot)


def _current(order: PublishRequest, pointer: Pointer | None, stack: contextlib.ExitStack) -> CurrentVersion | None:
    """The current version, open. To repair, one that cannot be read is as good as none."""
    if pointer is None or pointer.version == 0:
        return None
    try:
        reader = order.store.open(order.generator, pointer.version, verify=order.repair)
        stack.callback(reader.close)
        return CurrentVersion(pointer.version, read_facts(reader, order.generator, pointer.version), reader)
    except (DamagedError, NotFoundError) as error:
        if order.repair:
            order.listener.note(f"nothing to compare with: {error}")
            return None
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{error}, and its pointer says that it is current; publish with --repair") from error


def _check_same(order: PublishRequest, current: CurrentVersion, snapshot: Snapshot) -> None:
    if current.facts.fingerprint != snapshot.manifest.fingerprint:
        raise StoreError(
            f"{order.where(current.version)} is current, and is not the snapshot in {snapshot.folder}: two folders of "
            "snapshots publish to one store; give one of the generators another store or another name"
        )


def _note_current(order: PublishRequest, current: CurrentVersion) -> None:
    order.listener.note(f"{order.generator} {current.name} is current already")
    if current.facts.serve != order.serving.model_dump(mode="json"):
        order.listener.note("its [serve] settings stay those of its publish; changed ones come with the next snapshot")


def _audited(
    order: PublishRequest, snapshot: Snapshot, current: CurrentVersion | None, pointer: Pointer | None
) -> tuple[list[Finding], dict[str, str]]:
    withdrawn = pointer is not None and snapshot.version in pointer.withdrawn
    findings = audit_snapshot(snapshot, order.audit, current, now=time.time(), withdrawn=withdrawn)
    accepted = dict(order.accept)
    if withdrawn and order.named:
        accepted.setdefault("withdrawn", NAMED)
    enforce(f"{snapshot.generator} {snapshot.name}", findings, accepted)
    passed = sum(finding.passed for finding in findings)
    words = "".join(f"; {rule} is accepted: {why}" for rule, why in accepted.items())
    order.listener.note(f"audit of {snapshot.name}: {passed} of {len(findings)} rules passed{words}")
    return findings, accepted


def _make_facts(order: PublishRequest, snapshot: Snapshot, shape: SnapshotShape, done: Publication) -> VersionFacts:
    """Return the facts of the version, without the counts and checksums of the copy."""
    manifest = snapshot.manifest
    created = manifest.run.created
    return VersionFacts(
        format=FACTS_FORMAT,
        generator=snapshot.generator,
        version=snapshot.version,
        snapshot=snapshot.name,
        started=format_utc(parse_utc(created) - manifest.run.seconds_total),
        created=created,
        published=format_utc(time.time()),
        fingerprint=manifest.fingerprint,
        metric=manifest.metric,
        k=manifest.k,
        query_ids=shape.query_ids,
        item_ids=shape.item_ids,
        id_kind=shape.id_kind,
        columns=dict(shape.columns),
        rules=None if shape.rules is None else dict(shape.rules),
        measures=dict(manifest.measures),
        promise=dict(manifest.facts["promise"]),
        profile=manifest.profile,
        serve=order.serving.model_dump(mode="json"),
        audit={"findings": [f.as_dict() for f in done.findings], "accepted": dict(done.accepted or {})},
    )


def _rehearsed(
    order: PublishRequest, snapshot: Snapshot, shape: SnapshotShape, facts: VersionFacts, done: Publication
) -> Publication:
    if _is_there(order, snapshot, facts):
        return done
    copied = copy_snapshot(snapshot, shape, NullWriter(), Throttle(None), order.listener.progress)
    limit = order.settings.max_bytes_per_second
    return replace(done, copied=copied, copy_seconds=copied.bytes / limit if limit else None)


def _have_copy(
    order: PublishRequest, snapshot: Snapshot, shape: SnapshotShape, facts: VersionFacts, held: PublishLock
) -> CopyFigures | None:
    """See that the store has the version, whole; None where it had it already."""
    if _is_there(order, snapshot, facts):
        order.listener.note(f"the store has {snapshot.name} already, and it is whole")
        return None
    throttle = Throttle(order.settings.max_bytes_per_second)
    with open_writer(order.store, order.generator, snapshot.version) as writer:
        copied = copy_snapshot(snapshot, shape, writer, throttle, order.listener.progress, still_ours=held.check)
        facts = replace(
            facts,
            keys=copied.keys,
            items=copied.items,
            payload_bytes=copied.payload_bytes,
            query_rows=copied.query_rows,
            checksum=dict(copied.checksum),
        )
        writer.finish(facts.to_json())
    try:
        _compare(order, snapshot)
    except DamagedError:
        held.check()
        order.store.retire(order.generator, snapshot.version)
        raise
    return copied


def _is_there(order: PublishRequest, snapshot: Snapshot, facts: VersionFacts) -> bool:
    """Whether the store has this snapshot with these settings, and every byte of it."""
    if snapshot.version not in order.store.versions(order.generator):
        return False
    try:
        with contextlib.closing(order.store.open(order.generator, snapshot.version, verify=False)) as reader:
            held = read_facts(reader, order.generator, snapshot.version)
            if (held.fingerprint, held.serve) != (facts.fingerprint, facts.serve):
                return False
        _compare(order, snapshot)
    except (DamagedError, NotFoundError) as error:
        order.listener.note(f"{error}: it is copied again")
        return False
    return True


def _compare(order: PublishRequest, snapshot: Snapshot) -> None:
    where = order.where(snapshot.version)
    verify_version(
        order.store,
        order.generator,
        snapshot.version,
        where,
        order.listener.progress,
        compare=lambda reader: compare_sample(reader, where, snapshot),
    )


def _pointed(order: PublishRequest, pointer: Pointer | None, done: Publication, held: PublishLock) -> Pointer:
    """Move the pointer. A version that is left for an older one counts as rolled back from."""
    words = [f"accepted {rule}: {why}" for rule, why in (done.accepted or {}).items()]
    event = PointerEvent("published", done.version, format_utc(time.time()), "; ".join(words))
    last = pointer or Pointer(version=0, serial=0)
    moved = last.moved(event, list_rolled_back(last, done.version))
    order.store.point(order.generator, moved, held)
    return moved


def _tidied(order: PublishRequest, done: Publication, pointer: Pointer | None, snapshot: Snapshot) -> Publication:
    """Let go of what is no longer needed. All of it can be done again."""
    assert pointer is not None, "something is current"
    store, generator, out = order.store, order.generator, snapshot.folder.parents[2]
    if order.repair:
        notes: list[str] = []
        retire_damaged(store, generator, pointer.version, notes)
        for text in notes:
            order.listener.note(text)
    try:
        # Before versions are retired: readers may still have the last one in hand.
        cut = compact_overlay(store, generator, store.versions(generator), now=store_time(store))
    except (DamagedError, NotFoundError, StoreError) as error:
        order.listener.note(f"the overlay is not cut back: {error}")
        cut = 0
    retired = retire_versions(store, generator, pointer, order.settings.keep)
    held = store.versions(generator)
    removed = remove_snapshots(out, generator, pointer.version, held, order.settings.keep_snapshots)
    return replace(done, retired=tuple(retired), removed_snapshots=tuple(removed), overlay_entries_cut=cut)
