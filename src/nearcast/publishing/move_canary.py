"""Start, change and end a canary: the steps that move the pointer. `publish.py` copies and verifies its version before.

All of them run under the publishers' lock. Knows nothing of how a canary is measured.
"""

from __future__ import annotations

import time
from dataclasses import replace

from nearcast.errors import BusyError, NotFoundError, SpecError
from nearcast.publishing.publication import Publication, PublishListener, SilentListener
from nearcast.publishing.publish_lock import hold_publish_lock
from nearcast.publishing.retention import list_rolled_back
from nearcast.publishing.tidy_store import tidy_store
from nearcast.publishing.write_version import verify_version
from nearcast.spec import PublishSpec
from nearcast.stores.base import Pointer, PointerEvent, PublishLock, Store
from nearcast.stores.canary_share import Canary, CanaryMode
from nearcast.times import format_utc

__all__ = [
    "change_canary_share",
    "promote_canary",
    "read_live_canary",
    "refuse_publish",
    "start_canary",
    "validate_share",
    "withdraw_canary",
]

LOCK_SECONDS = 10.0


def validate_share(share: float) -> float:
    """Return the share. Raises SpecError unless it is in (0, 1]."""
    if not 0 < share <= 1:
        raise SpecError(f"the share of a canary is in (0, 1], got {share:g}; write 0.05 for 5%")
    return float(share)


def read_live_canary(store: Store, generator: str) -> tuple[Pointer, Canary]:
    """Return the pointer and its canary. Raises NotFoundError if there is none."""
    pointer = store.pointer(generator)
    if pointer is None or pointer.canary is None:
        raise NotFoundError(f"{generator} has no canary in {store.url}; start one with nearcast publish --canary 5%")
    return pointer, pointer.canary


def refuse_publish(generator: str, pointer: Pointer, version: int, *, named: bool) -> None:
    """Raise BusyError if a publish of this version would end a canary that nobody has decided about."""
    canary = pointer.canary
    if canary is None or version == pointer.version or (version == canary.version and named):
        return
    raise BusyError(
        f"{generator} has a canary: version {canary.version:06d} on {canary.share:.0%} of the keys since "
        f"{canary.since}; promote or withdraw it with nearcast canary, or publish with --replace-canary"
    )


def start_canary(
    store: Store, generator: str, pointer: Pointer, version: int, how: tuple[CanaryMode, float], lock: PublishLock
) -> Pointer:
    """Set the canary of the pointer, and return it. The same version in the same mode only gets the new share."""
    (mode, share), live, now = how, pointer.canary, format_utc(time.time())
    canary = Canary(version, share, mode, now)
    if live is not None and replace(live, share=share, since=now) == canary:
        return _set_share(store, generator, pointer, share, lock)
    note = f"{mode}, {share:.4g} of the keys" + ("" if live is None else f"; replaces {live.version:06d}")
    withdrawn = {*pointer.withdrawn, *(() if live is None else (live.version,))} - {version}
    event = PointerEvent("canary_started", version, now, note)
    moved = pointer.with_canary(event, canary, tuple(sorted(withdrawn)))
    store.point(generator, moved, lock)
    return moved


def change_canary_share(store: Store, generator: str, share: float) -> Canary:
    """Change the share of the live canary. Keys that were in the share stay in it if it grows."""
    validate_share(share)
    with hold_publish_lock(store, generator, LOCK_SECONDS) as lock:
        canary = _set_share(store, generator, read_live_canary(store, generator)[0], share, lock).canary
    assert canary is not None
    return canary


def _set_share(store: Store, generator: str, pointer: Pointer, share: float, lock: PublishLock) -> Pointer:
    canary = pointer.canary
    assert canary is not None
    if canary.share == share:
        return pointer
    event = PointerEvent("canary_share", canary.version, format_utc(time.time()), f"{canary.share:.4g} to {share:.4g}")
    moved = pointer.with_canary(event, replace(canary, share=share))
    store.point(generator, moved, lock)
    return moved


def withdraw_canary(store: Store, generator: str, why: str = "", *, expected: Canary | None = None) -> Canary:
    """End the canary; the current version answers all keys again. Return the canary that ended.

    Its version counts as rolled back: it is published again only if it is named. expected: the canary that was judged;
    raises BusyError if another one is live now, NotFoundError if none is.
    """
    read_live_canary(store, generator)  # before the lock, which creates the generator in the store
    with hold_publish_lock(store, generator, LOCK_SECONDS) as lock:
        pointer, canary = _read_expected(store, generator, expected)
        event = PointerEvent("canary_withdrawn", canary.version, format_utc(time.time()), why)
        withdrawn = tuple(sorted({*pointer.withdrawn, canary.version}))
        store.point(generator, pointer.with_canary(event, None, withdrawn), lock)
    return canary


def promote_canary(
    store: Store,
    generator: str,
    settings: PublishSpec,
    why: str = "",
    *,
    expected: Canary | None = None,
    listener: PublishListener | None = None,
) -> Publication:
    """Make the canary's version current, after reading every byte of it again.

    Raises DamagedError if its bytes changed; BusyError, NotFoundError: see `withdraw_canary`.
    """
    listener = listener or SilentListener()
    read_live_canary(store, generator)
    with hold_publish_lock(store, generator, LOCK_SECONDS) as lock:
        pointer, canary = _read_expected(store, generator, expected)
        where = f"version {canary.version:06d} of {generator} in {store.url}"
        verify_version(store, generator, canary.version, where, listener.progress)
        note = "; ".join(filter(None, ["promoted canary", why]))
        event = PointerEvent("published", canary.version, format_utc(time.time()), note)
        moved = pointer.move(event, list_rolled_back(pointer, canary.version))
        store.point(generator, moved, lock)
        tidied = tidy_store(store, generator, moved, settings, listener.note)
    return Publication(
        generator,
        store.url,
        canary.version,
        pointer.version,
        "published",
        retired=tidied.retired,
        overlay_entries_cut=tidied.overlay_entries_cut,
    )


def _read_expected(store: Store, generator: str, expected: Canary | None) -> tuple[Pointer, Canary]:
    pointer, canary = read_live_canary(store, generator)
    if expected is not None and not canary.is_same(expected):
        raise BusyError(f"{generator} has another canary now, version {canary.version:06d}; decide about that one")
    return pointer, canary
