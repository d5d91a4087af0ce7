"""Attribute columns of an ingested side: of all its vectors in the order of positions, or of a few rows by id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nearcast.parquet import open_dataset
from nearcast.sources.ids import positions_of
from nearcast.sources.ingest import IngestedTable

__all__ = ["attribute_names", "attributes_of", "rows_of"]


def attribute_names(side: IngestedTable) -> list[str]:
    """The columns that the side has beside its ids."""
    return [name for name in open_dataset(side.attributes).schema.names if name != "id"]


def attributes_of(side: IngestedTable, names: Sequence[str]) -> pa.Table:
    """Columns "id" and `names` of the side's vectors, in the order of their positions."""
    table = open_dataset(side.attributes).to_table(columns=["id", *names], use_threads=False)
    if len(side.ids) == len(table):
        return table
    return table.take(pa.array(positions_of(side.ids, side.listed_ids)))


def rows_of(folder: Path, ids: pa.Array, names: Sequence[str]) -> pa.Table:
    """Columns "id" and `names` of the rows with these ids, in their order. folder: the attributes of a side."""
    dataset = open_dataset(folder)
    wanted = ids.cast(dataset.schema.field("id").type)
    table = dataset.to_table(columns=["id", *names], filter=pc.field("id").isin(wanted), use_threads=False)
    return table.take(pc.index_in(wanted, value_set=table.column("id").combine_chunks()))
