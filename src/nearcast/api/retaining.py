"""Retention of snapshots: the newest ones stay, and all that are served, pinned or read by another process.

A run, a publish and `nearcast clean` remove the others. What is served is asked of the store, and of the history for
stores that other commands named. If one of them cannot be read, nothing is removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nearcast.api.arguments import open_target_store
from nearcast.errors import NearcastError
from nearcast.history.event_log import read
from nearcast.history.publish_events import find_stored_versions
from nearcast.join.listener import Listener
from nearcast.publishing.publication import Publication
from nearcast.publishing.publish_lock import hold_publish_lock
from nearcast.publishing.targets import PublishTarget, read_snapshot_target
from nearcast.spec import PublishSpec
from nearcast.storage.open_storage import join_location, open_storage
from nearcast.stores.base import Store
from nearcast.table.snapshot import Snapshot, open_home
from nearcast.table.snapshot_pins import list_pins

__all__ = [
    "HELD",
    "DiskUse",
    "find_old_snapshots",
    "measure_disk",
    "retain_after_publish",
    "retain_snapshots",
]

HELD = "snapshot {:06d} is kept, since another process reads it"
LOCK_SECONDS = 1.0  # a live update holds the publishers' lock for less


def retain_snapshots(
    target: PublishTarget, listener: Listener, store: Store | None = None, *, before_current: bool = False
) -> tuple[int, ...]:
    """Remove old snapshots of a generator, and what killed removals left. Return their versions.

    store: an open one, instead of the target's. before_current: keep those that are newer than the current version.
    Nothing is removed, and the listener is told, if it cannot be known what is served.
    """
    home, removed = open_home(target.out), list[int]()
    try:
        with find_old_snapshots(target, store, before_current=before_current) as old:
            for version in old:
                if home.hide(target.generator, version):
                    removed.append(version)
                else:
                    listener.note(HELD.format(version))
        for version in removed:  # their files are many: publishers need not wait for these
            home.remove_hidden(target.generator, version)
        home.sweep(target.generator)
    except (NearcastError, OSError) as error:
        listener.note(f"old snapshots are kept: {error}")
    if removed:
        names = ", ".join(f"{version:06d}" for version in removed)
        listener.note(f"old snapshots are removed: {names} (publish.keep_snapshots is {target.publish.keep_snapshots})")
    return tuple(removed)


def retain_after_publish(target: PublishTarget, store: Store, done: Publication, listener: Listener) -> Publication:
    """Remove old snapshots after a publish to this store; return the publication with their versions."""
    return replace(done, removed_snapshots=retain_snapshots(target, listener, store, before_current=True))


@dataclass(frozen=True, slots=True)
class DiskUse:
    """What a generator keeps."""

    snapshots: int
    bytes: int  # in a local `out` with all caches and unfinished work, in a bucket of the snapshots
    keep: int | None  # newest snapshots that stay; None: all


@contextlib.contextmanager
def find_old_snapshots(
    target: PublishTarget, store: Store | None = None, *, before_current: bool = False
) -> Iterator[tuple[int, ...]]:
    """Find the old snapshots of a generator that nobody needs. Inside `with`, nothing is published to its store.

    Asks the store only if there are more snapshots than are kept. Raises the errors of a store or history that cannot
    be read, BusyError if somebody publishes.
    """
    keep, generator = target.publish.snapshots_kept, target.generator
    found = open_home(target.out).list_versions(generator)
    if keep is None or len(found) <= keep:
        yield ()
        return
    with contextlib.ExitStack() as stack:
        opened = _open_own_store(target, store, stack)
        if opened is None:
            yield _choose(found, keep, _find_used(target, None), None)
            return
        if opened.pointer(generator) is not None:  # the lock would create the generator in the store
            stack.enter_context(hold_publish_lock(opened, generator, LOCK_SECONDS))
        pointer = opened.pointer(generator)
        below = pointer.version if before_current and pointer is not None else None
        yield _choose(found, keep, _find_used(target, opened), below)


def _open_own_store(target: PublishTarget, store: Store | None, stack: contextlib.ExitStack) -> Store | None:
    """Open the store of a target. Return None if its snapshots are in a bucket and the spec names no store."""
    if store is None and target.publish.store == PublishSpec().store and isinstance(target.out, str):
        return None
    return stack.enter_context(open_target_store(store, target))


def _choose(found: Sequence[int], keep: int, used: Collection[int], below: int | None) -> tuple[int, ...]:
    return tuple(version for version in found[:-keep] if version not in used and (below is None or version < below))


def _find_used(target: PublishTarget, store: Store | None) -> set[int]:
    """Return the versions that a store holds, or held when this `out` last published to it, and the pinned ones."""
    events = read(target.out, target.generator, ["publish", "rollback", "canary", "monitor"])
    used = find_stored_versions(events, target.publish.keep, besides="" if store is None else store.url)
    used |= list_pins(target.out, target.generator)
    return used if store is None else used | set(store.versions(target.generator))


def measure_disk(snapshot: Snapshot, settings: PublishSpec | None = None) -> DiskUse:
    """Return what the generator of a snapshot keeps. settings: of its spec; default: those of the snapshot.

    Reads no manifest of another snapshot: one that is damaged, or removed meanwhile, changes nothing.
    """
    out, generator = snapshot.out, snapshot.generator
    if settings is None:
        settings = read_snapshot_target(generator, out, snapshot.version).publish
    if isinstance(out, str):
        size = sum(each.size for each in open_storage(join_location(out, generator, "snapshots")).list_objects())
    else:
        size = _count_bytes(out / generator)
    return DiskUse(len(open_home(out).list_versions(generator)), size, settings.snapshots_kept)


def _count_bytes(folder: Path) -> int:
    """Sum the sizes of all files below a folder; a file with several names counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                facts = os.lstat(os.path.join(place, name))
                sizes[facts.st_dev, facts.st_ino] = facts.st_size
    return sum(sizes.values())
