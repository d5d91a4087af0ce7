"""Snapshots of a generator on disk: find, open and read them, and number the next one.

    <out>/<generator>/snapshots/000001/   manifest.json   candidates/   items/   queries/

A snapshot is complete if it contains a manifest. Versions are numbers, since clocks can go backwards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nearcast.artifact_files import open_dataset
from nearcast.errors import DamagedError, NotFoundError
from nearcast.files import is_done, read_manifest, verify
from nearcast.suggest import describe_generators, describe_nearest, quote_key
from nearcast.table.candidate_schema import rows_per_group
from nearcast.table.manifest import Manifest
from nearcast.table.write_table import GROUPS_PER_FILE
from nearcast.times import to_rows
from nearcast.types import IntArray

__all__ = [
    "Candidates",
    "Snapshot",
    "find_snapshot",
    "list_generators",
    "list_snapshots",
    "next_version",
    "open_snapshot",
    "snapshots_folder",
]


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
    """One version of a candidate table, open for reading."""

    folder: Path
    manifest: Manifest

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
        dataset = open_dataset(self.folder / "candidates")
        value = _as_key(key, dataset.schema.field("query_id").type)
        rows = self._read(dataset, pc.field("query_id") == value) if value is not None else []
        if not rows:
            hint = self._suggest(dataset, key)
            raise NotFoundError(f"{self.generator} {self.name} has no query {quote_key(key)}{hint}")
        row = rows[0]
        ids, scores = tuple(row["candidate_ids"]), tuple(row[self.score_column])
        return Candidates(row["query_id"], ids, scores, row["reason"], self._item_columns(ids, columns))

    def rows(self, numbers: IntArray) -> pa.Table:
        """Return the table rows with these numbers (sorted). Reads only their row groups."""
        group_rows = rows_per_group(self.manifest.k)
        pieces = []
        groups = numbers // group_rows
        for group in np.unique(groups):
            path = self.folder / "candidates" / f"part-{group // GROUPS_PER_FILE:05d}.parquet"
            in_group = numbers[groups == group] - group * group_rows
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(int(group % GROUPS_PER_FILE), use_threads=False)
            pieces.append(table.take(pa.array(in_group)))
        return pa.concat_tables(pieces) if pieces else open_dataset(self.folder / "candidates").schema.empty_table()

    def rank_scores(self, query: str | int) -> tuple[float, ...]:
        """Return a ranking model's scores of a query's list, in its order; empty without a model."""
        dataset = open_dataset(self.folder / "candidates")
        value = _as_key(query, dataset.schema.field("query_id").type)
        if "rank_scores" not in dataset.schema.names or value is None:
            return ()
        table = dataset.to_table(columns=["rank_scores"], filter=pc.field("query_id") == value)
        lists = table.column(0).to_pylist()
        return tuple(lists[0]) if lists else ()

    def lists_between(self, first: str | int | None, end: str | int | None) -> pa.Table:
        """Return query_id and candidate_ids of the queries with first <= id < end; None: no bound."""
        dataset = open_dataset(self.folder / "candidates")
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
            raise self._explain_damage(error) from error

    def verify(self) -> None:
        """Compare every byte with the manifest. Raises DamagedError that names the file."""
        verify(self.folder, contents=True)

    def _read(self, dataset: Any, condition: Any) -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = dataset.to_table(filter=condition).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise self._explain_damage(error) from error
        return rows

    def _explain_damage(self, error: Exception) -> DamagedError:
        try:
            self.verify()
        except DamagedError as damage:
            return damage
        return DamagedError(f"{self.folder} cannot be read: {error}")

    def _item_columns(self, ids: tuple[str | int, ...], columns: tuple[str, ...]) -> dict[str, tuple[Any, ...]]:
        if not columns or not ids:
            return dict.fromkeys(columns, ())
        dataset = open_dataset(self.folder / "items")
        for name in columns:
            if name == "id" or name not in dataset.schema.names:
                known = ", ".join(n for n in dataset.schema.names if n != "id") or "none"
                raise NotFoundError(f"{self.generator} {self.name} holds no item column {name!r}; it holds {known}")
        keys = pa.array(ids, dataset.schema.field("id").type)
        try:
            table = dataset.to_table(columns=["id", *columns], filter=pc.field("id").isin(keys))
        except (pa.ArrowInvalid, OSError) as error:
            raise self._explain_damage(error) from error
        order = pc.index_in(keys, value_set=table.column("id").combine_chunks())
        rows = to_rows(table.select(list(dict.fromkeys(columns))).take(order))
        return {name: tuple(row[name] for row in rows) for name in columns}

    def _suggest(self, dataset: Any, key: str | int) -> str:
        """Name the keys most similar to `key`, else a few keys, to show a wrong type or spelling."""
        keys = dataset.to_table(columns=["query_id"], use_threads=False).column("query_id")
        words = describe_nearest(key, keys, f"its {self.n_rows:,} keys")
        return f"; {words}" if words else ""


def snapshots_folder(out: Path, generator: str) -> Path:
    """Return the folder of a generator's snapshots."""
    return out / generator / "snapshots"


def list_generators(out: Path) -> list[str]:
    """List the generators that have a snapshot in `out`."""
    return sorted(path.parent.name for path in out.glob("*/snapshots") if any(path.iterdir()))


def open_snapshot(folder: Path) -> Snapshot:
    """Open the snapshot in a folder. Raises DamagedError if its manifest is missing, unreadable or incomplete."""
    manifest = Manifest(read_manifest(folder))
    missing = manifest.missing_keys()
    if missing:
        raise DamagedError(f"{folder / 'manifest.json'} lacks {', '.join(missing)}; restore it, or run again")
    return Snapshot(folder.resolve(), manifest)


def list_snapshots(out: Path, generator: str) -> list[Snapshot]:
    """List all finished snapshots of a generator, oldest first."""
    folder = snapshots_folder(out, generator)
    if not folder.is_dir():
        return []
    names = sorted((p for p in folder.iterdir() if p.name.isdigit() and is_done(p)), key=lambda p: int(p.name))
    return [open_snapshot(path) for path in names]


def find_snapshot(out: Path, generator: str, version: int | None = None) -> Snapshot:
    """Find a snapshot, the newest by default. Raises NotFoundError that names the existing ones."""
    snapshots = list_snapshots(out, generator)
    if not snapshots:
        known = list_generators(out)
        hint = describe_generators(generator, known, "run a generator first")
        raise NotFoundError(f"no snapshot of {generator!r} in {out}; {hint}")
    if version is None:
        return snapshots[-1]
    for snapshot in snapshots:
        if snapshot.version == version:
            return snapshot
    existing = f"{snapshots[0].name} to {snapshots[-1].name}"
    raise NotFoundError(f"{generator} has no snapshot {version}; it has {len(snapshots)}, {existing}")


def next_version(out: Path, generator: str) -> int:
    """Return the number after the highest snapshot folder, finished or not."""
    folder = snapshots_folder(out, generator)
    taken = [int(name) for name in os.listdir(folder) if name.isdigit()] if folder.is_dir() else []
    return max(taken, default=0) + 1


def _as_key(key: str | int, kind: pa.DataType) -> pa.Scalar | None:
    """Convert a key to the table's type; None if it cannot be one of its keys."""
    try:
        return pa.scalar(int(key) if pa.types.is_integer(kind) else str(key), kind)
    except (ValueError, pa.ArrowInvalid, OverflowError):
        return None
