"""A part of a generator's real rows, or rows that are made up, as files that a small run can read.

Knows nothing of what is measured with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nearcast.sources.open_source import open_source
from nearcast.sources.row_source import RowSource
from nearcast.spec import GeneratorSpec

__all__ = ["READ_BYTES", "MadeUp", "Sample", "Sides", "real_sides", "write_sample"]

READ_BYTES = 128 << 20
CLUSTERS = 256  # of vectors that are made up; real ones lie in clusters, and a search is cheaper for it


@dataclass(frozen=True, slots=True)
class MadeUp:
    """The size of a side that is made up."""

    rows: int
    dim: int


@dataclass(frozen=True, slots=True)
class Sides:
    """Both sides to sample. `queries` is None for a join of a set with itself."""

    items: RowSource | MadeUp
    queries: RowSource | MadeUp | None
    dim: int

    @property
    def n_items(self) -> int:
        """Rows of the items."""
        return self.items.rows if isinstance(self.items, MadeUp) else self.items.n_rows

    @property
    def n_queries(self) -> int:
        """Rows of the queries."""
        side = self.items if self.queries is None else self.queries
        return side.rows if isinstance(side, MadeUp) else side.n_rows


@dataclass(frozen=True, slots=True)
class Sample:
    """A small generator."""

    spec: GeneratorSpec
    n_items: int
    n_queries: int


def real_sides(spec: GeneratorSpec, base: Path) -> Sides:
    """The files of a spec, opened."""
    items = open_source(spec.items, base, leave_out=base / spec.out)
    queries = None if spec.queries is None else open_source(spec.queries, base, leave_out=base / spec.out)
    batch = next(items.batches(vectors=True, attributes=False, memory_bytes=1 << 20))
    return Sides(items, queries, int(pc.max(pc.list_value_length(batch.vectors)).as_py()))


def write_sample(spec: GeneratorSpec, sides: Sides, folder: Path, n_items: int, n_queries: int) -> Sample:
    """Write so many random rows as items.parquet and queries.parquet, and return the spec that reads them.

    Bad rows are dropped whatever the spec says: the run itself will stop on them.
    """
    folder.mkdir(parents=True)
    changes: dict[str, Any] = {"out": "nearcast", "name": "rates"}
    written = {"items": _write(sides.items, spec.items, folder / "items.parquet", n_items, 1)}
    changes["items"] = spec.items.model_copy(update={"path": "items.parquet", "ids": None, "only": None})
    if sides.queries is not None:
        source = spec.query_source
        written["queries"] = _write(sides.queries, source, folder / "queries.parquet", n_queries, 2)
        changes["queries"] = source.model_copy(update={"path": "queries.parquet", "ids": None, "only": None})
    drop = dict.fromkeys(
        ("not_finite", "zero_vector", "wrong_dimension", "null_vector", "duplicate_id", "null_id"), "drop"
    )
    checks = spec.checks.model_copy(update={**drop, "k_above_items": "keep"})
    made = spec.model_copy(update={**changes, "checks": checks})
    return Sample(made, written["items"], written.get("queries", written["items"]))


def _write(side: RowSource | MadeUp, source: Any, path: Path, n: int, seed: int) -> int:
    if isinstance(side, MadeUp):
        tables: Iterator[pa.Table] = iter([_made_up(side, source, n, seed)])
    else:
        tables = _chosen(side, n, seed)
    writer, written = None, 0
    for table in tables:
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
        written += len(table)
    assert writer is not None
    writer.close()
    return written


def _chosen(side: RowSource, n: int, seed: int) -> Iterator[pa.Table]:
    """n random rows with their columns, in order."""
    rows = np.sort(np.random.default_rng(seed).choice(side.n_rows, min(n, side.n_rows), replace=False))
    first = 0
    for batch in side.batches(vectors=True, attributes=True, memory_bytes=READ_BYTES):
        here = rows[(rows >= first) & (rows < first + len(batch.ids))] - first
        first += len(batch.ids)
        if len(here):
            taken = pa.array(here)
            columns = {name: batch.attributes[name].take(taken) for name in batch.attributes.column_names}
            assert batch.vectors is not None
            vectors = batch.vectors.take(taken)
            yield pa.table({side.spec.id: batch.ids.take(taken), side.spec.vector: vectors, **columns})


def _made_up(side: MadeUp, source: Any, n: int, seed: int) -> pa.Table:
    """Vectors around centres that both sides share, with a spread that leaves neighbors to find."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, side.dim)).astype(np.float32)
    vectors = centres[rng.integers(CLUSTERS, size=n)] + rng.normal(size=(n, side.dim)).astype(np.float32)
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    return pa.table({source.id: np.arange(n), source.vector: pa.FixedSizeListArray.from_arrays(flat, side.dim)})
