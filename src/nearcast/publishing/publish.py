"""Publish a snapshot: the order of the steps.

    lock -> choose -> verify files -> audit -> copy -> read back -> apply later updates -> move the pointer, or set
         its canary -> compact the overlay -> retire

Readers see nothing new before the pointer moves, and it moves in one step. If the process is killed before that, the
next publish uses or removes the copy; if it is killed after that, the next publish does the remaining steps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace

from nearcast.errors import DamagedError, NotFoundError, SpecError, StoreError
from nearcast.publishing.audit import CurrentVersion, audit_snapshot, enforce, validate_accepted
from nearcast.publishing.audit_values import Finding
from nearcast.publishing.copy_snapshot import CopyFigures, NullWriter, Throttle, compare_sample, copy_snapshot
from nearcast.publishing.move_canary import refuse_publish, start_canary
from nearcast.publishing.publication import Publication, PublishListener, PublishRequest, SilentListener
from nearcast.publishing.publish_lock import hold_publish_lock
from nearcast.publishing.repair import read_pointer, repair_damaged_overlay, repair_damaged_patches, retire_damaged
from nearcast.publishing.retention import list_rolled_back
from nearcast.publishing.snapshot_rows import SnapshotShape, read_shape
from nearcast.publishing.tidy_store import tidy_store
from nearcast.publishing.write_version import open_writer, verify_version
from nearcast.spec import AuditSpec, PublishSpec, ServeSpec
from nearcast.stores.base import Pointer, PointerEvent, PublishLock, Store
from nearcast.stores.version_facts import FACTS_FORMAT, VersionFacts, read_facts
from nearcast.table.snapshot import Snapshot, hold_snapshot
from nearcast.times import format_utc, parse_utc

__all__ = ["publish", "publish_snapshot"]

NAMED = "it was named explicitly"
LOCK_SECONDS = 1.0  # a live update holds the lock for less


def publish_snapshot(
    snapshot: Snapshot,
    store: Store,
    settings: PublishSpec,
    audit: AuditSpec,
    *,
    accept: Mapping[str, str] | None = None,
    listener: PublishListener | None = None,
) -> Publication:
    """Publish this snapshot with default settings of serving. Raises as `publish`."""
    return publish(
        PublishRequest(
            snapshot.generator,
            store,
            lambda: snapshot,
            settings,
            audit,
            ServeSpec(),
            accept or {},
            named=True,
            listener=listener or SilentListener(),
        )
    )


def publish(request: PublishRequest) -> Publication:
    """Publish a snapshot; a dry run only audits it and encodes its rows.

    Raises AuditError if a rule fails that is not accepted, BusyError if another process publishes the generator,
    DamagedError if the snapshot or the copy does not match its checksums, StoreError if the store fails. Readers see no
    change after an error.
    """
    validate_accepted(request.accept)
    if request.dry_run:
        return _publish(request, None)
    with hold_publish_lock(request.store, request.generator, LOCK_SECONDS) as lock:
        return _publish(request, lock)


def _publish(request: PublishRequest, lock: PublishLock | None) -> Publication:
    snapshot = request.choose()
    with hold_snapshot(snapshot):
        return _publish_held(request, lock, snapshot)


def _publish_held(request: PublishRequest, lock: PublishLock | None, snapshot: Snapshot) -> Publication:
    pointer = _read_pointer(request, lock)
    if pointer is not None and not request.replace_canary and not _changes_canary(request, pointer, snapshot):
        refuse_publish(request.generator, pointer, snapshot.version, named=request.named)
    with contextlib.ExitStack() as stack:
        current = _open_current(request, pointer, stack)
        if request.canary is not None:
            _validate_canary(request, current, snapshot)
        if current is not None and current.version == snapshot.version:
            _validate_same(request, current, snapshot)
            _note_current(request, current)
            version = snapshot.version
            result = Publication(request.generator, request.store.url, version, version, "already_current")
            return result if lock is None else _clean_up(request, result, pointer)
        snapshot.verify()
        shape = read_shape(snapshot)
        findings, accepted = _audit(request, snapshot, current, pointer)
    before = pointer.version or None if pointer else None  # 0: the pointer could not be read
    result = Publication(
        request.generator, request.store.url, snapshot.version, before, "would_publish", tuple(findings), accepted
    )
    facts = _make_facts(request, snapshot, shape, result)
    if lock is None:
        return _rehearse(request, snapshot, shape, facts, result)
    started = time.perf_counter()
    copied = _ensure_copy(request, snapshot, shape, facts, lock)
    result = replace(result, outcome="published", copied=copied, copy_seconds=time.perf_counter() - started)
    if before is not None and request.before_move is not None:
        request.before_move(before, snapshot.version, lock)
    if request.canary is not None:
        assert pointer is not None, "something is current"
        how = request.canary
        moved = start_canary(request.store, request.generator, pointer, snapshot.version, how, lock)
        return _clean_up(request, replace(result, outcome="canary_started"), moved)
    return _clean_up(request, result, _move_pointer(request, pointer, result, lock))


def _changes_canary(request: PublishRequest, pointer: Pointer, snapshot: Snapshot) -> bool:
    """Return whether the request is for the version that is a canary already: it gets another share or mode."""
    live = pointer.canary
    return request.canary is not None and live is not None and live.version == snapshot.version


def _validate_canary(request: PublishRequest, current: CurrentVersion | None, snapshot: Snapshot) -> None:
    """Raise an error if this snapshot cannot be a canary beside the current version."""
    if current is None:
        raise NotFoundError(f"{request.generator} has no current version for a canary beside it; publish without one")
    if current.version == snapshot.version:
        raise SpecError(f"{request.describe(current.version)} is current already; a canary is another version")
    before, metric = current.facts.metric, snapshot.manifest.metric
    if request.canary is not None and request.canary[0] == "canary" and before not in (None, metric):
        raise SpecError(
            f"{request.generator} {snapshot.name} has the metric {metric} and the current version {before}: scores of "
            "one request would not be comparable; use --shadow, or publish without a canary"
        )


def _read_pointer(request: PublishRequest, lock: PublishLock | None) -> Pointer | None:
    notes: list[str] = []
    if request.repair and lock is not None:
        repair_damaged_overlay(request.store, request.generator, notes)
        repair_damaged_patches(request.store, request.generator, notes)
    pointer = read_pointer(request.store, request.generator, notes, repair=request.repair)
    for text in notes:
        request.listener.note(text)
    return pointer


def _open_current(
    request: PublishRequest, pointer: Pointer | None, stack: contextlib.ExitStack
) -> CurrentVersion | None:
    """Open the current version. With `repair`, return None if it cannot be read."""
    if pointer is None or pointer.version == 0:
        return None
    try:
        reader = request.store.open(request.generator, pointer.version, verify=request.repair)
        stack.callback(reader.close)
        return CurrentVersion(pointer.version, read_facts(reader, request.generator, pointer.version), reader)
    except (DamagedError, NotFoundError) as error:
        if request.repair:
            request.listener.note(f"nothing to compare with: {error}")
            return None
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{error}, and its pointer says that it is current; publish with --repair") from error


def _validate_same(request: PublishRequest, current: CurrentVersion, snapshot: Snapshot) -> None:
    if current.facts.fingerprint != snapshot.manifest.fingerprint:
        raise StoreError(
            f"{request.describe(current.version)} is current, and is not the snapshot in {snapshot.url}: two "
            "folders of snapshots publish to one store; give one of the generators another store or another name"
        )


def _note_current(request: PublishRequest, current: CurrentVersion) -> None:
    note = request.listener.note
    note(f"{request.generator} {current.name} is current already")
    if current.facts.serve != request.serving.model_dump(mode="json"):
        note("its [serve] settings stay those of its publish; changed ones come with the next snapshot")


def _audit(
    request: PublishRequest, snapshot: Snapshot, current: CurrentVersion | None, pointer: Pointer | None
) -> tuple[list[Finding], dict[str, str]]:
    """Return the findings and the accepted rules with reasons. Raises AuditError."""
    rolled_back = pointer is not None and snapshot.version in pointer.withdrawn
    findings = audit_snapshot(
        snapshot, request.audit, current, now=time.time(), rolled_back=rolled_back, labels=request.labels
    )
    accepted = dict(request.accept)
    if rolled_back and request.named:
        accepted.setdefault("withdrawn", NAMED)
    enforce(f"{snapshot.generator} {snapshot.name}", findings, accepted)
    passed = sum(finding.passed for finding in findings)
    words = "".join(f"; {rule} is accepted: {why}" for rule, why in accepted.items())
    request.listener.note(f"audit of {snapshot.name}: {passed} of {len(findings)} rules passed{words}")
    return findings, accepted


def _make_facts(request: PublishRequest, snapshot: Snapshot, shape: SnapshotShape, result: Publication) -> VersionFacts:
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
        serve=request.serving.model_dump(mode="json"),
        audit={"findings": [f.as_dict() for f in result.findings], "accepted": dict(result.accepted or {})},
    )


def _rehearse(
    request: PublishRequest, snapshot: Snapshot, shape: SnapshotShape, facts: VersionFacts, result: Publication
) -> Publication:
    """Encode all rows and write nothing; return the size and the least copy time."""
    if _has_copy(request, snapshot, facts):
        return result
    copied = copy_snapshot(snapshot, shape, NullWriter(), Throttle(None), request.listener.progress)
    limit = request.settings.max_bytes_per_second
    return replace(result, copied=copied, copy_seconds=copied.bytes / limit if limit else None)


def _ensure_copy(
    request: PublishRequest, snapshot: Snapshot, shape: SnapshotShape, facts: VersionFacts, lock: PublishLock
) -> CopyFigures | None:
    """Copy the version unless the store has a whole copy already; return None then."""
    if _has_copy(request, snapshot, facts):
        request.listener.note(f"the store has {snapshot.name} already, and it is whole")
        return None
    throttle = Throttle(request.settings.max_bytes_per_second)
    with open_writer(request.store, request.generator, snapshot.version) as writer:
        copied = copy_snapshot(snapshot, shape, writer, throttle, request.listener.progress, check_lock=lock.check)
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
        _verify_copy(request, snapshot)
    except DamagedError:
        lock.check()
        request.store.retire(request.generator, snapshot.version)
        raise
    return copied


def _has_copy(request: PublishRequest, snapshot: Snapshot, facts: VersionFacts) -> bool:
    """Return whether the store has this snapshot with these settings. Reads every byte of the copy."""
    if snapshot.version not in request.store.versions(request.generator):
        return False
    try:
        with contextlib.closing(request.store.open(request.generator, snapshot.version, verify=False)) as reader:
            held = read_facts(reader, request.generator, snapshot.version)
            if (held.fingerprint, held.serve) != (facts.fingerprint, facts.serve):
                return False
        _verify_copy(request, snapshot)
    except (DamagedError, NotFoundError) as error:
        request.listener.note(f"{error}: it is copied again")
        return False
    return True


def _verify_copy(request: PublishRequest, snapshot: Snapshot) -> None:
    where = request.describe(snapshot.version)
    verify_version(
        request.store,
        request.generator,
        snapshot.version,
        where,
        request.listener.progress,
        compare=lambda reader: compare_sample(reader, where, snapshot),
    )


def _move_pointer(request: PublishRequest, pointer: Pointer | None, result: Publication, lock: PublishLock) -> Pointer:
    """Move the pointer. If the new version is older, the version before counts as rolled back."""
    words = [f"accepted {rule}: {why}" for rule, why in (result.accepted or {}).items()]
    event = PointerEvent("published", result.version, format_utc(time.time()), "; ".join(words))
    last = pointer or Pointer(version=0, serial=0)
    moved = last.move(event, list_rolled_back(last, result.version))
    request.store.point(request.generator, moved, lock)
    return moved


def _clean_up(request: PublishRequest, result: Publication, pointer: Pointer | None) -> Publication:
    """Compact the overlay; remove old versions. Every step may be repeated."""
    assert pointer is not None, "something is current"
    store, generator = request.store, request.generator
    if request.repair:
        notes: list[str] = []
        retire_damaged(store, generator, pointer.in_use, notes)
        for text in notes:
            request.listener.note(text)
    tidied = tidy_store(store, generator, pointer, request.settings, request.listener.note)
    return replace(result, retired=tidied.retired, overlay_entries_cut=tidied.overlay_entries_cut)
