"""The journal of a generator's updates, <out>/<generator>/updates: the rows of each patch, to apply them again.

    000012/   items.parquet, queries.parquet, gone.parquet   the rows of the batch
              short.parquet                                  lists that may lack items after it, with their bounds
              manifest.json                                  version, parent, when it was made
    rows-000007-000064/   the rows of all patches of version 7 up to 64, in one: see `keep_rows`
    state-000007-000064/  see `state_cache`

An entry is committed before its patch is written. One whose number was never given to a patch is left over by a killed
update, and removed by the next. The entries in force follow each other by `parent`: rolled back ones are skipped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.errors import DamagedError, NearcastError, NotFoundError
from nearcast.files import verify
from nearcast.storage.artifacts import Artifacts, open_artifacts
from nearcast.storage.locations import Location
from nearcast.storage.open_storage import join_location
from nearcast.stores.base import PatchState
from nearcast.types import AnyArray
from nearcast.updating.live_table import LiveRows
from nearcast.updating.read_batch import BatchRows, UpdateBatch
from nearcast.updating.served_state import ListBound

__all__ = ["JournalEntry", "UpdateJournal", "cache_name", "open_journal", "read_bounds", "write_bounds"]

ROWS = "rows"
ROWS_EVERY = 64  # patches
ROWS_KEPT = 2  # a rollback beyond both reads entry by entry

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
        """Remove entries of updates that were killed before their patch was written, and caches of such numbers."""
        for name in self.artifacts.list_names():
            if _last_part(name) > last_number and (name.isdigit() or _is_cache(name)):
                self.artifacts.remove(name)

    def list_entries(self, version: int) -> list[JournalEntry]:
        """Return all entries of a version, oldest first, also those of patches that were rolled back."""
        return [entry for entry in map(self._find, self.artifacts.list_names()) if entry and entry.version == version]

    def _find(self, name: str) -> JournalEntry | None:
        facts = self.artifacts.facts(name) if name.isdigit() else None
        return JournalEntry(**{key: facts[key] for key in JournalEntry.__dataclass_fields__}) if facts else None

    def read_chain(self, state: PatchState) -> list[JournalEntry]:
        """Return the entries of the patches in force, oldest first. Raises NotFoundError if one is missing."""
        return list(self._walk(state))[::-1]

    def _walk(self, state: PatchState) -> Iterator[JournalEntry]:
        """Yield the entries of the patches in force, newest first. Raises NotFoundError at one that is missing."""
        number = 0 if state.newest is None else state.newest.number
        while number:
            facts = self.artifacts.facts(_name(number))
            if facts is None:
                raise NotFoundError(
                    f"{self.artifacts.url} has no entry of patch {number}, which is in force: was it written from "
                    "another machine or `out`? Update from there, or run and publish again"
                )
            entry = JournalEntry(**{name: facts[name] for name in JournalEntry.__dataclass_fields__})
            yield entry
            number = entry.parent

    def read_rows(self, state: PatchState) -> tuple[JournalEntry | None, list[UpdateBatch]]:
        """Return the newest entry in force, and batches that have the effect of all, oldest first.

        Reads the rows kept last and the entries after them. The vectors of kept rows have score terms in them.
        """
        newest, batches = None, list[UpdateBatch]()
        for entry in self._walk(state):
            newest = newest or entry
            kept = self._read_kept(entry)
            batches.append(kept or self.read_batch(entry))
            if kept is not None:
                break
        return newest, batches[::-1]

    def keep_rows(self, entry: JournalEntry, rows: Callable[[], UpdateBatch]) -> None:
        """Keep the rows of all entries up to this one, for every 64th patch. Without, entries are read one by one."""
        if entry.number % ROWS_EVERY:
            return
        facts = {name: getattr(entry, name) for name in entry.__dataclass_fields__}
        with contextlib.suppress(NearcastError, OSError):
            self.artifacts.commit(
                cache_name(ROWS, entry.version, entry.number), partial(_write_files, rows(), {}, facts)
            )
            for name in [name for name in self.artifacts.list_names() if name.startswith(f"{ROWS}-")][:-ROWS_KEPT]:
                self.artifacts.remove(name)

    def _read_kept(self, entry: JournalEntry) -> UpdateBatch | None:
        """Return the rows kept at an entry; None if there are none, or they are damaged or of another one."""
        name = cache_name(ROWS, entry.version, entry.number)
        with contextlib.suppress(NearcastError, OSError):
            facts = self.artifacts.facts(name)
            if facts is not None and all(
                facts.get(name) == getattr(entry, name) for name in entry.__dataclass_fields__
            ):
                folder = self.artifacts.open(name)
                verify(folder, contents=True)
                return _read_batch(folder, entry.digest)
        return None

    def read_batch(self, entry: JournalEntry) -> UpdateBatch:
        """Return the rows of an entry, with score terms as they were."""
        return _read_batch(self._open(entry), entry.digest)

    def read_short(self, entry: JournalEntry) -> dict[str | int, ListBound]:
        """Return the lists that may lack items after this entry, with their bounds."""
        return read_bounds(self._open(entry))

    def _open(self, entry: JournalEntry) -> Path:
        """Return the folder of an entry. Raises DamagedError if a file of it was changed or lost."""
        try:
            folder = self.artifacts.open(_name(entry.number))
            verify(folder, contents=True)
        except DamagedError as error:
            raise DamagedError(
                f"the journal entry of patch {entry.number} is damaged ({error}); restore it, or run and publish again"
            ) from error
        return folder

    def prune(self, versions: Collection[int]) -> None:
        """Remove the entries and caches of versions that the store does not have any more."""
        for name in self.artifacts.list_names():
            facts = self.artifacts.facts(name) if name.isdigit() or _is_cache(name) else None
            if facts is not None and facts["version"] not in versions:
                self.artifacts.remove(name)


def open_journal(out: Location, generator: str) -> UpdateJournal:
    """Open the journal of a generator; it may have no entry yet."""
    return UpdateJournal(open_artifacts(join_location(out, generator, "updates")))


def cache_name(kind: str, version: int, number: int) -> str:
    """Return the name of a cache of the state of a version after a patch."""
    return f"{kind}-{version:06d}-{number:06d}"


def read_bounds(folder: Path) -> dict[str | int, ListBound]:
    """Read lists that may lack items, with their bounds."""
    rows = pq.read_table(folder / "short.parquet").to_pylist()
    return {row["query"]: (row["score"], row["item"]) for row in rows}


def write_bounds(folder: Path, short: Mapping[str | int, ListBound]) -> None:
    """Write what `read_bounds` reads."""
    queries, scores, items = list(short), [bound[0] for bound in short.values()], [bound[1] for bound in short.values()]
    columns = {"query": pa.array(queries), "score": pa.array(scores, pa.float64()), "item": pa.array(items)}
    pq.write_table(pa.table(columns), folder / "short.parquet")


def _name(number: int) -> str:
    return f"{number:06d}"


def _is_cache(name: str) -> bool:
    return name.startswith((f"{ROWS}-", "state-")) and _last_part(name) >= 0


def _last_part(name: str) -> int:
    """Return the number of the patch that an entry or a cache is of; -1 for another name."""
    number = name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _read_batch(folder: Path, digest: str) -> UpdateBatch:
    items, queries = (_read_rows(folder / f"{name}.parquet") for name in ("items", "queries"))
    gone = pq.read_table(folder / "gone.parquet").column(ID).combine_chunks()
    return UpdateBatch(items, gone, queries, digest)


def _write_files(
    batch: UpdateBatch, short: Mapping[str | int, ListBound], facts: dict[str, Any], folder: Path
) -> dict[str, Any]:
    _write_rows(folder / "items.parquet", batch.items)
    _write_rows(folder / "queries.parquet", batch.queries)
    pq.write_table(pa.table({ID: batch.gone}), folder / "gone.parquet")
    write_bounds(folder, short)
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
