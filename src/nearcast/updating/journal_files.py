"""The files of an entry of the journal: rows, removed ids, and bounds of lists that may lack items, in Parquet.

Rows of merged entries have the time of their update beside them. Knows nothing of entries and patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.types import AnyArray
from nearcast.updating.live_table import LiveRows
from nearcast.updating.merge_batches import TimedBatch, Times
from nearcast.updating.read_batch import BatchRows, UpdateBatch
from nearcast.updating.served_state import ListBound

__all__ = ["read_bounds", "read_rows", "write_bounds", "write_rows"]

ID, VECTOR, SCORED, MADE = "id", "vector", "scored vector", "made"


def write_rows(folder: Path, batch: UpdateBatch, times: TimedBatch | None = None) -> None:
    """Write the rows of a batch. times: of its rows, if they are of several updates."""
    _write_table(folder / "items.parquet", batch.items, None if times is None else times.items)
    _write_table(folder / "queries.parquet", batch.queries, None if times is None else times.queries)
    gone = pa.table({ID: batch.gone} if times is None else {ID: batch.gone, MADE: times.gone})
    pq.write_table(gone, folder / "gone.parquet")


def read_rows(folder: Path, digest: str, made: float) -> TimedBatch:
    """Read what `write_rows` wrote. made: the time of rows without one."""
    items, items_made = _read_table(folder / "items.parquet", made)
    queries, queries_made = _read_table(folder / "queries.parquet", made)
    gone = pq.read_table(folder / "gone.parquet").combine_chunks()
    batch = UpdateBatch(items, gone.column(ID).combine_chunks(), queries, digest)
    return TimedBatch(batch, items_made, _read_times(gone, made), queries_made)


def read_bounds(folder: Path) -> dict[str | int, ListBound]:
    """Read lists that may lack items, with their bounds."""
    rows = pq.read_table(folder / "short.parquet").to_pylist()
    return {row["query"]: (row["score"], row["item"]) for row in rows}


def write_bounds(folder: Path, short: Mapping[str | int, ListBound]) -> None:
    """Write what `read_bounds` reads."""
    queries, scores, items = list(short), [bound[0] for bound in short.values()], [bound[1] for bound in short.values()]
    columns = {"query": pa.array(queries), "score": pa.array(scores, pa.float64()), "item": pa.array(items)}
    pq.write_table(pa.table(columns), folder / "short.parquet")


def _write_table(path: Path, batch: BatchRows, made: Times | None) -> None:
    rows = batch.rows
    columns = {ID: rows.ids, VECTOR: _to_lists(batch.originals)}
    if rows.vectors is not batch.originals and not np.array_equal(rows.vectors, batch.originals):
        columns[SCORED] = _to_lists(rows.vectors)
    if made is not None:
        columns[MADE] = pa.array(made)
    attributes = {f"column {name}": rows.attributes.column(name) for name in rows.attributes.column_names}
    pq.write_table(pa.table(columns | attributes), path, compression="zstd")


def _read_table(path: Path, made: float) -> tuple[BatchRows, Times]:
    table = pq.read_table(path).combine_chunks()
    originals = _to_array(table, VECTOR)
    scored = _to_array(table, SCORED) if SCORED in table.column_names else originals
    names = [name for name in table.column_names if name.startswith("column ")]
    attributes = table.select(names).rename_columns([name.removeprefix("column ") for name in names])
    ids = table.column(ID).combine_chunks() if len(table) else pa.array([], table.schema.field(ID).type)
    return BatchRows(LiveRows(ids, scored, attributes), originals), _read_times(table, made)


def _read_times(table: pa.Table, made: float) -> Times:
    if MADE not in table.column_names:
        return np.full(len(table), made)
    times: Times = table.column(MADE).to_numpy()
    return times


def _to_lists(vectors: AnyArray) -> pa.Array:
    flat = np.ascontiguousarray(vectors).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), max(1, vectors.shape[1]))


def _to_array(table: pa.Table, name: str) -> AnyArray:
    kind = table.schema.field(name).type
    column = table.column(name).combine_chunks()
    values = column.flatten() if len(table) else pa.array([], kind.value_type)
    array: AnyArray = values.to_numpy(zero_copy_only=False).reshape(len(table), kind.list_size)
    return array
