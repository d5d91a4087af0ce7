"""Roll back: move the pointer to another version in the store, after reading every byte of it."""

from __future__ import annotations

import contextlib
import time

from nearcast.errors import DamagedError, NotFoundError
from nearcast.publishing.publication import Publication, PublishListener, SilentListener
from nearcast.publishing.retention import find_rollback_target, list_rolled_back
from nearcast.publishing.write_version import decode_all, read_back, validate_facts
from nearcast.stores.base import Pointer, PointerEvent, Store, get_unpatched
from nearcast.suggest import describe_generators
from nearcast.times import format_utc

__all__ = ["roll_back"]


def roll_back(
    store: Store, generator: str, to: int | None = None, *, listener: PublishListener | None = None
) -> Publication:
    """Make an older version current: the newest older one that was not rolled back from, or `to`, older or newer.

    The version before counts as rolled back until it is published or named again. Raises NotFoundError if there is no
    such version, DamagedError if its bytes changed; the pointer then stays.
    """
    listener = listener or SilentListener()
    _require_pointer(store, generator)  # before the lock, which creates the generator in the store
    with store.lock(generator) as lock:
        pointer = _require_pointer(store, generator)
        version = _choose_target(store, generator, pointer, to)
        if version == pointer.version:
            listener.note(f"{generator} {version:06d} is current already")
            return Publication(generator, store.url, version, version, "already_current")
        version = _find_readable(store, pointer, generator, version, listener, named=to is not None)
        event = PointerEvent("rolled_back", version, format_utc(time.time()), f"from {pointer.version:06d}")
        store.point(generator, pointer.move(event, list_rolled_back(pointer, version)), lock)
    return Publication(generator, store.url, version, pointer.version, "rolled_back")


def _find_readable(
    store: Store, pointer: Pointer, generator: str, version: int, listener: PublishListener, *, named: bool
) -> int:
    """Return the version after reading all of it as readers do. Unless it is named, try older versions too.

    Raises DamagedError if none is readable.
    """
    fault: DamagedError | None = None
    older = [v for v in store.versions(generator) if v < version and v not in pointer.withdrawn and not named]
    for candidate in (version, *reversed(older)):
        where = f"version {candidate:06d} of {generator} in {store.url}"
        try:
            with contextlib.closing(store.open(generator, candidate, verify=True)) as reader:
                facts = validate_facts(reader, generator, candidate, where)
                decode_all(reader, facts, where)
                read_back(get_unpatched(reader), facts, where, listener.progress)
            return candidate
        except DamagedError as error:
            fault = fault or error
            listener.note(f"{error}: it is passed over")
    assert fault is not None, "one was tried"
    raise DamagedError(f"{fault}; {pointer.version:06d} stays current, and --to names another version") from fault


def _require_pointer(store: Store, generator: str) -> Pointer:
    pointer = store.pointer(generator)
    if pointer is None:
        hint = describe_generators(generator, store.generators(), "generators there are none")
        raise NotFoundError(f"{generator!r} was never published to {store.url}; {hint}")
    return pointer


def _choose_target(store: Store, generator: str, pointer: Pointer, to: int | None) -> int:
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
