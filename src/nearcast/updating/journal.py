"""The journal of a generator's updates, <out>/<generator>/updates: the rows of each patch, to apply them again.

    000012/   items.parquet, queries.parquet, gone.parquet   the rows of the batch that changed something
              short.parquet                                  lists that may lack items after it, with their bounds
              manifest.json                                  version, parent, when it was made

An entry is committed before its patch is written. One whose number was never given to a patch is left over by a killed
update, and removed by the next. The entries in force follow each other by `parent`: rolled back ones are skipped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.errors import NotFoundError
from nearcast.storage.artifacts import Artifacts, open_artifacts
from nearcast.storage.locations import Location
from nearcast.storage.open_storage import join_location
from nearcast.stores.base import PatchState
from nearcast.types import AnyArray
from nearcast.updating.live_table import LiveRows
from nearcast.updating.read_batch import BatchRows, UpdateBatch
from nearcast.updating.served_state import ListBound

__all__ = ["JournalEntry", "UpdateJournal", "open_journal"]

ID, VECTOR, SCORED = "id", "vector", "scored vector"


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """An entry of the journal, without its rows."""

    number: int  # of the patch
    version: int  # that the patch changes
    parent: int  # number of the patch in force before it; 0 for none
    made: float  # seconds since 1970, by the store's clock, when its batch was read
    digest: str  # of the batch
    note: str = ""


@dataclass(frozen=True, slots=True)
class UpdateJournal:
    """The journal of one generator."""

    artifacts: Artifacts

    def write(self, entry: JournalEntry, batch: UpdateBatch, short: Mapping[str | int, ListBound]) -> None:
        """Commit an entry. Call it under the publishers' lock, after `remove_leftovers`."""
        facts = {name: getattr(entry, name) for name in entry.__dataclass_fields__}
        self.artifacts.commit(_name(entry.number), partial(_write_files, batch, short, facts))

    def remove_leftovers(self, last_number: int) -> None:
        """Remove the entries of updates that were killed before their patch was written."""
        for number in self._numbers():
            if number > last_number:
                self.artifacts.remove(_name(number))

    def read_chain(self, state: PatchState) -> list[JournalEntry]:
        """Return the entries of the patches in force, oldest first. Raises NotFoundError if one is missing."""
        chain: list[JournalEntry] = []
        number = 0 if state.newest is None else state.newest.number
        while number:
            facts = self.artifacts.facts(_name(number))
            if facts is None:
                raise NotFoundError(
                    f"{self.artifacts.url} has no entry of patch {number}, which is in force: was it written from "
                    "another machine or `out`? Update from there, or run and publish again"
                )
            chain.append(JournalEntry(**{name: facts[name] for name in JournalEntry.__dataclass_fields__}))
            number = chain[-1].parent
        return chain[::-1]

    def read_batch(self, entry: JournalEntry) -> UpdateBatch:
        """Return the rows of an entry, with score terms as they were."""
        folder = self.artifacts.open(_name(entry.number))
        items, queries = (_read_rows(folder / f"{name}.parquet") for name in ("items", "queries"))
        gone = pq.read_table(folder / "gone.parquet").column(ID).combine_chunks()
        return UpdateBatch(items, gone, queries, entry.digest)

    def read_short(self, entry: JournalEntry) -> dict[str | int, ListBound]:
        """Return the lists that may lack items after this entry, with their bounds."""
        rows = pq.read_table(self.artifacts.open(_name(entry.number)) / "short.parquet").to_pylist()
        return {row["query"]: (row["score"], row["item"]) for row in rows}

    def prune(self, versions: Collection[int]) -> None:
        """Remove the entries of versions that the store does not have any more."""
        for number in self._numbers():
            facts = self.artifacts.facts(_name(number))
            if facts is not None and facts["version"] not in versions:
                self.artifacts.remove(_name(number))

    def _numbers(self) -> list[int]:
        return [int(name) for name in self.artifacts.list_names() if name.isdigit()]


def open_journal(out: Location, generator: str) -> UpdateJournal:
    """Open the journal of a generator; it may have no entry yet."""
    return UpdateJournal(open_artifacts(join_location(out, generator, "updates")))


def _name(number: int) -> str:
    return f"{number:06d}"


def _write_files(
    batch: UpdateBatch, short: Mapping[str | int, ListBound], facts: dict[str, Any], folder: Path
) -> dict[str, Any]:
    _write_rows(folder / "items.parquet", batch.items)
    _write_rows(folder / "queries.parquet", batch.queries)
    pq.write_table(pa.table({ID: batch.gone}), folder / "gone.parquet")
    queries, scores, items = list(short), [bound[0] for bound in short.values()], [bound[1] for bound in short.values()]
    columns = {"query": pa.array(queries), "score": pa.array(scores, pa.float64()), "item": pa.array(items)}
    pq.write_table(pa.table(columns), folder / "short.parquet")
    return facts


def _write_rows(path: Path, batch: BatchRows) -> None:
    rows = batch.rows
    columns = {ID: rows.ids, VECTOR: _to_lists(batch.originals)}
    if rows.vectors is not batch.originals and not np.array_equal(rows.vectors, batch.originals):
        columns[SCORED] = _to_lists(rows.vectors)
    attributes = {f"column {name}": rows.attributes.column(name) for name in rows.attributes.column_names}
    pq.write_table(pa.table(columns | attributes), path, compression="zstd")


def _read_rows(path: Path) -> BatchRows:
    table = pq.read_table(path).combine_chunks()
    originals = _to_array(table, VECTOR)
    scored = _to_array(table, SCORED) if SCORED in table.column_names else originals
    names = [name for name in table.column_names if name.startswith("column ")]
    attributes = table.select(names).rename_columns([name.removeprefix("column ") for name in names])
    ids = table.column(ID).combine_chunks() if len(table) else pa.array([], table.schema.field(ID).type)
    return BatchRows(LiveRows(ids, scored, attributes), originals)


def _to_lists(vectors: AnyArray) -> pa.Array:
    flat = np.ascontiguousarray(vectors).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), max(1, vectors.shape[1]))


def _to_array(table: pa.Table, name: str) -> AnyArray:
    kind = table.schema.field(name).type
    column = table.column(name).combine_chunks()
    values = column.flatten() if len(table) else pa.array([], kind.value_type)
    array: AnyArray = values.to_numpy(zero_copy_only=False).reshape(len(table), kind.list_size)
    return array
