"""Tables in table formats by location, `delta:s3://bucket/items`: opened at one version. One row per format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from nearcast.errors import SpecError
from nearcast.files import path_fault
from nearcast.settings.spec_tables import TABLE_LOCATION
from nearcast.sources.delta_table import append_to_delta, find_delta_version, open_delta
from nearcast.sources.iceberg_table import append_to_iceberg, find_iceberg_version, open_iceberg
from nearcast.sources.lance_table import find_lance_version, open_lance
from nearcast.sources.marked_rows import MarkedRows, write_marked_file
from nearcast.sources.pinned_table import PinnedTable
from nearcast.spec import SourceSpec

__all__ = ["append_to_table", "find_version", "open_table", "pin_version"]

FORMATS: dict[str, Callable[[str, str, Path, int | str | None], PinnedTable]] = {
    "delta": open_delta,
    "iceberg": open_iceberg,
    "lance": open_lance,
}

NEWEST: dict[str, Callable[[str, str, Path], tuple[int, str]]] = {
    "delta": find_delta_version,
    "iceberg": find_iceberg_version,
    "lance": find_lance_version,
}
WRITERS: dict[str, Callable[[str, str, Path, MarkedRows], bool]] = {
    "delta": append_to_delta,
    "iceberg": append_to_iceberg,
    "parquet": write_marked_file,
}


def append_to_table(target: str, base: Path, rows: MarkedRows) -> bool:
    """Append rows to a table or a folder of Parquet files, all of them or none. Return False if they are there.

    Raises SpecError for another target, StorageError if it cannot be written.
    """
    kind, location = _split_location(target, base)
    if kind not in WRITERS or not (location if kind == "parquet" else TABLE_LOCATION.fullmatch(target)):
        raise SpecError(
            f"the target is {target!r}; write delta:PATH, parquet:FOLDER or iceberg:CATALOG.NAMESPACE.TABLE"
        )
    return WRITERS[kind](target, location, base, rows)


def open_table(table: str, at: int | str | None, base: Path) -> PinnedTable:
    """Open a table at a version, a time, or the newest version; paths are relative to `base`.

    Raises InputError if there is no table or no such version, MissingExtraError without the library of its format.
    """
    kind, location = _split_location(table, base)
    return FORMATS[kind](table, location, base, at)


def find_version(table: str, base: Path) -> tuple[int, str]:
    """Return the newest version of a table and when it was made; reads less than opening it. Raises InputError."""
    kind, location = _split_location(table, base)
    return NEWEST[kind](table, location, base)


def pin_version(spec: SourceSpec, base: Path) -> SourceSpec:
    """Return the source with the version that its table has now; any other source as it is."""
    if spec.table is None:
        return spec
    newest = spec.at is None
    version = find_version(spec.table, base)[0] if newest else open_table(spec.table, spec.at, base).version
    return spec.model_copy(update={"at": version})


def _split_location(table: str, base: Path) -> tuple[str, str]:
    """Return the format and the location of a table. Raises SpecError for a location that can never be read."""
    kind, _, location = table.partition(":")
    if kind in ("delta", "lance", "parquet"):
        refused = SpecError(f"{table} has a password; credentials come from the environment")
        if table not in str(refused):  # an error hides it
            raise refused
        fault = None if os.path.lexists(base / location) else path_fault(location, buckets=True)
        if fault:
            raise SpecError(f"{table}: {fault}")
    return kind, location
