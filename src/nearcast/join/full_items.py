"""The items that an exposure cap has filled up, kept with the snapshot: which query is the last that each one took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.knn.exposure import AdmissionThresholds
from nearcast.sources.ids import positions_of
from nearcast.sources.ingest import IngestedTable, Inputs

__all__ = ["FULL_FILE", "read_full_items", "write_full_items"]

FULL_FILE = "exposure/full.parquet"  # of a snapshot


def write_full_items(bars: AdmissionThresholds, inputs: Inputs, folder: Path) -> None:
    """One row per full item, by id: the last query that it took, and the score of the pair."""
    path = folder / FULL_FILE
    path.parent.mkdir(parents=True)
    rows = np.flatnonzero(np.isfinite(bars.scores))
    columns = {
        "item_id": inputs.items.ids.take(pa.array(rows)),
        "last_query": inputs.queries.ids.take(pa.array(bars.queries[rows])),
        "last_score": bars.scores[rows],
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_full_items(folder: Path, items: IngestedTable, queries: IngestedTable) -> AdmissionThresholds | None:
    """What `write_full_items` has written, as positions; None for a snapshot without an exposure cap."""
    path = folder / FULL_FILE
    if not path.is_file():
        return None
    table = pq.read_table(path)
    bars = AdmissionThresholds.free(items.vectors.n)
    rows = positions_of(table.column("item_id").combine_chunks().cast(items.ids.type), items.ids)
    bars.scores[rows] = table.column("last_score").to_numpy()
    bars.queries[rows] = positions_of(table.column("last_query").combine_chunks().cast(queries.ids.type), queries.ids)
    return bars
