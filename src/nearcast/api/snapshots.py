"""Functions that read snapshots: list them, look up a query, export the lists."""

from __future__ import annotations

from pathlib import Path

from nearcast.errors import SpecError
from nearcast.sources.open_table import append_to_table
from nearcast.storage.locations import parse_location
from nearcast.table.export_snapshot import ExportedRows, describe_rows
from nearcast.table.snapshot import Candidates, Snapshot, find_snapshot, hold_snapshot, list_snapshots

__all__ = ["export", "lookup", "snapshots"]


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


def export(snapshot: Snapshot, to: str, *, rows: str = "query") -> bool:
    """Append the lists of a snapshot to a table. Return False if they are there already: exporting twice is harmless.

    to: delta:PATH, iceberg:CATALOG.NAMESPACE.TABLE, or parquet:FOLDER, which gets a file per snapshot. A missing table
    is created. rows: "query" for one row per query with lists, "candidate" for one row per candidate.
    The rows appear all at once. Raises SpecError for another target or other rows, StorageError
    if it cannot be written.
    """
    if rows not in set(ExportedRows):
        raise SpecError(f"rows must be {' or '.join(ExportedRows)}, got {rows!r}")
    with hold_snapshot(snapshot):
        return append_to_table(to, Path(), describe_rows(snapshot, ExportedRows(rows)))
