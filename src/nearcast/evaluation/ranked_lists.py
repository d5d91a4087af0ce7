"""Sources of ranked lists: a snapshot, a version in a store, and the popularity baseline that gives all the same items.

A source reads the lists of sorted queries in batches, so that a table is never in memory as a whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nearcast.errors import DamagedError
from nearcast.evaluation.sorted_ids import SortedIds
from nearcast.stores.base import Reader, Space
from nearcast.stores.value_format import IdType, decode_lists, encode_keys, id_type
from nearcast.table.snapshot import Snapshot
from nearcast.types import IntArray

__all__ = [
    "ListBatch",
    "PopularLists",
    "PublishedLists",
    "RankedLists",
    "SnapshotFiles",
    "SnapshotLists",
    "open_snapshot_files",
]

KEYS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class ListBatch:
    """Lists of some queries, flat: list i is ids[offsets[i]:offsets[i + 1]], best first."""

    queries: IntArray  # (n,) positions of the queries
    offsets: IntArray  # (n + 1,)
    ids: pa.Array


class RankedLists(Protocol):
    """Where lists come from."""

    name: str  # for people
    query_ids: IdType
    item_ids: IdType

    def read(self, queries: SortedIds) -> Iterator[ListBatch]:
        """Yield the lists of the queries that have one. queries: of the source's type."""
        ...


class SnapshotFiles:
    """The Parquet files of a table by part, of a snapshot or of a run that is not committed yet."""

    def __init__(
        self, names: Sequence[str], open_file: Callable[[str, int], contextlib.AbstractContextManager[pq.ParquetFile]]
    ) -> None:
        """names: of all files, for example candidates/part-00000.parquet. open_file: opens a part's file by number."""
        self._counts = {part: sum(name.startswith(f"{part}/part-") for name in names) for part in _parts(names)}
        self._open_file = open_file

    def has(self, part: str) -> bool:
        """Return whether there is a file of the part."""
        return self._counts.get(part, 0) > 0

    def schema(self, part: str) -> pa.Schema:
        """Return the schema of a part."""
        with self._open_file(part, 0) as file:
            return file.schema_arrow

    def iterate(self, part: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield columns of a part by row group."""
        for file, group in self.iterate_groups(part):
            yield file.read_row_group(group, columns=list(columns), use_threads=False)

    def iterate_groups(self, part: str) -> Iterator[tuple[pq.ParquetFile, int]]:
        """Yield open files with the number of each row group."""
        for number in range(self._counts.get(part, 0)):
            with self._open_file(part, number) as file:
                for group in range(file.num_row_groups):
                    yield file, group


def open_snapshot_files(snapshot: Snapshot) -> SnapshotFiles:
    """Return the files of a committed snapshot."""
    return SnapshotFiles(list(snapshot.manifest.facts["files"]), snapshot.open_file)


def _parts(names: Sequence[str]) -> set[str]:
    return {name.partition("/")[0] for name in names if "/" in name}


class SnapshotLists:
    """The lists of a snapshot. Reads ids of queries by row group, and candidates of groups with labelled queries."""

    def __init__(
        self, files: SnapshotFiles, name: str, explain: Callable[[Exception], Exception] | None = None
    ) -> None:
        """explain: turns an error of Arrow into one that names the damaged file."""
        self.name = name
        self.files = files
        self._explain = explain or (lambda error: DamagedError(f"{name} cannot be read: {error}"))
        schema = self._guard(lambda: files.schema("candidates"))
        self.query_ids = id_type(schema.field("query_id").type)
        self.item_ids = id_type(schema.field("candidate_ids").type.value_type)

    def read(self, queries: SortedIds) -> Iterator[ListBatch]:
        """Yield the lists by row group."""
        try:
            for file, group in self.files.iterate_groups("candidates"):
                batch = _read_group(file, group, queries)
                if batch is not None:
                    yield batch
        except (pa.ArrowException, OSError) as error:
            raise self._explain(error) from error

    def iterate_rows(self, part: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield columns of the items or the queries. Raises DamagedError if a file cannot be read."""
        try:
            yield from self.files.iterate(part, columns)
        except (pa.ArrowException, OSError) as error:
            raise self._explain(error) from error

    def _guard(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (pa.ArrowException, OSError) as error:
            raise self._explain(error) from error


def _read_group(file: pq.ParquetFile, group: int, queries: SortedIds) -> ListBatch | None:
    """Return the lists of the row group's queries among `queries`; None if it has none of them."""
    ids = file.read_row_group(group, columns=["query_id"], use_threads=False).column(0)
    rows, positions = queries.match(ids)
    if not len(rows):
        return None
    column = file.read_row_group(group, columns=["candidate_ids"], use_threads=False).column(0)
    lists = column.take(pa.array(rows)).combine_chunks()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return ListBatch(positions, offsets - offsets[0], lists.flatten())


class PublishedLists:
    """The lists of a version in a store, with its patches, and without items that `find_removed` marks."""

    def __init__(
        self,
        reader: Reader,
        ids: tuple[IdType, IdType],
        name: str,
        find_removed: Callable[[Sequence[Any]], Sequence[bool]] | None = None,
    ) -> None:
        """ids: types of the ids of queries and items."""
        self.name = name
        self.query_ids, self.item_ids = ids
        self._reader = reader
        self._find_removed = find_removed

    def read(self, queries: SortedIds) -> Iterator[ListBatch]:
        """Yield the lists of a few thousand keys at a time."""
        for start in range(0, len(queries.ids), KEYS_AT_ONCE):
            keys = encode_keys(queries.ids.slice(start, KEYS_AT_ONCE))
            lists = decode_lists(self._reader.get_many(Space.LISTS, keys), self.item_ids)
            rows = np.flatnonzero(lists.found)
            offsets, ids = np.append(lists.offsets[rows], len(lists.ids)), lists.ids
            if self._find_removed is not None:
                kept = ~np.array(self._find_removed(ids.to_pylist()), np.bool_)
                ids, offsets = ids.filter(pa.array(kept)), np.append(0, np.cumsum(kept))[offsets]
            yield ListBatch(queries.positions[start + rows], offsets, ids)


class PopularLists:
    """The same items for every query, the most popular first; without the query's own item if that is excluded."""

    name = "popularity"

    def __init__(self, items: pa.Array, query_ids: IdType, *, without_self: bool) -> None:
        """items: one more than the deepest metric needs, since one of them may be the query."""
        self.query_ids = query_ids
        self.item_ids = id_type(items.type)
        self._items = items
        self._without_self = without_self and self.query_ids == self.item_ids

    def read(self, queries: SortedIds) -> Iterator[ListBatch]:
        """Yield the same list for every query."""
        width = len(self._items)
        for start in range(0, len(queries.ids), KEYS_AT_ONCE):
            some = queries.ids.slice(start, KEYS_AT_ONCE)
            kept = np.ones((len(some), width), np.bool_)
            if self._without_self:
                own = pc.index_in(some.cast(self._items.type), value_set=self._items)
                rows = np.flatnonzero(own.is_valid().to_numpy(zero_copy_only=False))
                kept[rows, own.drop_null().to_numpy()] = False
            places = np.broadcast_to(np.arange(width), kept.shape)[kept]
            offsets = np.append(0, np.cumsum(kept.sum(axis=1)))
            yield ListBatch(queries.positions[start : start + len(some)], offsets, self._items.take(pa.array(places)))
