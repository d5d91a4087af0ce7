"""The sketches of a snapshot: vectors of sampled ids of each table, which the next snapshot is compared with.

<snapshot>/sketch/items.parquet   queries.parquet      id, vector
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.types import FloatArray

__all__ = ["SKETCH", "Sketch", "read_sketch", "write_sketch"]

SKETCH = "sketch"  # the part of a snapshot


@dataclass(frozen=True, slots=True)
class Sketch:
    """Vectors of sampled ids of a table."""

    ids: pa.Array  # (s,) sorted
    vectors: FloatArray  # (s, dim) float32


def write_sketch(folder: Path, table: str, sketch: Sketch) -> None:
    """Write the sketch of a table, "items" or "queries", into an unfinished snapshot."""
    home = folder / SKETCH
    home.mkdir(exist_ok=True)
    dim = sketch.vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(sketch.vectors, np.float32).ravel())
    vectors = pa.FixedSizeListArray.from_arrays(flat, dim)
    pq.write_table(pa.table({"id": sketch.ids, "vector": vectors}), home / f"{table}.parquet", compression="zstd")


def read_sketch(folder: Path, table: str) -> Sketch | None:
    """Read the sketch of a table; None if there is none: a snapshot of an older version.

    folder: of the snapshot's part SKETCH, from `Snapshot.fetch`.
    """
    path = folder / f"{table}.parquet"
    if not path.is_file():
        return None
    rows = pq.read_table(path, use_threads=False).combine_chunks()
    column = rows.column("vector").combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(rows), column.type.list_size)
    return Sketch(rows.column("id").combine_chunks(), vectors)
