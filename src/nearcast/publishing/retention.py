"""Retention of versions in a store; which versions count as rolled back.

The versions in use always stay: the current one and a canary's. So does the first target of a rollback, if two or more
versions may stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from nearcast.errors import DamagedError, NotFoundError
from nearcast.publishing.write_version import unreadable_versions
from nearcast.stores.base import Pointer, Store
from nearcast.stores.version_facts import VersionFacts, read_facts

__all__ = [
    "choose_kept_versions",
    "find_newest_facts",
    "find_rollback_target",
    "list_rolled_back",
    "retire_versions",
]


def find_rollback_target(versions: Sequence[int], pointer: Pointer) -> int | None:
    """Return the newest older version that was not rolled back itself; None if there is none."""
    older = [v for v in versions if v < pointer.version and v not in pointer.withdrawn]
    return max(older, default=None)


def list_rolled_back(pointer: Pointer, version: int) -> tuple[int, ...]:
    """Return the versions that count as rolled back after the pointer has moved to `version`; a canary ends, too."""
    left = {pointer.version} if version < pointer.version else set()
    left |= {pointer.canary.version} if pointer.canary is not None else set()
    return tuple(sorted({*pointer.withdrawn, *left} - {version}))


def choose_kept_versions(versions: Sequence[int], pointer: Pointer, keep: int) -> set[int]:
    """Return the `keep` versions that stay: those in use, the rollback target, the newest, rolled-back ones last.

    The current version and a canary's always stay.
    """
    target = find_rollback_target(versions, pointer)
    order = list(pointer.in_use) if target is None else [*pointer.in_use, target]
    order += sorted(versions, key=lambda v: (v not in pointer.withdrawn, v), reverse=True)
    kept = dict.fromkeys(v for v in order if v in versions)
    return set(list(kept)[: max(keep, len(pointer.in_use))])


def retire_versions(store: Store, generator: str, pointer: Pointer, keep: int) -> list[int]:
    """Remove the versions that are not kept, and return them. Call it under the lock.

    A version that no reader can open is not kept in place of a readable one.
    """
    versions = store.versions(generator)
    unreadable = unreadable_versions(store, generator, [v for v in versions if v not in pointer.in_use])
    kept = choose_kept_versions([v for v in versions if v not in unreadable], pointer, keep)
    retired = [version for version in versions if version not in kept]
    for version in retired:
        store.retire(generator, version)
    return retired


def find_newest_facts(store: Store, generator: str, pointer: Pointer) -> VersionFacts:
    """Return the facts of the current version, or of the newest version that can be opened.

    A damaged current version must not prevent a new publish. Raises DamagedError if no version can be opened.
    """
    fault: DamagedError | NotFoundError | None = None
    known = [pointer.version] if pointer.version else []  # 0: the pointer could not be read
    for version in dict.fromkeys((*known, *reversed(store.versions(generator)))):
        try:
            with contextlib.closing(store.open(generator, version, verify=False)) as reader:
                return read_facts(reader, generator, version)
        except (DamagedError, NotFoundError) as error:
            fault = fault or error
    raise DamagedError(f"no version of {generator} in {store.url} can be opened: {fault or 'it has none'}")
