"""Roll back: move the pointer to a version that the store still has, after looking at every byte of it."""

from __future__ import annotations

import contextlib
import time

from nearcast.errors import DamagedError, NotFoundError
from nearcast.publishing.publication import Publication, PublishListener, SilentListener
from nearcast.publishing.retention import find_rollback_target, list_rolled_back
from nearcast.publishing.write_version import decode_all, read_back, validate_facts
from nearcast.stores.base import Pointer, PointerEvent, Store
from nearcast.suggest import generators_in_words
from nearcast.times import format_utc

__all__ = ["roll_back"]


def roll_back(
    store: Store, generator: str, to: int | None = None, *, listener: PublishListener | None = None
) -> Publication:
    """Make an older version current: the newest older one that was not rolled back from, or `to`, older or newer.

    The version that is left for an older one counts as withdrawn until it is named again. Raises NotFoundError
    where there is no such version, DamagedError where it is not as it was written; the pointer then stays.
    """
    hears = listener or SilentListener()
    _published(store, generator)  # before the lock, which makes a place for the generator
    with store.lock(generator) as held:
        pointer = _published(store, generator)
        version = _target(store, generator, pointer, to)
        if version == pointer.version:
            hears.note(f"{generator} {version:06d} is current already")
            return Publication(generator, store.url, version, version, "already_current")
        version = _readable(store, pointer, generator, version, hears, named=to is not None)
        event = PointerEvent("rolled_back", version, format_utc(time.time()), f"from {pointer.version:06d}")
        store.point(generator, pointer.moved(event, list_rolled_back(pointer, version)), held)
    return Publication(generator, store.url, version, pointer.version, "rolled_back")


def _readable(
    store: Store, pointer: Pointer, generator: str, version: int, hears: PublishListener, *, named: bool
) -> int:
    """The version, after every byte of it was read as readers do; of one that was not named, an older one that can be.

    DamagedError where there is none.
    """
    fault: DamagedError | None = None
    older = [v for v in store.versions(generator) if v < version and v not in pointer.withdrawn and not named]
    for candidate in (version, *reversed(older)):
        where = f"version {candidate:06d} of {generator} in {store.url}"
        try:
            with contextlib.closing(store.open(generator, candidate, verify=True)) as reader:
                facts = validate_facts(reader, generator, candidate, where)
                decode_all(reader, facts, where)
                read_back(reader, facts, where, hears.progress)
            return candidate
        except DamagedError as error:
            fault = fault or error
            hears.note(f"{error}: it is passed over")
    assert fault is not None, "one was tried"
    raise DamagedError(f"{fault}; {pointer.version:06d} stays current, and --to names another version") from fault


def _published(store: Store, generator: str) -> Pointer:
    pointer = store.pointer(generator)
    if pointer is None:
        known = generators_in_words(generator, store.generators(), "generators there are none")
        raise NotFoundError(f"{generator!r} was never published to {store.url}; {known}")
    return pointer


def _target(store: Store, generator: str, pointer: Pointer, to: int | None) -> int:
    versions = store.versions(generator)
    have = ", ".join(f"{v:06d}" + (" (rolled back from)" if v in pointer.withdrawn else "") for v in versions)
    if to is not None:
        if to not in versions:
            raise NotFoundError(f"{store.url} has no version {to} of {generator}; it has {have or 'none'}")
        return to
    target = find_rollback_target(versions, pointer)
    if target is None:
        raise NotFoundError(
            f"{generator} has nothing to go back to from {pointer.version:06d}: {store.url} has {have or 'none'}"
        )
    return target
