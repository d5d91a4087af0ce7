"""The lists of a snapshot as rows for a warehouse: one row per query or per candidate, with the snapshot's version.

Marks are the generator, the version, and when it was made: they tell the rows from those of every other snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.sources.marked_rows import MarkedRows
from nearcast.table.snapshot_reader import Snapshot

__all__ = ["ExportedRows", "describe_rows"]

MARKS = pa.schema([("generator", pa.string()), ("version", pa.int64()), ("made", pa.timestamp("us", "UTC"))])
LISTS = {"candidate_ids": "item_id", "scores": "score", "rank_scores": "rank_score"}  # name of one of them


class ExportedRows(StrEnum):
    """What a row holds."""

    QUERY = "query"  # a list
    CANDIDATE = "candidate"  # an item of a list


def describe_rows(snapshot: Snapshot, kind: ExportedRows) -> MarkedRows:
    """Return the lists of a snapshot as rows of a kind. Reads nothing yet."""
    made = datetime.fromisoformat(snapshot.manifest.run.created).astimezone(UTC)
    marks = {"generator": snapshot.generator, "version": snapshot.version, "made": made}
    dataset = snapshot.dataset("candidates")
    make = _lists if kind is ExportedRows.QUERY else _candidates

    def batches() -> Iterator[pa.RecordBatch]:
        size = snapshot.manifest.group_rows
        for batch in dataset.to_batches(batch_size=size, batch_readahead=1, fragment_readahead=1):
            yield _add_marks(make(batch), marks)

    empty = pa.RecordBatch.from_pylist([], schema=dataset.schema)
    return MarkedRows(marks, _add_marks(make(empty), marks).schema, batches)


def _add_marks(rows: pa.RecordBatch, marks: dict[str, Any]) -> pa.RecordBatch:
    columns = [pa.repeat(pa.scalar(marks[field.name], field.type), len(rows)) for field in MARKS]
    return pa.RecordBatch.from_arrays([*columns, *rows.columns], names=[*MARKS.names, *rows.schema.names])


def _lists(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows with plain lists: not every format has lists of values that are never null."""
    columns = [
        column.cast(pa.list_(column.type.value_type)) if pa.types.is_list(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _candidates(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a row per candidate: query, rank from 1, item and scores."""
    lists = batch.column("candidate_ids")
    parents = pc.list_parent_indices(lists)
    starts = np.append(0, np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False)))
    rank = np.arange(len(parents)) - starts[parents.to_numpy()] + 1
    columns = {"query_id": batch.column("query_id").take(parents), "rank": pa.array(rank.astype(np.int32))}
    columns |= {one: batch.column(name).flatten() for name, one in LISTS.items() if name in batch.schema.names}
    return pa.RecordBatch.from_pydict(columns)
