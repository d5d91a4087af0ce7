"""Snapshots of a generator on disk: find, open and read them; the next version's number.

    <out>/<generator>/snapshots/000001/   manifest.json   candidates/   items/   queries/

A snapshot is there when its manifest is. Versions are numbers, since clocks go backwards.
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

from nearcast.errors import DamagedError, NotFoundError
from nearcast.files import is_done, read_manifest, verify
from nearcast.parquet import open_dataset
from nearcast.suggest import generators_in_words, nearest_in_words, quoted
from nearcast.table.candidate_schema import rows_per_group
from nearcast.table.manifest import Manifest
from nearcast.table.write_table import GROUPS_PER_FILE
from nearcast.times import rows_of_table
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
    """The answer to one look-up."""

    query: str | int
    ids: tuple[str | int, ...]
    scores: tuple[float, ...]
    reason: str | None  # why the list is short, if it is
    columns: Mapping[str, tuple[Any, ...]]  # attribute and display columns of the candidates

    def first(self, k: int) -> Candidates:
        """The best k of them."""
        columns = {name: values[:k] for name, values in self.columns.items()}
        return Candidates(self.query, self.ids[:k], self.scores[:k], self.reason, columns)

    def as_dict(self) -> dict[str, Any]:
        """Plain data: one dictionary per candidate."""
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
        """The version as people write it, such as 000007."""
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
        """The column of the scores that lists are in the order of, and that are served: a ranking model's, if any."""
        return "rank_scores" if self.manifest.is_ranked else "scores"

    @property
    def n_rows(self) -> int:
        """Rows of the candidate table."""
        return self.manifest.rows

    def lookup(self, key: str | int, columns: tuple[str, ...] = ()) -> Candidates:
        """The candidates of one query, with these columns of the items; NotFoundError for an unknown key.

        Reads one row group of the table: for people and tests. Serving reads a store.
        """
        dataset = open_dataset(self.folder / "candidates")
        value = _typed(key, dataset.schema.field("query_id").type)
        found = self._read(dataset, pc.field("query_id") == value) if value is not None else []
        if not found:
            raise NotFoundError(f"{self.generator} {self.name} has no query {quoted(key)}{self._near(dataset, key)}")
        row = found[0]
        ids, scores = tuple(row["candidate_ids"]), tuple(row[self.score_column])
        return Candidates(row["query_id"], ids, scores, row["reason"], self._item_columns(ids, columns))

    def rows(self, numbers: IntArray) -> pa.Table:
        """The rows of the table with these numbers (sorted), reading only the row groups that hold them."""
        group_rows = rows_per_group(self.manifest.k)
        pieces = []
        groups = numbers // group_rows
        for group in np.unique(groups):
            path = self.folder / "candidates" / f"part-{group // GROUPS_PER_FILE:05d}.parquet"
            within = numbers[groups == group] - group * group_rows
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(int(group % GROUPS_PER_FILE), use_threads=False)
            pieces.append(table.take(pa.array(within)))
        return pa.concat_tables(pieces) if pieces else open_dataset(self.folder / "candidates").schema.empty_table()

    def rank_scores(self, query: str | int) -> tuple[float, ...]:
        """A ranking model's scores of a query's list, in its order; none where no model ranked it."""
        dataset = open_dataset(self.folder / "candidates")
        value = _typed(query, dataset.schema.field("query_id").type)
        if "rank_scores" not in dataset.schema.names or value is None:
            return ()
        table = dataset.to_table(columns=["rank_scores"], filter=pc.field("query_id") == value)
        found = table.column(0).to_pylist()
        return tuple(found[0]) if found else ()

    def lists_between(self, first: str | int | None, end: str | int | None) -> pa.Table:
        """query_id and candidate_ids of the queries with first <= id < end; None is no bound."""
        dataset = open_dataset(self.folder / "candidates")
        field, kind = pc.field("query_id"), dataset.schema.field("query_id").type
        inside = pc.scalar(True)
        for bound, holds in ((first, field.__ge__), (end, field.__lt__)):
            value = None if bound is None else _typed(bound, kind)
            if bound is not None and value is None:
                return dataset.schema.empty_table().select(["query_id", "candidate_ids"])
            inside = inside if value is None else inside & holds(value)
        try:
            return dataset.to_table(columns=["query_id", "candidate_ids"], filter=inside, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._damaged(error) from error

    def verify(self) -> None:
        """Compare every byte with the manifest; DamagedError names the file that differs."""
        verify(self.folder, contents=True)

    def _read(self, dataset: Any, condition: Any) -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = dataset.to_table(filter=condition).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise self._damaged(error) from error
        return rows

    def _damaged(self, error: Exception) -> DamagedError:
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
                held = ", ".join(n for n in dataset.schema.names if n != "id") or "none"
                raise NotFoundError(f"{self.generator} {self.name} holds no item column {name!r}; it holds {held}")
        wanted = pa.array(ids, dataset.schema.field("id").type)
        try:
            table = dataset.to_table(columns=["id", *columns], filter=pc.field("id").isin(wanted))
        except (pa.ArrowInvalid, OSError) as error:
            raise self._damaged(error) from error
        places = pc.index_in(wanted, value_set=table.column("id").combine_chunks())
        rows = rows_of_table(table.select(list(dict.fromkeys(columns))).take(places))
        return {name: tuple(row[name] for row in rows) for name in columns}

    def _near(self, dataset: Any, key: str | int) -> str:
        """Name the keys most like the one asked for, else a few, so that a wrong type or spelling is seen at once."""
        keys = dataset.to_table(columns=["query_id"], use_threads=False).column("query_id")
        words = nearest_in_words(key, keys, f"its {self.n_rows:,} keys")
        return f"; {words}" if words else ""


def snapshots_folder(out: Path, generator: str) -> Path:
    """Where the snapshots of a generator are."""
    return out / generator / "snapshots"


def list_generators(out: Path) -> list[str]:
    """The generators that have a snapshot in `out`."""
    return sorted(path.parent.name for path in out.glob("*/snapshots") if any(path.iterdir()))


def open_snapshot(folder: Path) -> Snapshot:
    """The snapshot of a folder; DamagedError where its manifest is missing or unreadable."""
    manifest = Manifest(read_manifest(folder))
    missing = manifest.missing_keys()
    if missing:
        raise DamagedError(f"{folder / 'manifest.json'} lacks {', '.join(missing)}; restore it, or run again")
    return Snapshot(folder.resolve(), manifest)


def list_snapshots(out: Path, generator: str) -> list[Snapshot]:
    """All finished snapshots of a generator, oldest first."""
    folder = snapshots_folder(out, generator)
    if not folder.is_dir():
        return []
    names = sorted((p for p in folder.iterdir() if p.name.isdigit() and is_done(p)), key=lambda p: int(p.name))
    return [open_snapshot(path) for path in names]


def find_snapshot(out: Path, generator: str, version: int | None = None) -> Snapshot:
    """One snapshot, the newest by default; NotFoundError names what there is."""
    found = list_snapshots(out, generator)
    if not found:
        known = list_generators(out)
        hint = generators_in_words(generator, known, "run a generator first")
        raise NotFoundError(f"no snapshot of {generator!r} in {out}; {hint}")
    if version is None:
        return found[-1]
    for snapshot in found:
        if snapshot.version == version:
            return snapshot
    have = f"{found[0].name} to {found[-1].name}"
    raise NotFoundError(f"{generator} has no snapshot {version}; it has {len(found)}, {have}")


def next_version(out: Path, generator: str) -> int:
    """The number after the highest that was ever given a folder, finished or not."""
    folder = snapshots_folder(out, generator)
    taken = [int(name) for name in os.listdir(folder) if name.isdigit()] if folder.is_dir() else []
    return max(taken, default=0) + 1


def _typed(key: str | int, kind: pa.DataType) -> pa.Scalar | None:
    """The key as the table's type, or None where it cannot be one of its keys."""
    try:
        return pa.scalar(int(key) if pa.types.is_integer(kind) else str(key), kind)
    except (ValueError, pa.ArrowInvalid, OverflowError):
        return None
