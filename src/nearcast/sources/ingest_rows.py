"""The second stage of ingestion as artifacts: a table in one folder, or a folder per id range and a manifest of them.

A table of one range has the files in its own folder. Several ranges are artifacts of their own, `<table>-ranges/00007`;
the table's folder then has a manifest alone. Both depend on the rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.sources.freed_memory import return_freed_memory
from nearcast.sources.ids import COMPARED_BYTES
from nearcast.sources.ingest import ID_TYPES, IngestedTable, open_ingested_table
from nearcast.sources.range_rows import RangeRows
from nearcast.sources.row_source import RowSource
from nearcast.sources.split_rows import vector_dtype
from nearcast.sources.stage_rows import ROW_BYTES, RowCounter, StagedTable, count_range_workers, map_in_threads
from nearcast.sources.write_range import (
    BLOCK_BYTES,
    LONG_IDS_BYTES,
    write_attributes,
    write_id_files,
    write_vectors,
)
from nearcast.storage.artifacts import Artifacts
from nearcast.types import Progress, no_progress

__all__ = [
    "RangeLayout",
    "describe_ranges",
    "estimate_ingest_disk",
    "estimate_ingest_memory",
    "ingest_staged",
    "range_name",
    "write_range_files",
]


READ_BYTES = 128 << 20  # memory of Arrow decoding batches of BATCH_BYTES, or of the estimate of a run
PIECE_ROW_BYTES = 48  # of a row's number, state, length and attributes
ORDERED_BYTES = COMPARED_BYTES + LONG_IDS_BYTES  # of ids in order, beside those of the range


@dataclass(frozen=True, slots=True)
class RangeLayout:
    """What the files of every range of a table have in common."""

    dim: int
    dtype: np.dtype[Any]
    attributes: pa.Schema

    @classmethod
    def of(cls, source: RowSource, dim: int) -> RangeLayout:
        """Return the layout of a source's table."""
        return cls(dim, vector_dtype(source), pa.schema(list(source.attribute_types.items())))


def range_name(table: str, number: int) -> str:
    """Return the name of the artifact of a range. table: name of the table's artifact."""
    return f"{table}-ranges/{number:05d}"


def write_range_files(
    rows: RangeRows, folder: Path, layout: RangeLayout, memory_bytes: int, progress: Callable[[int], None]
) -> None:
    """Write ids, vectors and attributes of a range into an empty folder. progress: called with vectors written."""
    (folder / "attributes").mkdir()
    write_id_files(rows, folder)
    return_freed_memory()  # of the ids in order: NumPy cannot use what Arrow keeps
    left = max(memory_bytes // 4, memory_bytes - 2 * rows.ids.nbytes)
    write_vectors(rows, folder / "vectors.npy", layout.dim, layout.dtype, left, progress)
    write_attributes(rows, folder / "attributes", layout.attributes, left)


def describe_ranges(
    table: str, id_type: pa.DataType, bounds: Sequence[Any], ranges: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the facts of a table in ranges, as `open_ingested_table` reads them. Ranges without rows are left out.

    bounds: the lower bound of every range but the first. ranges: facts of each range.
    """
    numbers = [number for number, facts in enumerate(ranges) if facts["listed"]] or [0]
    return {
        "id_type": next(name for name, kind in ID_TYPES.items() if kind == id_type),
        "names": [range_name(table, number) for number in numbers],
        "bounds": [bounds[number - 1] for number in numbers[1:]],
        "vectors": [ranges[number]["vectors"] for number in numbers],
        "listed": [ranges[number]["listed"] for number in numbers],
    }


def estimate_ingest_memory(tables: Collection[StagedTable], memory_bytes: int) -> int:
    """Estimate the peak memory of staging and ingestion, in bytes: the pieces of all tables, and the work on one."""
    parts = [_estimate_parts(staged, memory_bytes) for staged in tables]
    return sum(pieces for pieces, _ in parts) + max((work for _, work in parts), default=0)


def _estimate_parts(staged: StagedTable, memory_bytes: int) -> tuple[int, int]:
    """Return the memory of the pieces of a table, and of a block of vectors, batches, ids and states."""
    facts, source = staged.facts, staged.source
    row_bytes = max(facts.dim, 1) * vector_dtype(source).itemsize
    largest = max(one["rows"] for one in staged.ranges)
    id_bytes = max(one["id_bytes"] for one in staged.ranges)
    piece_bytes = row_bytes + PIECE_ROW_BYTES + id_bytes // max(1, largest)
    pieces = min(facts.rows * piece_bytes, memory_bytes // 4)
    block = min(largest * row_bytes, memory_bytes // 2, BLOCK_BYTES)
    batches = min(READ_BYTES, memory_bytes, 4 * facts.rows * source.row_bytes)
    ranges = count_range_workers(staged.threads, len(staged.ranges), largest, memory_bytes)
    return int(pieces), int(
        max(batches, ranges * (block + id_bytes + min(id_bytes, ORDERED_BYTES) + ROW_BYTES * largest))
    )


def estimate_ingest_disk(staged: StagedTable) -> int:
    """Estimate the disk use of the ingested table, in bytes; 16 bytes per attribute value."""
    facts = staged.facts
    vectors = facts.vectors * facts.dim * vector_dtype(staged.source).itemsize
    ids = 2 * sum(one["id_bytes"] for one in staged.ranges)
    return vectors + int(ids) + facts.listed * 16 * len(staged.source.spec.columns)


def ingest_staged(
    staged: StagedTable,
    name: str,
    artifacts: Artifacts,
    side: Mapping[str, Any],
    *,
    memory_bytes: int,
    table: str,
    progress: Progress = no_progress,
) -> IngestedTable:
    """Write a staged table as artifacts, and open it. side: the report of the table, which its manifest holds.

    The vectors of a table that was staged without are zeros. table: "items" or "queries", for progress.
    Raises InputError if the source was changed since it was opened.
    """
    layout = RangeLayout.of(staged.source, staged.facts.dim)
    count = RowCounter(partial(progress, f"read {table}"), staged.facts.vectors)
    numbers = [number for number, facts in enumerate(staged.ranges) if facts["listed"]] or [0]
    largest = max(one["rows"] for one in staged.ranges)
    workers = count_range_workers(staged.threads, len(numbers), largest, memory_bytes)

    def write(number: int, folder: Path) -> dict[str, Any]:
        count(0)
        write_range_files(staged.open_range(number), folder, layout, memory_bytes // workers, count)
        return {}

    def write_table(folder: Path) -> dict[str, Any]:
        if not len(staged.bounds):
            write(0, folder)
        staged.source.check()
        staged.source.check_contents()
        if not len(staged.bounds):
            return {"side": dict(side)}
        bounds = staged.bounds.to_pylist()
        return {"side": dict(side), "ranges": describe_ranges(name, staged.source.id_type, bounds, staged.ranges)}

    if len(staged.bounds):
        staged.source.check_contents()  # pieces of several ranges are copies: what was read is what is written
        map_in_threads(workers, lambda n: artifacts.commit(range_name(name, n), partial(write, n)), numbers)
    return open_ingested_table(artifacts.ensure(name, write_table), artifacts.open)
