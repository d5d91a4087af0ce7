"""Attribute columns of an ingested table: of all vectors in the order of positions, or of a few rows by id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nearcast.parquet import open_dataset
from nearcast.sources.ids import positions_of
from nearcast.sources.ingest import IngestedTable

__all__ = ["attribute_names", "attributes_of", "rows_of"]


def attribute_names(table: IngestedTable) -> list[str]:
    """List the columns of the table beside its ids."""
    return [name for name in open_dataset(table.attributes).schema.names if name != "id"]


def attributes_of(table: IngestedTable, names: Sequence[str]) -> pa.Table:
    """Read columns "id" and `names` of the table's vectors, in the order of positions."""
    rows = open_dataset(table.attributes).to_table(columns=["id", *names], use_threads=False)
    if len(table.ids) == len(rows):
        return rows
    return rows.take(pa.array(positions_of(table.ids, table.listed_ids)))


def rows_of(folder: Path, ids: pa.Array, names: Sequence[str]) -> pa.Table:
    """Read columns "id" and `names` of the rows with these ids, in their order. folder: attributes of a table."""
    dataset = open_dataset(folder)
    keys = ids.cast(dataset.schema.field("id").type)
    table = dataset.to_table(columns=["id", *names], filter=pc.field("id").isin(keys), use_threads=False)
    return table.take(pc.index_in(keys, value_set=table.column("id").combine_chunks()))
