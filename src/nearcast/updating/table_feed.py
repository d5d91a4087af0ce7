"""A change feed of a table with versions (Delta, Iceberg, Lance): the rows of files that a newer version has or lacks.

The feed narrows what is read and decides nothing: a row that is the same as before, such as one of a compacted file,
changes nothing in an update. Offsets are {"version": v, "hash": h}, with "to" and "row" within a large change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.sources.open_table import find_version, open_table
from nearcast.sources.pinned_table import PinnedReader, PinnedTable
from nearcast.sources.row_source import MAX_BATCH_ROWS
from nearcast.spec import SourceSpec, parse_model
from nearcast.table.snapshot_reader import Snapshot
from nearcast.updating.change_feed import FeedBatch
from nearcast.updating.read_batch import BatchInputs

__all__ = ["TableFeed"]


class TableFeed:
    """Versions of a table of items.

    snapshot: the served one, which was made of a version of the table: reading begins there, and begins there again
    with `is_again`. most_rows: of a batch.
    """

    def __init__(self, table: str, snapshot: Snapshot, *, most_rows: int, is_again: bool = False) -> None:
        self.name = table
        columns = parse_model(SourceSpec, snapshot.manifest.spec["items"], "the items of the snapshot", recorded=True)
        self._columns = list(dict.fromkeys((columns.id, columns.vector, *columns.columns)))
        self._snapshot = snapshot
        self._most_rows = most_rows
        self._is_again = is_again

    def read(self, offset: Any) -> Iterator[FeedBatch]:
        """Yield what changed between the version of the offset and the newest one, in parts.

        Raises InputError if a version was removed.
        """
        known = {"version": self._find_start()} if offset is None or self._is_again else offset
        self._is_again = False
        newest, made = find_version(self.name, Path())
        to = known.get("to", newest)
        while "to" in known or known["version"] != to:
            yield from self._read_change(known, to, _seconds(made))
            known, to = {"version": to}, newest

    def oldest_waiting(self, offset: Any) -> float | None:
        """Return when the newest version was made, if it has not been read."""
        newest, made = find_version(self.name, Path())
        is_read = offset is not None and "to" not in offset and offset["version"] == newest
        return None if is_read and not self._is_again else _seconds(made)

    def _find_start(self) -> int:
        """Return the version that the snapshot was made of. Raises InputError if it is of another table."""
        recorded = self._snapshot.manifest.facts["inputs"]["items"]["files"][0]
        version = recorded.get("version")
        if version is None or _hash_identity(self._open(version)) != recorded["blake2b"]:
            raise InputError(
                f"snapshot {self._snapshot.name} was made of {recorded['name']}, not of {self.name}; follow that, or "
                "run and publish with this table as the items"
            )
        return int(version)

    def _read_change(self, offset: Mapping[str, Any], to: int, arrived: float) -> Iterator[FeedBatch]:
        """Yield the change from the version of an offset to another one, after the rows that the offset has.

        An offset has the hash of its version: a table that was made again counts its versions from the beginning.
        """
        version, first = offset["version"], offset.get("row", 0)
        before, after = self._open(version), self._open(to)
        hashed = _hash_identity(before)
        if offset.get("hash", hashed) != hashed:
            raise InputError(
                f"{self.name} was made again: its version {version} is not the one that was followed; publish a run of "
                "the new table, and begin there with --again '*'"
            )
        known, kept = {piece.key for piece in before.pieces}, {piece.key for piece in after.pieces}
        added = replace(after, pieces=tuple(piece for piece in after.pieces if piece.key not in known))
        removed = replace(before, pieces=tuple(piece for piece in before.pieces if piece.key not in kept))
        name, end = f"{self.name} at {to}", {"version": to, "hash": _hash_identity(after)}
        gone = None if first else self._find_gone(removed, added)
        row = 0
        for table in _split_rows(added, self._columns, self._most_rows):
            start, row = row, row + len(table)
            if start >= first and len(table):
                part = f"{name} from row {start:,}"
                offset = {"version": version, "hash": hashed, "to": to, "row": row}
                yield FeedBatch(part, offset, arrived, len(table), BatchInputs(items=table, gone=gone), None, end)
                gone = None
        yield FeedBatch(name, end, arrived, 0 if gone is None else len(gone), BatchInputs(gone=gone))

    def _find_gone(self, removed: PinnedTable, added: PinnedTable) -> pa.Table | None:
        """Return the ids of the removed files that no added file has; None if there are none."""
        ids = self._columns[0]
        old, new = (_read_rows(table, [ids]).column(ids) for table in (removed, added))
        gone = pc.drop_null(old.filter(pc.invert(pc.is_in(old, value_set=new.combine_chunks()))))
        return pa.table({ids: gone}) if len(gone) else None

    def _open(self, version: int) -> PinnedTable:
        try:
            table = open_table(self.name, version, Path())
        except InputError as error:
            raise InputError(
                f"the changes of {self.name} since version {version} cannot be read ({error}); publish a run of a "
                "newer version, and begin there with --again '*'"
            ) from error
        if missing := [column for column in self._columns if column not in table.schema.names]:
            raise InputError(
                f"{self.name} has no column {missing[0]!r} in version {version}, and the served snapshot has; publish "
                "a run without it, and begin there with --again '*'"
            )
        return table


def _hash_identity(table: PinnedTable) -> str:
    return str(PinnedReader(table).digest()["blake2b"])


def _read_rows(table: PinnedTable, columns: Sequence[str]) -> pa.Table:
    schema = pa.schema([table.schema.field(name) for name in columns])
    return pa.concat_tables([schema.empty_table(), *PinnedReader(table).read(columns, MAX_BATCH_ROWS)])


def _split_rows(table: PinnedTable, columns: Sequence[str], most_rows: int) -> Iterator[pa.Table]:
    """Yield the rows in their order, so many in each table but the last."""
    held: list[pa.Table] = []
    n_held = 0
    for batch in PinnedReader(table).read(columns, min(most_rows, MAX_BATCH_ROWS)):
        rest = batch
        while len(rest):
            part = rest.slice(0, most_rows - n_held)
            held, n_held, rest = [*held, part], n_held + len(part), rest.slice(len(part))
            if n_held == most_rows:
                yield pa.concat_tables(held)
                held, n_held = [], 0
    if held:
        yield pa.concat_tables(held)


def _seconds(made: str) -> float:
    return datetime.fromisoformat(made).timestamp() if made else 0.0
