"""Where a generator's snapshots are published, and by which settings. Opens no store.

Settings come from a spec, where one is at hand, or from what a snapshot's manifest says of the spec it was made by.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearcast.errors import NotFoundError, SpecError
from nearcast.files import path_fault
from nearcast.spec import AuditSpec, GeneratorSpec, PublishSpec, ServeSpec, parse_model
from nearcast.table.snapshot import Snapshot, find_snapshot

__all__ = ["PublishTarget", "find_target", "resolve_store_url", "target_of_snapshot", "target_of_spec"]


@dataclass(frozen=True, slots=True)
class PublishTarget:
    """A generator's folder of snapshots, and the tables of its spec that concern publishing and serving."""

    generator: str
    out: Path
    publish: PublishSpec = field(default_factory=PublishSpec)
    audit: AuditSpec = field(default_factory=AuditSpec)
    serve: ServeSpec = field(default_factory=ServeSpec)

    def url(self, override: str | None = None) -> str:
        """The URL of its store."""
        return resolve_store_url(self.publish, self.out, override)


def resolve_store_url(settings: PublishSpec, out: Path, override: str | None = None) -> str:
    """The URL of the store: the override as it stands, else the spec's, whose relative lmdb:PATH is below `out`.

    An override comes from a person, and is relative to the current folder, as for `nearcast.open`. `~` is the home
    folder in both. SpecError for a path with a variable, which nobody would expand.
    """
    text = settings.store if override is None else override
    scheme, colon, rest = text.partition(":")
    if colon and scheme != "lmdb" and "/" not in scheme:
        return text
    path = Path(rest if colon and scheme == "lmdb" else text).expanduser()
    path = path if override is not None else out / path
    fault = None if os.path.lexists(path) else path_fault(str(path))
    if fault:
        raise SpecError(f"store: {fault}")
    return f"lmdb:{path}"


def target_of_spec(spec: GeneratorSpec, out: Path) -> PublishTarget:
    """By the spec as it is now: its [publish], [audit] and [serve] tables need no new run."""
    return PublishTarget(spec.name, out, spec.publish, spec.audit, spec.serve)


def target_of_snapshot(generator: str, out: Path, version: int | None = None) -> PublishTarget:
    """By the manifest of a snapshot, the newest by default. NotFoundError where there is none."""
    snapshot = find_snapshot(out, generator, version)
    return PublishTarget(
        generator,
        out,
        _table(snapshot, "publish", PublishSpec),
        _table(snapshot, "audit", AuditSpec),
        _table(snapshot, "serve", ServeSpec),
    )


def find_target(generator: str, out: Path) -> PublishTarget:
    """By the newest snapshot, if there is one here; with the default settings where a store is all there is."""
    try:
        return target_of_snapshot(generator, out)
    except NotFoundError:
        return PublishTarget(generator, out)


def _table(snapshot: Snapshot, name: str, model: Any) -> Any:
    tables = snapshot.manifest.spec.get(name, {})  # a manifest of an earlier version does not have it
    return parse_model(model, tables, f"{snapshot.folder / 'manifest.json'}, spec.{name}", recorded=True)
