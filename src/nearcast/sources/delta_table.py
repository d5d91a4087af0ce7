"""Delta tables: a version as a source, and rows appended once. The one user of deltalake.

deltalake reads the log: files, partition values, deletion vectors, physical names of columns. The data files are read
as all Parquet files are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from nearcast.errors import InputError, MissingExtraError, StorageError
from nearcast.files import SAME_SCHEMES, bucket_url, fingerprint
from nearcast.sources.bucket_files import find_object, open_bucket, parse_bucket_path
from nearcast.sources.marked_rows import APPEND_TRIES, MarkedRows, refuse_other_columns
from nearcast.sources.parquet_files import Footer, read_batches, read_footer
from nearcast.sources.parquet_listing import map_files
from nearcast.sources.physical_columns import find_physical_name, name_nested, parse_constant
from nearcast.sources.pinned_table import PinnedTable, TablePiece, fit_batch, parse_at
from nearcast.sources.user_files import LocalFile, UserFile, describe_error
from nearcast.types import AnyArray

__all__ = ["append_to_delta", "find_delta_version", "open_delta"]

# reader features that are supported, or that do not concern the rows
ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
FEATURES = {"columnMapping", "deletionVectors", "domainMetadata", "timestampNtz", "typeWidening"}
FEATURES |= {"typeWidening-preview", "v2Checkpoint", "vacuumProtocolCheck", "variantType", "variantType-preview"}


@dataclass(frozen=True, slots=True)
class DeltaFile:
    """A data file of a version, without the rows that its deletion vector deletes."""

    where: str  # the table, for messages
    file: UserFile
    footer: Footer
    types: pa.Schema  # of the table
    physical: Mapping[str, str]  # name in the file by name in the table
    constants: Mapping[str, Any]  # partition values
    is_kept: AnyArray | None  # (rows of the file,) bool; None: all

    @property
    def key(self) -> str:
        """Return a hash of the file's name, its deleted rows, and how its columns are found."""
        deleted = [] if self.is_kept is None else np.flatnonzero(~self.is_kept).tolist()
        return fingerprint([self.file.shown, deleted, str(self.types), self.physical])

    @property
    def groups(self) -> tuple[int, ...]:
        """Rows of each row group."""
        return self.footer.groups

    def read(self, columns: Sequence[str], max_rows: int, first: int, last: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of some row groups."""
        names = {self.physical[name]: name for name in columns if name not in self.constants}
        stored = [name for name in names if name in self.footer.schema.names]
        schema, row = pa.schema([self.types.field(name) for name in columns]), sum(self.groups[:first])
        n_rows = sum(self.groups[first:last])
        for batch in read_batches(self.file, n_rows, stored, max_rows, groups=range(first, last)):
            found = batch.rename_columns([names[name] for name in batch.schema.names])
            for i, field in enumerate(found.schema):
                if pa.types.is_nested(field.type):
                    column = name_nested(found.column(i), self.types.field(field.name).type)
                    found = found.set_column(i, field.name, column)
            fitted = fit_batch(found, schema, self.where, self.constants)
            if self.is_kept is not None:
                fitted = fitted.filter(pa.array(self.is_kept[row : row + len(batch)]))
            row += len(batch)
            yield fitted


def open_delta(name: str, location: str, base: Path, at: int | str | None) -> PinnedTable:
    """Open a version of a table. at: a version, or a time; None: the newest version.

    Raises InputError if there is no table, no such version, or its files were removed.
    """
    uri = bucket_url(location, base) or str((base / location).absolute())
    table = _load(name, uri, at)
    _refuse_features(name, table)
    version, types, files = table.version(), _read_types(table), table.file_uris()
    made = _read_time(name, uri, version)
    time = parse_at(at)
    if isinstance(time, datetime) and made and datetime.fromisoformat(made) > time:
        raise InputError(
            f"{name}: the oldest version that is left was made at {made}, after at = {time}; choose a later time"
        )
    actions = pa.table(table.get_add_actions())
    paths = [unquote(path) for path in actions["path"].to_pylist()]
    partitions = actions["partition"].to_pylist() if "partition" in actions.column_names else [{}] * len(files)
    values = [{key: parse_constant(value, types.field(key).type) for key, value in one.items()} for one in partitions]
    masks = _read_masks(table)
    if masks.keys() - set(files) or [PurePath(path).name for path in paths] != [
        PurePath(unquote(uri)).name for uri in files
    ]:
        raise InputError(f"{name}: names of its files cannot be matched with its log; export the table to Parquet")
    # a file that is named absolutely lies outside: the table was cloned
    files = [path if ABSOLUTE.match(path) else uri for path, uri in zip(paths, files, strict=True)]
    physical = {field.name: find_physical_name(field) for field in pa.schema(table.schema().to_arrow())}
    order = sorted(range(len(files)), key=files.__getitem__)
    opened = _open_files(name, version, [files[i] for i in order])
    pieces: list[TablePiece] = []
    for number, (file, footer) in zip(order, opened, strict=True):
        mask = masks.get(files[number])
        if footer.n_rows:
            pieces.append(DeltaFile(name, file, footer, types, physical, values[number], mask))
    deleted = {uri: int(np.count_nonzero(~mask)) for uri, mask in masks.items()}
    return PinnedTable(
        name=name,
        version=version,
        made=made,
        identity=(str(table.metadata().id), version, [[files[i], deleted.get(files[i], 0)] for i in order]),
        schema=types,
        stored_bytes=sum(file.size for file, _ in opened),
        row_bytes=sum(footer.decoded_bytes for _, footer in opened),
        pieces=tuple(pieces),
    )


def find_delta_version(name: str, location: str, base: Path) -> tuple[int, str]:
    """Return the newest version, and when it was made. Reads the log alone."""
    uri = bucket_url(location, base) or str((base / location).absolute())
    version = _load(name, uri, None).version()
    return version, _read_time(name, uri, version)


def _load(name: str, uri: str, at: int | str | None) -> Any:
    library, wanted = _import_library(), parse_at(at)
    if isinstance(wanted, str):
        raise InputError(
            f'{name}: at = {at!r} is neither a version nor a time; write at = 12 or at = "2026-11-28T06:00:00Z"'
        )
    table, newest = None, -1
    try:
        table = library.DeltaTable(uri)
        newest = table.version()
        if isinstance(wanted, int) and wanted > newest:  # the library would try every version up to it
            raise InputError(f"{name} has no version at = {at}; the newest is {newest}")
        if wanted is not None and wanted != newest:
            table.load_as_version(wanted)
        return table
    except library.exceptions.TableNotFoundError as error:
        raise InputError(f"{name}: no Delta table at {uri} ({describe_error(error)}); check `table`") from error
    except (library.exceptions.DeltaError, ValueError, OverflowError, OSError) as error:
        if at is None or table is None:
            raise InputError(
                f"{name} cannot be read ({describe_error(error)}); check the location and its log"
            ) from error
        raise InputError(
            f"{name} has no version at = {at} ({describe_error(error)}); the newest is {newest}, and the log of old "
            "ones may have been removed"
        ) from error


def _refuse_features(name: str, table: Any) -> None:
    """Raise InputError for a feature that changes what the rows are, and that is not known here."""
    unknown = sorted(set(table.protocol().reader_features or ()) - FEATURES)
    if unknown:
        raise InputError(
            f"{name} uses {', '.join(unknown)}, which cannot be read; export the table to Parquet, or drop the feature"
        )


def _read_types(table: Any) -> pa.Schema:
    fields = [field.remove_metadata().with_nullable(True) for field in pa.schema(table.schema().to_arrow())]
    return pa.schema(fields)


def _read_time(name: str, uri: str, version: int) -> str:
    """Return when a version was committed; empty if its entry in the log was removed."""
    try:
        entry = _open_file(name, f"{uri.rstrip('/')}/_delta_log/{version:020}.json")
    except InputError:
        return ""
    return datetime.fromtimestamp(entry.mtime_ns // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds")


def _read_masks(table: Any) -> dict[str, AnyArray]:
    """Return which rows of each file are kept, for the files with a deletion vector."""
    if "deletionVectors" not in (table.protocol().reader_features or ()):
        return {}
    rows = pa.table(table.deletion_vectors()).to_pydict()
    return {
        unquote(uri.removeprefix("file://")) if uri.startswith("file://") else uri: np.array(kept, bool)
        for uri, kept in zip(rows["filepath"], rows["selection_vector"], strict=True)
    }


def _open_files(name: str, version: int, uris: Sequence[str]) -> list[tuple[UserFile, Footer]]:
    try:
        files = [_open_file(name, uri) for uri in uris]
        return list(zip(files, map_files(read_footer, files), strict=True)) if files else []
    except InputError as error:
        raise InputError(
            f"{name}: a file of version {version} cannot be read ({error}); if it was vacuumed, choose a newer "
            "version, and keep files longer than a run takes"
        ) from error


def _open_file(name: str, uri: str) -> UserFile:
    scheme, separator, rest = uri.partition(":")
    if url := bucket_url(f"{SAME_SCHEMES.get(scheme.lower(), scheme)}{separator}{rest}"):
        location = parse_bucket_path(url)
        if found := find_object(location, open_bucket(location.bucket)):
            return found
        raise InputError(f"no object at {uri}")
    path = Path(re.sub(r"^file:/+", "/", uri))
    return LocalFile(path, f"{name}: {path.name}")


def _import_library() -> Any:
    try:
        import deltalake
        import deltalake.exceptions
    except ImportError as error:
        raise MissingExtraError("Delta tables need deltalake: pip install 'nearcast[delta]'") from error
    return deltalake


def append_to_delta(name: str, location: str, base: Path, rows: MarkedRows) -> bool:
    """Append rows in one commit, and create the table if it is missing. Return False if they are there.

    A transaction of the name of the rows makes a second writer fail, who then finds them.
    Raises StorageError if the table has other columns, or cannot be written.
    """
    library = _import_library()
    uri = bucket_url(location, base) or str((base / location).absolute())
    known = library.CommitProperties(app_transactions=[library.Transaction(f"nearcast/{rows.name}", 1)])
    for attempt in range(APPEND_TRIES):
        try:
            if not library.DeltaTable.is_deltatable(uri):
                library.DeltaTable.create(uri, rows.schema, mode="ignore")
            table = library.DeltaTable(uri)
            refuse_other_columns(name, _read_types(table), rows)
            if _has_rows(table, rows):
                return False
            # into the version that was looked at: a later one with the same transaction is a conflict
            library.write_deltalake(  # merge: columns that the table has beside are null
                table, rows.reader(), mode="append", schema_mode="merge", commit_properties=known
            )
            return True
        except library.exceptions.CommitFailedError as error:
            if attempt == APPEND_TRIES - 1:
                raise StorageError(f"{name}: other writers commit all the time; export again") from error
        except StorageError:
            raise
        except Exception as error:  # of the log, of the storage, or of a cast, which has no class of its own
            raise StorageError(f"{name} cannot be written ({describe_error(error)}); check the location") from error
    raise AssertionError("unreachable")


def _has_rows(table: Any, rows: MarkedRows) -> bool:
    """Return whether a row has the marks; statistics leave out most files."""
    predicate = " AND ".join(f"{mark} = {_sql_value(value)}" for mark, value in rows.marks.items())
    found = pa.RecordBatchReader.from_stream(table.scan(columns=list(rows.marks), predicate=predicate))
    return any(len(batch) for batch in found)


def _sql_value(value: Any) -> str:
    if isinstance(value, datetime):
        return f"TIMESTAMP '{value.astimezone(UTC).isoformat(timespec='microseconds')}'"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
