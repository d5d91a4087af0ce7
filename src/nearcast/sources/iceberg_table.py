"""Iceberg tables: a snapshot as a source, and rows appended once. The one user of PyIceberg.

Catalogs are configured as PyIceberg does: `.pyiceberg.yaml` or environment variables. PyIceberg reads the data files:
it applies deletes, and finds renamed columns by their numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from nearcast.errors import InputError, MissingExtraError, StorageError
from nearcast.files import fingerprint
from nearcast.sources.marked_rows import APPEND_TRIES, MarkedRows, refuse_other_columns
from nearcast.sources.pinned_table import PinnedTable, fit_batch, parse_at
from nearcast.sources.user_files import describe_error

__all__ = ["append_to_iceberg", "find_iceberg_version", "open_iceberg"]

DECODED = 4  # estimated bytes of rows in memory for each byte of a data file


@dataclass(frozen=True, slots=True)
class IcebergFile:
    """A data file of a snapshot with its delete files, which is decoded whole."""

    table: Any
    scan: Any  # of the snapshot
    task: Any
    types: pa.Schema
    where: str
    groups: tuple[int, ...]  # one: the rows before deletes

    @property
    def key(self) -> str:
        """Return a hash of the names of the files, and the ids of the columns."""
        deletes = sorted(f"{file.file_path} {file.content_offset}" for file in self.task.delete_files)
        return fingerprint([self.task.file.file_path, deletes, str(self.scan.projection())])

    def read(self, columns: Sequence[str], _max_rows: int, _first: int, _last: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of the file."""
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.io.pyarrow import ArrowScan

        schema = pa.schema([self.types.field(name) for name in columns])
        projection = self.scan.select(*columns).projection()
        scan = ArrowScan(self.table.metadata, self.table.io, projection, AlwaysTrue())
        try:
            for batch in scan.to_record_batches([self.task]):
                yield fit_batch(batch, schema, self.where)
        except InputError:
            raise
        except Exception as error:  # of PyIceberg, or of the storage
            raise InputError(
                f"{self.where}: {self.task.file.file_path} cannot be read ({describe_error(error)}); if the "
                "snapshot was expired meanwhile, run again, and keep snapshots longer than a run takes"
            ) from error


def open_iceberg(name: str, location: str, _base: Path, at: int | str | None) -> PinnedTable:
    """Open a snapshot of a table. at: id of a snapshot, a time, or a branch or tag; None: the current snapshot.

    Raises InputError if there is no catalog, table or snapshot, or it has equality deletes.
    """
    table = _load(name, location)
    snapshot = _find_snapshot(name, table, at)
    # the current snapshot has the columns that the table has now, which may have been renamed or added since
    is_current = snapshot == table.current_snapshot()
    scan = table.scan() if is_current else table.scan(snapshot_id=snapshot.snapshot_id)
    try:
        tasks = sorted(scan.plan_files(), key=lambda task: str(task.file.file_path))
    except OSError as error:
        raise InputError(
            f"{name}: files of snapshot {snapshot.snapshot_id} were removed ({describe_error(error)}); choose a "
            "newer one"
        ) from error
    except Exception as error:  # equality deletes, or a damaged manifest, whose errors have no class of their own
        raise InputError(
            f"{name}: snapshot {snapshot.snapshot_id} cannot be read ({describe_error(error)}); if it has equality "
            "deletes, rewrite its data files without delete files, for example with Spark's rewrite_data_files"
        ) from error
    types = _read_types(scan)
    stored = sum(task.file.file_size_in_bytes for task in tasks)
    return PinnedTable(
        name=name,
        version=snapshot.snapshot_id,
        made=_format_time(snapshot),
        identity=(str(table.metadata.table_uuid), snapshot.snapshot_id),
        schema=types,
        stored_bytes=stored,
        row_bytes=DECODED * stored,
        pieces=tuple(IcebergFile(table, scan, task, types, name, (task.file.record_count,)) for task in tasks),
    )


def find_iceberg_version(name: str, location: str, _base: Path) -> tuple[int, str]:
    """Return the id of the current snapshot, and when it was made."""
    snapshot = _find_snapshot(name, _load(name, location), None)
    return snapshot.snapshot_id, _format_time(snapshot)


