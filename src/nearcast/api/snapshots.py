"""Functions that read snapshots: list them, and look up a query."""

from __future__ import annotations

from pathlib import Path

from nearcast.storage.locations import parse_location
from nearcast.table.snapshot import Candidates, Snapshot, find_snapshot, list_snapshots

__all__ = ["lookup", "snapshots"]


def snapshots(generator: str, *, out: str | Path = "nearcast") -> list[Snapshot]:
    """Return all snapshots of a generator in `out`, a folder or the URL of a bucket, oldest first."""
    return list_snapshots(parse_location(out), generator)


def lookup(
    generator: str,
    key: str | int,
    *,
    out: str | Path = "nearcast",
    version: int | None = None,
    columns: tuple[str, ...] | None = None,
) -> Candidates:
    """Return the candidates of one query. columns: item columns to return; default: `display` of the spec."""
    snapshot = find_snapshot(parse_location(out), generator, version)
    shown = columns if columns is not None else tuple(snapshot.manifest.spec["items"]["display"])
    return snapshot.lookup(key, shown)
