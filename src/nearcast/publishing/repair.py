"""Steps of `--repair`: continue without a pointer, a current version, patches or an overlay that cannot be read."""

from __future__ import annotations

import time
from collections.abc import Collection

from nearcast.errors import DamagedError, NotFoundError
from nearcast.publishing.retention import find_newest_facts
from nearcast.stores.base import Pointer, Store, repair_overlay, repair_patches
from nearcast.stores.version_facts import VersionFacts

__all__ = ["find_last_facts", "read_pointer", "repair_damaged_overlay", "repair_damaged_patches", "retire_damaged"]


def read_pointer(store: Store, name: str, notes: list[str], *, repair: bool) -> Pointer | None:
    """Return the pointer. With `repair`, replace an unreadable pointer by one with version 0 and an unused serial."""
    try:
        return store.pointer(name)
    except DamagedError:
        if not repair:
            raise
        notes.append("the pointer cannot be read and is written anew")
        return Pointer(version=0, serial=int(time.time()))


def find_last_facts(
    store: Store, name: str, pointer: Pointer | None, notes: list[str], *, repair: bool
) -> VersionFacts | None:
    """Return the facts of the current version, or else of the newest readable one; None if there is none.

    Raises DamagedError if no version can be opened; with `repair` returns None then.
    """
    if pointer is None:
        return None
    try:
        return find_newest_facts(store, name, pointer)
    except DamagedError as error:
        if not repair:
            raise DamagedError(f"{error}; make a new version with --repair") from error
        notes.append(f"nothing to compare with: {error}")
        return None


def retire_damaged(store: Store, name: str, in_use: Collection[int], notes: list[str]) -> None:
    """Remove damaged versions that are not in use, so that no rollback goes to them. Call it under the lock."""
    for version in store.versions(name):
        if version in in_use:
            continue
        try:
            store.open(name, version, verify=True).close()
        except NotFoundError:
            continue
        except DamagedError as error:
            notes.append(f"version {version:06d} is damaged and was taken away: {error}")
            store.retire(name, version)


def repair_damaged_overlay(store: Store, name: str, notes: list[str]) -> None:
    """Repair the overlay of a generator if it is damaged, and add a note then."""
    found = repair_overlay(store.overlay(name))
    if found is not None:
        notes.append(f"the overlay was repaired: {found}")


def repair_damaged_patches(store: Store, name: str, notes: list[str]) -> None:
    """Repair the list of patches of a generator if it is damaged, and add a note then. Call it under the lock."""
    found = repair_patches(store, name)
    if found is not None:
        notes.append(f"the patches were repaired: {found}")