def _format_time(snapshot: Any) -> str:
    return datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _load(name: str, location: str) -> Any:
    catalog, identifier = _open_catalog(name, location)
    from pyiceberg.exceptions import NoSuchTableError

    try:
        return catalog.load_table(identifier)
    except NoSuchTableError as error:
        raise InputError(f"{name}: the catalog has no table {identifier}; check `table`") from error
    except Exception as error:  # of the catalog's server or database
        raise InputError(f"{name} cannot be loaded ({describe_error(error)}); check the catalog") from error


def _open_catalog(name: str, location: str) -> tuple[Any, str]:
    """Return the catalog, and the identifier of the table in it."""
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError as error:
        raise MissingExtraError("Iceberg tables need PyIceberg: pip install 'nearcast[iceberg]'") from error
    catalog, _, identifier = location.partition(".")
    try:
        return load_catalog(catalog), identifier
    except Exception as error:  # of any of its catalogs
        raise InputError(
            f"{name}: catalog {catalog!r} cannot be opened ({describe_error(error)}); configure it in "
            f".pyiceberg.yaml, or by PYICEBERG_CATALOG__{catalog.upper()}__URI"
        ) from error


def _find_snapshot(name: str, table: Any, at: int | str | None) -> Any:
    """Return the snapshot. Raises InputError if there is none."""
    if at is None:
        found = table.current_snapshot()
        if found is None:
            raise InputError(f"{name} has no snapshot: no row was written yet")
        return found
    # a name comes before a time: a tag may be named by its day
    wanted = at if isinstance(at, str) and table.snapshot_by_name(at) else parse_at(at)
    if isinstance(wanted, datetime):
        found = table.snapshot_as_of_timestamp(int(wanted.timestamp() * 1000))
    else:
        found = table.snapshot_by_id(wanted) if isinstance(wanted, int) else table.snapshot_by_name(wanted)
    if found is None:
        known = ", ".join(str(snapshot.snapshot_id) for snapshot in table.snapshots()[-3:])
        raise InputError(
            f"{name} has no snapshot at = {wanted}: it was expired, or never made; the newest are {known or 'none'}"
        )
    return found


def _read_types(scan: Any) -> pa.Schema:
    """Return the columns in types with 32-bit offsets, as data files have."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    return pa.schema(
        [
            pa.field(field.name, _small(field.type))
            for field in schema_to_pyarrow(scan.projection(), include_field_ids=False)
        ]
    )


def _small(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_large_binary(kind):
        return pa.binary()
    return pa.list_(_small(kind.value_type)) if pa.types.is_large_list(kind) else kind


def append_to_iceberg(name: str, location: str, _base: Path, rows: MarkedRows) -> bool:
    """Write rows in one commit, and create the table if it is missing. Return False if they are there.

    The commit replaces rows of the same marks: if two writers find none, the rows are there once.
    Raises StorageError if the table has other columns, or cannot be written.
    """
    catalog, identifier = _open_catalog(name, location)
    from pyiceberg.exceptions import (
        CommitFailedException,
        NoSuchNamespaceError,
        TableAlreadyExistsError,
        ValidationException,
    )
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    same = " and ".join(f"{mark} == {_as_literal(value)}" for mark, value in rows.marks.items())
    for attempt in range(APPEND_TRIES):
        try:
            table = catalog.create_table_if_not_exists(identifier, rows.schema)
            if required := [field.name for field in table.schema().fields if field.required]:
                raise StorageError(
                    f"{name} cannot be written: its column {required[0]!r} is required, and exported ones are not; "
                    "make it optional, or name another table"
                )
            refuse_other_columns(name, schema_to_pyarrow(table.schema(), include_field_ids=False), rows)
            if len(table.scan(row_filter=same, selected_fields=tuple(rows.marks), limit=1).to_arrow()):
                return False
            data = rows.reader() if table.spec().is_unpartitioned() else rows.reader().read_all()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Delete operation did not match")
                table.overwrite(data, overwrite_filter=same)
            return True
        except NoSuchNamespaceError as error:
            raise StorageError(f"{name}: the catalog has no such namespace; create it") from error
        except (CommitFailedException, TableAlreadyExistsError, ValidationException) as error:
            if attempt == APPEND_TRIES - 1:
                raise StorageError(f"{name}: other writers commit all the time; export again") from error
        except StorageError:
            raise
        except Exception as error:  # of the catalog, of its storage, or of types that differ
            raise StorageError(f"{name} cannot be written ({describe_error(error)}); check the table") from error
    raise AssertionError("unreachable")


def _as_literal(value: Any) -> str:
    text = value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
    return repr(text)
