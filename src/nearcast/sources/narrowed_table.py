"""A newer version of a table that reads only what changed: other rows come from the ingestion of an earlier version.

The data files that a version adds and removes narrow what is read, and decide nothing: the source has the same rows,
and the same digest, as the whole version. That is certain if no row of either version has a fault, so `narrow_table`
reads the added files once to see; otherwise the whole version is read. Knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.sources.attribute_rows import read_attribute_range
from nearcast.sources.changes import slice_ids
from nearcast.sources.column_roles import list_array
from nearcast.sources.ids import find_sorted
from nearcast.sources.ingest import IngestedTable, list_attributes, read_attributes
from nearcast.sources.pinned_table import PinnedReader, PinnedTable
from nearcast.sources.row_source import MAX_BATCH_ROWS, RowSource
from nearcast.sources.stage_rows import StageSettings, stage_table
from nearcast.spec import GeneratorSpec
from nearcast.types import IntArray

__all__ = ["NarrowedRows", "narrow_source", "narrow_table"]

BLOCK_ROWS = MAX_BATCH_ROWS
MOST_SHARE = 0.5  # of the rows: above it little is saved


@dataclass(frozen=True, slots=True)
class NarrowedRows:
    """Which rows of an earlier ingestion are left, and which files of the newer version are read."""

    removed: IntArray  # ascending positions in the ingested table
    added: tuple[str, ...]  # keys of the files


@dataclass(frozen=True, slots=True)
class IngestedPiece:
    """The rows of an ingested table that are left, as a piece of a newer version."""

    table: IngestedTable
    removed: IntArray
    id_column: str
    vector_column: str

    @property
    def key(self) -> str:
        """Return a text that no file has."""
        return f"ingested {self.table.fingerprint}"

    @property
    def groups(self) -> tuple[int, ...]:
        """Rows that are left of each block of positions."""
        edges = np.append(np.arange(0, self.table.vectors.n, BLOCK_ROWS), self.table.vectors.n)
        return tuple((np.diff(edges) - np.diff(np.searchsorted(self.removed, edges))).tolist())

    def read(self, columns: Sequence[str], max_rows: int, first: int, last: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of some blocks."""
        stop = min(last * BLOCK_ROWS, self.table.vectors.n)
        for start in range(first * BLOCK_ROWS, stop, max_rows):
            yield self._read(columns, start, min(stop, start + max_rows))

    def _read(self, columns: Sequence[str], start: int, stop: int) -> pa.RecordBatch:
        left = np.ones(stop - start, np.bool_)
        left[self.removed[slice(*np.searchsorted(self.removed, (start, stop)))] - start] = False
        found: dict[str, pa.Array] = {}
        if self.vector_column in columns:
            found[self.vector_column] = list_array(self.table.vectors.read(start, stop)[left], self.table.fingerprint)
        if self.id_column in columns:
            found[self.id_column] = slice_ids(self.table.ids, start, stop).filter(pa.array(left))
        names = [name for name in columns if name not in (self.id_column, self.vector_column)]
        if names:
            rows = read_attribute_range(self.table, names, start, stop).filter(pa.array(left))
            found |= {name: rows.column(name).combine_chunks() for name in names}
        return pa.RecordBatch.from_pydict({name: found[name] for name in columns})


def narrow_source(source: RowSource, old: IngestedTable, rows: NarrowedRows) -> RowSource:
    """Return the source of a version with the rows that are left of an earlier ingestion, and the added files."""
    table, added = _read_version(source), set(rows.added)
    left = IngestedPiece(old, rows.removed, source.spec.id, source.spec.vector)
    return _replace_pieces(source, table, (left, *(piece for piece in table.pieces if piece.key in added)))


def narrow_table(
    source: RowSource,
    before: PinnedTable,
    old: IngestedTable,
    facts: Mapping[str, Any],
    spec: GeneratorSpec,
    settings: StageSettings,
) -> NarrowedRows | None:
    """Return how to read a version of a table by an earlier one; None if all of it must be read.

    before: the earlier version. old, facts: its ingestion with these columns and checks, and the report on its rows.
    """
    if facts["problems"] or not facts["rows"] == facts["vectors"] == facts["listed"] == old.vectors.n:
        return None
    if not _have_equal_types(source, old):
        return None
    now = _read_version(source)
    known, kept = ({piece.key for piece in table.pieces} for table in (before, now))
    added = tuple(piece for piece in now.pieces if piece.key not in known)
    gone = tuple(piece for piece in before.pieces if piece.key not in kept)
    if sum(sum(piece.groups) for piece in (*added, *gone)) > MOST_SHARE * sum(PinnedReader(now).groups):
        return None
    removed = _find_rows(_replace_pieces(source, before, gone), old, settings)
    if removed is None:
        return None
    added_source = _replace_pieces(source, now, added)
    if added:
        staged = stage_table(added_source, spec, replace(settings, with_vectors=False), "items")
        if staged.facts.faults or staged.facts.dim not in (0, facts["dim"]):
            return None
        for number in range(len(staged.ranges)):
            positions = _find(staged.open_range(number).ids, old)
            if not np.isin(positions[positions >= 0], removed).all():
                return None  # an id of an added file is in another file too
    return NarrowedRows(removed, tuple(piece.key for piece in added))


def _read_version(source: RowSource) -> PinnedTable:
    reader = source.parts[0].reader
    assert isinstance(reader, PinnedReader), "a source of a table in a table format"
    return reader.table


def _replace_pieces(source: RowSource, table: PinnedTable, pieces: tuple[Any, ...]) -> RowSource:
    reader = PinnedReader(replace(table, pieces=pieces))
    part = replace(source.parts[0], reader=reader, groups=reader.groups, n_rows=sum(reader.groups))
    return replace(source, parts=(part,))


def _have_equal_types(source: RowSource, old: IngestedTable) -> bool:
    """Return whether the columns of an ingestion hold the values of the source as they are."""
    part, columns = source.parts[0], list(source.spec.columns)
    if pa.from_numpy_dtype(old.vectors.dtype) != part.vector_type.value_type or old.ids.type != part.id_type:
        return False
    if not set(columns) <= set(list_attributes(old)):
        return False
    stored = read_attributes(old, columns, 0, 1).schema
    return all(stored.field(name).type == part.attribute_types[name] for name in columns)


def _find_rows(gone: RowSource, old: IngestedTable, settings: StageSettings) -> IntArray | None:
    """Return the ascending positions of the rows of removed files; None if the ingestion has not each of them once."""
    found = [np.empty(0, np.int64)]
    spans = [span for span in gone.spans if span.stop]
    for batch in gone.batches(vectors=False, attributes=False, memory_bytes=settings.memory_bytes, spans=spans):
        if batch.ids.null_count:
            return None
        found.append(_find(batch.ids, old))
    positions = np.sort(np.concatenate(found))
    is_exact = not len(positions) or (positions[0] >= 0 and bool((np.diff(positions) > 0).all()))
    return positions if is_exact else None


def _find(ids: pa.Array, old: IngestedTable) -> IntArray:
    """Return (len(ids),) the position of each id, -1 for a missing one."""
    return find_sorted(ids, old.ids) if isinstance(old.ids, pa.Array) else old.ids.find(ids)
