"""One version of a table in a table format (Delta, Iceberg, Lance) as a source: its pieces are read side by side.

The version is the digest: no row is hashed. Knows no format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import pyarrow as pa

from nearcast.errors import InputError
from nearcast.files import fingerprint
from nearcast.sources.row_source import Part, RowSpan, describe_part
from nearcast.sources.user_files import UserFile
from nearcast.spec import SourceSpec

__all__ = ["PinnedReader", "PinnedTable", "TablePiece", "describe_pinned", "fit_batch", "parse_at"]


class TablePiece(Protocol):
    """Some rows of a table that are read alone: a data file, or a part of one."""

    @property
    def groups(self) -> tuple[int, ...]:
        """Rows of each run that is read alone; deleted rows may count."""
        ...

    @property
    def key(self) -> str:
        """Return a text that is equal in two versions only if the rows are."""
        ...

    def read(self, columns: Sequence[str], max_rows: int, first: int, last: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of the groups first..last-1 in order, in batches of at most `max_rows`. Raises InputError."""
        ...


@dataclass(frozen=True, slots=True)
class PinnedTable:
    """One version of a table."""

    name: str  # as the spec writes it
    version: int
    made: str  # when the version was committed, ISO 8601; empty if the table does not say
    identity: tuple[Any, ...]  # equal for equal rows: id of the table, version, names of data files
    schema: pa.Schema
    stored_bytes: int
    row_bytes: int  # of all rows when they are read, estimated
    pieces: tuple[TablePiece, ...]


@dataclass(frozen=True, slots=True)
class PinnedReader:
    """Reads a version of a table."""

    table: PinnedTable
    files: tuple[UserFile, ...] = ()  # none whose state is compared: a version does not change

    @property
    def groups(self) -> tuple[int, ...]:
        """Rows of each run that is read alone."""
        return tuple(rows for piece in self.table.pieces for rows in piece.groups)

    def read(self, columns: Sequence[str], max_rows: int) -> Iterator[pa.Table]:
        """Yield tables of the columns, piece by piece."""
        yield from self.read_span(columns, max_rows, RowSpan(0, 0, sum(self.groups)))

    def read_span(self, columns: Sequence[str], max_rows: int, span: RowSpan) -> Iterator[pa.Table]:
        """Yield tables of the columns of a span."""
        names, start = list(dict.fromkeys(columns)), 0
        for piece in self.table.pieces:
            edges = [start]
            for rows in piece.groups:
                edges.append(edges[-1] + rows)
            inside = [i for i in range(len(piece.groups)) if edges[i] >= span.start and edges[i + 1] <= span.stop]
            start = edges[-1]
            if inside:
                for batch in piece.read(names, max_rows, inside[0], inside[-1] + 1):
                    for at in range(0, len(batch), max_rows):
                        yield pa.Table.from_batches([batch.slice(at, max_rows)]).select(names)

    def digest(self) -> dict[str, Any]:
        """Return name, bytes, version and a hash of the version's identity."""
        table = self.table
        made = {"made": table.made} if table.made else {}
        hashed = fingerprint(table.identity)
        return {"name": table.name, "bytes": table.stored_bytes, "blake2b": hashed, "version": table.version, **made}

    def check_contents(self) -> None:
        """Do nothing: a version does not change."""


def describe_pinned(table: PinnedTable, spec: SourceSpec) -> Part:
    """Return the table as the one part of a source. Raises InputError for columns of other types."""
    reader = PinnedReader(table)
    groups = reader.groups
    part = describe_part(table.name, sum(groups), table.schema, table.row_bytes, spec, reader)
    return replace(part, groups=groups)


def fit_batch(
    batch: pa.RecordBatch, schema: pa.Schema, where: str, constants: Mapping[str, Any] | None = None
) -> pa.RecordBatch:
    """Return a batch with the columns of a schema, in its types; a column that the batch lacks is null.

    constants: values of columns that are the same in all rows.
    """
    columns = []
    for field in schema:
        if constants is not None and field.name in constants:
            columns.append(pa.repeat(pa.scalar(constants[field.name], field.type), len(batch)))
            continue
        if field.name not in batch.schema.names:
            columns.append(pa.nulls(len(batch), field.type))
            continue
        column = batch.column(field.name)
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except (pa.ArrowException, ValueError) as error:
            raise InputError(
                f"{where}: column {field.name!r} is {column.type} in a file and {field.type} in the table ({error}); "
                "write the file again"
            ) from error
    return pa.RecordBatch.from_arrays(columns, names=schema.names)


def parse_at(at: int | str | None) -> int | datetime | str | None:
    """Return a time or a number where the text is one. A time without a zone is UTC."""
    if not isinstance(at, str):
        return at
    try:
        time = datetime.fromisoformat(at.strip())
    except ValueError:
        return int(at) if at.strip().isdecimal() else at
    return time if time.tzinfo else time.replace(tzinfo=UTC)
