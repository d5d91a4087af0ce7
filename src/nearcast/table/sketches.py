"""The sketches of a snapshot: vectors of some ids of each side, for the next snapshot to be compared with.

<snapshot>/sketch/items.parquet   queries.parquet      id, vector
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.types import FloatArray

__all__ = ["Sketch", "read_sketch", "write_sketch"]


@dataclass(frozen=True, slots=True)
class Sketch:
    """Vectors of some ids of a side."""

    ids: pa.Array  # (s,) sorted
    vectors: FloatArray  # (s, dim) float32


def write_sketch(folder: Path, side: str, sketch: Sketch) -> None:
    """Write the sketch of a side into a snapshot that is being made."""
    place = folder / "sketch"
    place.mkdir(exist_ok=True)
    dim = sketch.vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(sketch.vectors, np.float32).ravel())
    vectors = pa.FixedSizeListArray.from_arrays(flat, dim)
    pq.write_table(pa.table({"id": sketch.ids, "vector": vectors}), place / f"{side}.parquet", compression="zstd")


def read_sketch(folder: Path, side: str) -> Sketch | None:
    """The sketch of a side of a snapshot; None where it has none, as snapshots of older versions have."""
    path = folder / "sketch" / f"{side}.parquet"
    if not path.is_file():
        return None
    table = pq.read_table(path, use_threads=False).combine_chunks()
    column = table.column("vector").combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
    return Sketch(table.column("id").combine_chunks(), vectors)
