"""Sample data: a part of a generator's rows, or synthetic rows, as files of a small generator.

Knows nothing of the measurements.
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
from nearcast.storage.locations import resolve_location

__all__ = ["READ_BYTES", "SampleGenerator", "SampledTables", "SyntheticTable", "open_tables", "write_sample"]

READ_BYTES = 128 << 20
CLUSTERS = 256  # of synthetic vectors; real vectors are clustered, too, which makes a search cheaper


@dataclass(frozen=True, slots=True)
class SyntheticTable:
    """The size of a table of synthetic vectors."""

    rows: int
    dim: int


@dataclass(frozen=True, slots=True)
class SampledTables:
    """The item table and the query table to sample. `queries` is None for a self-join."""

    items: RowSource | SyntheticTable
    queries: RowSource | SyntheticTable | None
    dim: int

    @property
    def n_items(self) -> int:
        """Number of items."""
        return self.items.rows if isinstance(self.items, SyntheticTable) else self.items.n_rows

    @property
    def n_queries(self) -> int:
        """Number of queries."""
        table = self.items if self.queries is None else self.queries
        return table.rows if isinstance(table, SyntheticTable) else table.n_rows


@dataclass(frozen=True, slots=True)
class SampleGenerator:
    """The spec of a small generator, and the sizes of its tables."""

    spec: GeneratorSpec
    n_items: int
    n_queries: int


def open_tables(spec: GeneratorSpec, base: Path) -> SampledTables:
    """Open the sources of a spec."""
    out = resolve_location(base, spec.out)
    items = open_source(spec.items, base, leave_out=out)
    queries = None if spec.queries is None else open_source(spec.queries, base, leave_out=out)
    batch = next(items.batches(vectors=True, attributes=False, memory_bytes=1 << 20))
    return SampledTables(items, queries, int(pc.max(pc.list_value_length(batch.vectors)).as_py()))


def write_sample(
    spec: GeneratorSpec, tables: SampledTables, folder: Path, n_items: int, n_queries: int
) -> SampleGenerator:
    """Write random rows as items.parquet and queries.parquet, and return the spec that reads them.

    Invalid rows are dropped even if the spec says error: the real run will stop on them.
    """
    folder.mkdir(parents=True)
    changes: dict[str, Any] = {"out": "nearcast", "name": "rates"}
    written = {"items": _write_table(tables.items, spec.items, folder / "items.parquet", n_items, 1)}
    changes["items"] = spec.items.with_data(path="items.parquet")
    if tables.queries is not None:
        source = spec.query_source
        written["queries"] = _write_table(tables.queries, source, folder / "queries.parquet", n_queries, 2)
        changes["queries"] = source.with_data(path="queries.parquet")
    drop = dict.fromkeys(
        ("not_finite", "zero_vector", "wrong_dimension", "null_vector", "duplicate_id", "null_id"), "drop"
    )
    checks = spec.checks.model_copy(update={**drop, "k_above_items": "keep"})
    made = spec.model_copy(update={**changes, "checks": checks})
    return SampleGenerator(made, written["items"], written.get("queries", written["items"]))


def _write_table(table: RowSource | SyntheticTable, source: Any, path: Path, n: int, seed: int) -> int:
    if isinstance(table, SyntheticTable):
        parts: Iterator[pa.Table] = iter([_make_vectors(table, source, n, seed)])
    else:
        parts = _draw_rows(table, n, seed)
    writer, written = None, 0
    for part in parts:
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part)
        written += len(part)
    assert writer is not None
    writer.close()
    return written


def _draw_rows(table: RowSource, n: int, seed: int) -> Iterator[pa.Table]:
    """Yield n random rows with their columns, in order."""
    rows = np.sort(np.random.default_rng(seed).choice(table.n_rows, min(n, table.n_rows), replace=False))
    first = 0
    for batch in table.batches(vectors=True, attributes=True, memory_bytes=READ_BYTES):
        here = rows[(rows >= first) & (rows < first + len(batch.ids))] - first
        first += len(batch.ids)
        if len(here):
            taken = pa.array(here)
            columns = {name: batch.attributes[name].take(taken) for name in batch.attributes.column_names}
            assert batch.vectors is not None
            vectors = batch.vectors.take(taken)
            yield pa.table({table.spec.id: batch.ids.take(taken), table.spec.vector: vectors, **columns})


def _make_vectors(table: SyntheticTable, source: Any, n: int, seed: int) -> pa.Table:
    """Return vectors around random centres that both tables share."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, table.dim)).astype(np.float32)
    vectors = centres[rng.integers(CLUSTERS, size=n)] + rng.normal(size=(n, table.dim)).astype(np.float32)
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    return pa.table({source.id: np.arange(n), source.vector: pa.FixedSizeListArray.from_arrays(flat, table.dim)})
