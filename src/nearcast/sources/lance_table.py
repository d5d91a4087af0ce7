"""Lance datasets: a version as a source. The one user of pylance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from nearcast.errors import InputError, MissingExtraError
from nearcast.files import bucket_url, fingerprint
from nearcast.sources.pinned_table import PinnedTable, fit_batch, parse_at
from nearcast.sources.user_files import describe_error

__all__ = ["find_lance_version", "open_lance"]

GROUP_ROWS = 1 << 17
DECODED = 2  # estimated bytes of rows in memory for each byte of a data file


@dataclass(frozen=True, slots=True)
class LanceFragment:
    """A fragment of a version, without its deleted rows."""

    fragment: Any
    types: pa.Schema
    where: str
    groups: tuple[int, ...]
    columns: str  # with their numbers, by which fragments hold them

    @property
    def key(self) -> str:
        """Return a hash of the names of the files, and the numbers of the columns."""
        return fingerprint([self.fragment.metadata.to_json(), self.columns])

    def read(self, columns: Sequence[str], max_rows: int, first: int, last: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of some rows."""
        schema, offset, rows = pa.schema([self.types.field(name) for name in columns]), sum(self.groups[:first]), 0
        limit = sum(self.groups[first:last])
        try:
            scanner = self.fragment.scanner(
                columns=list(columns), batch_size=max_rows, offset=offset, limit=limit, batch_readahead=1
            )
            for batch in scanner.to_batches():
                rows += len(batch)
                yield fit_batch(batch, schema, self.where)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(
                f"{self.where} cannot be read ({describe_error(error)}); if the version was cleaned up meanwhile, run "
                "again, and keep versions longer than a run takes"
            ) from error
        if rows != limit:
            raise InputError(f"{self.where}: {rows:,} rows came where there were {limit:,}; run again")


def open_lance(name: str, location: str, base: Path, at: int | str | None) -> PinnedTable:
    """Open a version of a dataset. at: a version, a time, or a tag; None: the newest version.

    Raises InputError if there is no dataset, no such version, or its files were removed.
    """
    dataset = _load(name, bucket_url(location, base) or str((base / location).absolute()), at)
    fragments = sorted(dataset.get_fragments(), key=lambda fragment: fragment.fragment_id)
    types = pa.schema([field.remove_metadata().with_nullable(True) for field in dataset.schema])
    stored = sum(file.file_size_bytes or 0 for fragment in fragments for file in fragment.metadata.files)
    columns = str([(field.name(), field.id()) for field in dataset.lance_schema.fields()])
    pieces = [LanceFragment(fragment, types, name, _cut(fragment.count_rows()), columns) for fragment in fragments]
    return PinnedTable(
        name=name,
        version=dataset.version,
        made=_read_time(dataset),
        identity=(dataset.version, [fragment.metadata.to_json() for fragment in fragments], str(types)),
        schema=types,
        stored_bytes=stored,
        row_bytes=DECODED * stored,
        pieces=tuple(piece for piece in pieces if piece.groups),
    )


def find_lance_version(name: str, location: str, base: Path) -> tuple[int, str]:
    """Return the newest version, and when it was made."""
    dataset = _load(name, bucket_url(location, base) or str((base / location).absolute()), None)
    return dataset.version, _read_time(dataset)


def _read_time(dataset: Any) -> str:
    made: datetime = next(one["timestamp"] for one in dataset.versions() if one["version"] == dataset.version)
    return made.astimezone(UTC).isoformat()


def _load(name: str, uri: str, at: int | str | None) -> Any:
    try:
        import lance
    except ImportError as error:
        raise MissingExtraError("Lance datasets need pylance: pip install 'nearcast[lance]'") from error
    try:
        newest = lance.dataset(uri)
    except (ValueError, OSError) as error:
        raise InputError(f"{name}: no Lance dataset at {uri} ({describe_error(error)}); check `table`") from error
    if at is None:
        return newest
    tag = newest.tags.list().get(at) if isinstance(at, str) else None  # before a time: a tag may be named by its day
    if tag is not None and tag["branch"] != _find_branch(newest, uri):  # its number counts versions of that branch
        where = f'write table = "lance:DATASET/tree/{tag["branch"]}"' if tag["branch"] else "write the dataset itself"
        raise InputError(f"{name}: the tag {at!r} is of {tag['branch'] or 'the main branch'}; {where}")
    wanted = parse_at(at) if tag is None else tag["version"]
    version = _find_version(name, newest, wanted) if isinstance(wanted, datetime) else wanted
    try:
        if isinstance(version, str):
            raise ValueError("no such tag")
        return lance.dataset(uri, version=version)
    except (ValueError, OSError, OverflowError) as error:
        raise InputError(
            f"{name} has no version at = {at}: it was cleaned up, or never made; the newest is {newest.version}"
        ) from error


def _find_branch(dataset: Any, uri: str) -> str | None:
    """Return the branch that a location is of; None for the main branch."""
    branch = uri.rstrip("/").rpartition("/tree/")[2]
    return branch if branch in dataset.branches.list() else None


def _find_version(name: str, dataset: Any, at: datetime) -> int:
    """Return the newest version at a time."""
    before = [one["version"] for one in dataset.versions() if one["timestamp"].astimezone(UTC) <= at]
    if not before:
        raise InputError(f"{name}: no version that is left was made before at = {at}; choose a later time")
    return int(max(before))


def _cut(rows: int) -> tuple[int, ...]:
    return tuple(min(GROUP_ROWS, rows - start) for start in range(0, rows, GROUP_ROWS))
