"""Resolve the store that a generator is published to, and the settings of publishing. Opens no store.

The settings come from a spec, or from the spec in the manifest of a snapshot.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearcast.errors import NotFoundError, SpecError
from nearcast.evaluation.judge_snapshot import LabelSettings
from nearcast.files import path_fault
from nearcast.spec import AuditSpec, CanarySpec, GeneratorSpec, LabelsSpec, PublishSpec, ServeSpec, parse_model
from nearcast.storage.locations import Location, parse_location
from nearcast.table.snapshot import Snapshot, find_snapshot

__all__ = ["PublishTarget", "find_target", "read_snapshot_target", "read_spec_target", "resolve_store_url"]


@dataclass(frozen=True, slots=True)
class PublishTarget:
    """The location of a generator's snapshots, and the tables of its spec for publishing and serving."""

    generator: str
    out: Location
    publish: PublishSpec = field(default_factory=PublishSpec)
    audit: AuditSpec = field(default_factory=AuditSpec)
    serve: ServeSpec = field(default_factory=ServeSpec)
    canary: CanarySpec = field(default_factory=CanarySpec)
    labels: LabelSettings = field(default_factory=LabelSettings)

    def url(self, override: str | None = None) -> str:
        """Return the URL of the store."""
        return resolve_store_url(self.publish, self.out, override)


def resolve_store_url(settings: PublishSpec, out: Location, override: str | None = None) -> str:
    """Return the URL of the store: the override, else that of the spec, whose relative lmdb:PATH is below `out`.

    A relative path in the override is relative to the current folder, as for `nearcast.open`. `~` is the home folder in
    both. Raises SpecError for a path with an environment variable, which is not expanded, or below a bucket.
    """
    text = settings.store if override is None else override
    scheme, colon, rest = text.partition(":")
    if colon and scheme != "lmdb" and "/" not in scheme:
        return text
    path = Path(rest if colon and scheme == "lmdb" else text).expanduser()
    if override is None and not path.is_absolute():
        if not isinstance(place := parse_location(out), Path):
            raise SpecError(
                f"store: lmdb:{path} is relative to `out`, which is {place}; a store cannot be in a bucket: give an "
                "absolute path, lmdb:/PATH, or redis://HOST:PORT/DB, as `store` in [publish] or with --store"
            )
        path = place / path
    fault = None if os.path.lexists(path) else path_fault(str(path))
    if fault:
        raise SpecError(f"store: {fault}")
    return f"lmdb:{path}"


def read_spec_target(spec: GeneratorSpec, out: Location, base: Path | None = None) -> PublishTarget:
    """Return the target by a spec. Changes of its [publish], [audit], [serve] and [canary] tables need no new run.

    base: folder that the path of the labels is relative to.
    """
    labels = LabelSettings(spec.labels, spec.promise, base)
    return PublishTarget(spec.name, out, spec.publish, spec.audit, spec.serve, spec.canary, labels)


def read_snapshot_target(generator: str, out: Location, version: int | None = None) -> PublishTarget:
    """Return the target by the manifest of a snapshot, by default the newest. Raises NotFoundError if there is none."""
    snapshot = find_snapshot(out, generator, version)
    return PublishTarget(
        generator,
        out,
        _parse_table(snapshot, "publish", PublishSpec),
        _parse_table(snapshot, "audit", AuditSpec),
        _parse_table(snapshot, "serve", ServeSpec),
        _parse_table(snapshot, "canary", CanarySpec),
        LabelSettings(
            _parse_table(snapshot, "labels", LabelsSpec) if "labels" in snapshot.manifest.spec else None,
            snapshot.manifest.spec.get("promise", {}),
        ),
    )


def find_target(generator: str, out: Location) -> PublishTarget:
    """Return the target by the newest snapshot; with default settings if there is no snapshot."""
    try:
        return read_snapshot_target(generator, out)
    except NotFoundError:
        return PublishTarget(generator, out)


def _parse_table(snapshot: Snapshot, name: str, model: Any) -> Any:
    tables = snapshot.manifest.spec.get(name, {})  # absent in manifests of earlier versions
    return parse_model(model, tables, f"{snapshot.url}/manifest.json, spec.{name}", recorded=True)
