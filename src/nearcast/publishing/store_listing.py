"""What a store holds of a generator: versions, the pointer with its events, the overlay's size. Only looks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nearcast.errors import DamagedError, NotFoundError
from nearcast.publishing.utc_times import seconds_of
from nearcast.stores.base import Pointer, Store
from nearcast.suggest import generators_in_words

__all__ = ["Kept", "Published", "published"]


@dataclass(frozen=True, slots=True)
class Kept:
    """A version in a store."""

    version: int
    facts: Mapping[str, Any] | None
    fault: str | None  # why it cannot be opened


@dataclass(frozen=True, slots=True)
class Published:
    """What a store holds of a generator."""

    generator: str
    store: str
    pointer: Pointer | None
    versions: tuple[Kept, ...]
    age_seconds: float | None  # of the current version, by its snapshot's own time
    overlay_entries: int  # that are in force or will expire; taken back ones do not count

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def published(store: Store, generator: str, *, now: float) -> Published:
    """Look at a generator in a store; `now` in seconds since 1970. NotFoundError where nothing is published."""
    pointer = store.pointer(generator)
    versions = tuple(_kept(store, generator, version) for version in store.versions(generator))
    if pointer is None and not versions:
        known = generators_in_words(generator, store.generators(), "generators there are none")
        raise NotFoundError(f"{generator!r} was never published to {store.url}; {known}")
    facts = next((kept.facts for kept in versions if pointer and kept.version == pointer.version), None)
    age = max(0.0, now - seconds_of(facts["created"])) if facts else None
    entries = store.overlay(generator).changes().entries
    in_force = [e for e in entries if not e.lifted and (e.until is None or e.until > now)]
    return Published(generator, store.url, pointer, versions, age, len(in_force))


def _kept(store: Store, generator: str, version: int) -> Kept:
    try:
        with contextlib.closing(store.open(generator, version, verify=False)) as reader:
            return Kept(version, dict(reader.facts), None)
    except (DamagedError, NotFoundError) as error:
        return Kept(version, None, str(error))
