"""An open snapshot: look up a query, read rows, verify. Its files are in a local folder or in a bucket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nearcast.errors import DamagedError, NotFoundError
from nearcast.storage.locations import Location
from nearcast.suggest import describe_nearest, quote_key
from nearcast.table.candidate_schema import rows_per_group
from nearcast.table.manifest import Manifest
from nearcast.table.snapshot_parts import FolderParts, SnapshotParts
from nearcast.table.write_table import GROUPS_PER_FILE
from nearcast.times import to_rows
from nearcast.types import IntArray

__all__ = ["Candidates", "Snapshot"]

PARTS_OF_GROUP = 16  # that are read one after the other
MOST_SEARCHED = 5_000_000  # keys that are all compared with an unknown key


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of one query."""

    query: str | int
    ids: tuple[str | int, ...]
    scores: tuple[float, ...]
    reason: str | None  # why the list is short; None for a full list
    columns: Mapping[str, tuple[Any, ...]]  # attribute and display columns of the candidates

    def first(self, k: int) -> Candidates:
        """Return the best k candidates."""
        columns = {name: values[:k] for name, values in self.columns.items()}
        return Candidates(self.query, self.ids[:k], self.scores[:k], self.reason, columns)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data: one dictionary per candidate."""
        rows = [
            {"rank": rank + 1, "id": self.ids[rank], "score": self.scores[rank]}
            | {name: values[rank] for name, values in self.columns.items()}
            for rank in range(len(self.ids))
        ]
        return {"query": self.query, "length": len(self.ids), "reason": self.reason, "candidates": rows}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a candidate table, open for reading.

    Read its files through `fetch` and `dataset`, and print `url`: the files of a snapshot in a bucket are fetched into
    the host's cache when they are needed, and its `folder` has its name only.
    """

    folder: Path
    manifest: Manifest
    parts: SnapshotParts | None = None  # None: all files are in the folder

    @property
    def url(self) -> str:
        """The snapshot as people write it: its folder, or its URL in a bucket."""
        return self._parts.url

    @property
    def out(self) -> Location:
        """The location that holds the snapshots of all generators."""
        return self._parts.out

    @property
    def _parts(self) -> SnapshotParts:
        return FolderParts(self.folder) if self.parts is None else self.parts

    def has(self, part: str) -> bool:
        """Return whether the snapshot has a part: candidates, items, queries, sketch."""
        return self._parts.has(part)

    def fetch(self, part: str) -> Path:
        """Return a local folder with all files of a part, downloaded and verified if need be; it may not exist."""
        return self._parts.fetch(part)

    def open_file(self, part: str, number: int) -> AbstractContextManager[pq.ParquetFile]:
        """Open the Parquet file of this number of a part."""
        return self._parts.open_file(part, number)

    def dataset(self, part: str, near: pa.Scalar | None = None) -> Any:
        """Open the Parquet files of a part for a query; see `SnapshotParts.dataset`."""
        return self._parts.dataset(part, near)

    @property
    def name(self) -> str:
        """The version as people write it, for example 000007."""
        return self.folder.name

    @property
    def version(self) -> int:
        """The version as a number."""
        return int(self.folder.name)

    @property
    def generator(self) -> str:
        """The name of the generator."""
        return self.manifest.generator

    @property
    def score_column(self) -> str:
        """Column of the scores that order the lists and are served: a ranking model's, if there is one."""
        return "rank_scores" if self.manifest.is_ranked else "scores"

    @property
    def n_rows(self) -> int:
        """Rows of the candidate table."""
        return self.manifest.rows

    def lookup(self, key: str | int, columns: tuple[str, ...] = ()) -> Candidates:
        """Return the candidates of one query, with these item columns. Raises NotFoundError for an unknown key.

        Reads one row group of the table: for people and tests. Services read a store.
        """
        dataset = self.dataset("candidates")
        value = _as_key(key, dataset.schema.field("query_id").type)
        try:
            near = self.dataset("candidates", value)
        except (pa.ArrowInvalid, OSError) as error:
            raise self.explain_damage(error) from error
        rows = self._read(near, pc.field("query_id") == value) if value is not None else []
        if not rows:
            hint = self._suggest(near if self.n_rows > MOST_SEARCHED else dataset, key)
            raise NotFoundError(f"{self.generator} {self.name} has no query {quote_key(key)}{hint}")
        row = rows[0]
        ids, scores = tuple(row["candidate_ids"]), tuple(row[self.score_column])
        return Candidates(row["query_id"], ids, scores, row["reason"], self._item_columns(ids, columns))

    def rows(self, numbers: IntArray, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the table rows with these numbers (sorted), all columns or these. Reads only their row groups."""
        group_rows = self.manifest.group_rows
        pieces = []
        groups = numbers // group_rows
        for group in np.unique(groups):
            in_group = numbers[groups == group] - group * group_rows
            with self._parts.open_file("candidates", int(group // GROUPS_PER_FILE)) as file:
                pieces.append(self._take_rows(file, int(group % GROUPS_PER_FILE), in_group, columns))
        if pieces:
            return pa.concat_tables(pieces)
        nothing = self.dataset("candidates").schema.empty_table()
        return nothing if columns is None else nothing.select(columns)

    def _take_rows(self, file: pq.ParquetFile, group: int, rows: IntArray, columns: Sequence[str] | None) -> pa.Table:
        """Read some rows (ascending) of a row group; if ids are long, a part of it at a time."""
        if self.manifest.group_rows == rows_per_group(self.manifest.k):
            return file.read_row_group(group, columns=columns, use_threads=False).take(pa.array(rows))
        first, batches = 0, []
        step = max(1, self.manifest.group_rows // PARTS_OF_GROUP)
        for batch in file.iter_batches(step, row_groups=[group], columns=columns, use_threads=False):
            low, high = np.searchsorted(rows, (first, first + len(batch)))
            batches.append(batch.take(pa.array(rows[low:high] - first)))
            first += len(batch)
        return pa.Table.from_batches(batches)

    def rank_scores(self, query: str | int) -> tuple[float, ...]:
        """Return a ranking model's scores of a query's list, in its order; empty without a model."""
        dataset = self.dataset("candidates")
        value = _as_key(query, dataset.schema.field("query_id").type)
        if "rank_scores" not in dataset.schema.names or value is None:
            return ()
        near = self.dataset("candidates", value)
        table = near.to_table(columns=["rank_scores"], filter=pc.field("query_id") == value)
        lists = table.column(0).to_pylist()
        return tuple(lists[0]) if lists else ()

    def lists_between(self, first: str | int | None, end: str | int | None) -> pa.Table:
        """Return query_id and candidate_ids of the queries with first <= id < end; None: no bound."""
        dataset = self.dataset("candidates")
        field, kind = pc.field("query_id"), dataset.schema.field("query_id").type
        inside = pc.scalar(True)
        for bound, compare in ((first, field.__ge__), (end, field.__lt__)):
            value = None if bound is None else _as_key(bound, kind)
            if bound is not None and value is None:
                return dataset.schema.empty_table().select(["query_id", "candidate_ids"])
            inside = inside if value is None else inside & compare(value)
        try:
            return dataset.to_table(columns=["query_id", "candidate_ids"], filter=inside, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise self.explain_damage(error) from error

    def verify(self) -> None:
        """Compare every byte with the manifest. Raises DamagedError that names the file."""
        self._parts.verify()

    def _read(self, dataset: Any, condition: Any) -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = dataset.to_table(filter=condition).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise self.explain_damage(error) from error
        return rows

    def explain_damage(self, error: Exception) -> DamagedError:
        """Return the error that names the damaged file, for an error of a reader."""
        try:
            self.verify()
        except DamagedError as damage:
            return damage
        return DamagedError(f"{self.url} cannot be read: {error}")

    def _item_columns(self, ids: tuple[str | int, ...], columns: tuple[str, ...]) -> dict[str, tuple[Any, ...]]:
        if not columns or not ids:
            return dict.fromkeys(columns, ())
        dataset = self.dataset("items")
        for name in columns:
            if name == "id" or name not in dataset.schema.names:
                known = ", ".join(n for n in dataset.schema.names if n != "id") or "none"
                raise NotFoundError(f"{self.generator} {self.name} holds no item column {name!r}; it holds {known}")
        keys = pa.array(ids, dataset.schema.field("id").type)
        try:
            table = dataset.to_table(columns=["id", *columns], filter=pc.field("id").isin(keys))
        except (pa.ArrowInvalid, OSError) as error:
            raise self.explain_damage(error) from error
        order = pc.index_in(keys, value_set=table.column("id").combine_chunks())
        rows = to_rows(table.select(list(dict.fromkeys(columns))).take(order))
        return {name: tuple(row[name] for row in rows) for name in columns}

    def _suggest(self, dataset: Any, key: str | int) -> str:
        """Name the keys most similar to `key`, else a few keys, to show a wrong type or spelling.

        Of a large table, only those of one file are compared: the file that would hold the key.
        """
        keys = dataset.head(MOST_SEARCHED, columns=["query_id"], use_threads=False).column("query_id")
        some = "some of " if len(keys) < self.n_rows else ""
        words = describe_nearest(key, keys, f"{some}its {self.n_rows:,} keys")
        return f"; {words}" if words else ""


def _as_key(key: str | int, kind: pa.DataType) -> pa.Scalar | None:
    """Convert a key to the table's type; None if it cannot be one of its keys."""
    try:
        return pa.scalar(int(key) if pa.types.is_integer(kind) else str(key), kind)
    except (ValueError, pa.ArrowInvalid, OverflowError):
        return None
