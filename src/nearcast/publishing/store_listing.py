"""Describe a generator in a store: versions, the pointer with its events, the overlay's size. Writes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from nearcast.errors import DamagedError, NotFoundError
from nearcast.stores.base import PatchState, Pointer, Store, read_patch_state
from nearcast.stores.version_facts import VersionFacts, read_facts
from nearcast.suggest import describe_generators
from nearcast.times import parse_utc

__all__ = ["PublishedGenerator", "StoredVersion", "read_published"]


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version in a store."""

    version: int
    version_facts: VersionFacts | None
    fault: str | None  # why it cannot be opened
    patches: PatchState  # in force

    @property
    def facts(self) -> Mapping[str, Any] | None:
        """Facts as JSON data; see `docs/store-format.md`."""
        return None if self.version_facts is None else self.version_facts.to_json()

    def as_dict(self) -> dict[str, Any]:
        """Return the version as plain data."""
        patches = [asdict(patch) for patch in self.patches.patches]
        folded = None if self.patches.folded is None else asdict(self.patches.folded)
        return {
            "version": self.version,
            "facts": self.facts,
            "fault": self.fault,
            "patches": patches,
            "folded_patches": folded,
        }


@dataclass(frozen=True, slots=True)
class PublishedGenerator:
    """A generator in a store: its versions, its pointer and the size of its overlay."""

    generator: str
    store: str
    pointer: Pointer | None
    versions: tuple[StoredVersion, ...]
    age_seconds: float | None  # since the run of the current version ended
    overlay_entries: int  # in force; restored ones do not count

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(replace(self, versions=())) | {"versions": tuple(version.as_dict() for version in self.versions)}


def read_published(store: Store, generator: str, *, now: float) -> PublishedGenerator:
    """Read the state of a generator in a store. Raises NotFoundError if nothing is published."""
    pointer = store.pointer(generator)
    versions = tuple(_read_version(store, generator, version) for version in store.versions(generator))
    if pointer is None and not versions:
        hint = describe_generators(generator, store.generators(), "generators there are none")
        raise NotFoundError(f"{generator!r} was never published to {store.url}; {hint}")
    facts = next((kept.version_facts for kept in versions if pointer and kept.version == pointer.version), None)
    age = max(0.0, now - parse_utc(facts.created)) if facts else None
    entries = store.overlay(generator).changes().entries
    in_force = [e for e in entries if not e.lifted and (e.until is None or e.until > now)]
    return PublishedGenerator(generator, store.url, pointer, versions, age, len(in_force))


def _read_version(store: Store, generator: str, version: int) -> StoredVersion:
    try:
        with contextlib.closing(store.open(generator, version, verify=False)) as reader:
            facts = read_facts(reader, generator, version)
            return StoredVersion(version, facts, None, read_patch_state(store, generator, version))
    except (DamagedError, NotFoundError) as error:
        return StoredVersion(version, None, str(error), PatchState())
