"""The most popular items: the most frequent of a log from before the labels, or the highest by an item attribute.

The labels themselves are never the log: a baseline that has seen the answers compares with nothing.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError, SpecError
from nearcast.evaluation.label_set import cast_column
from nearcast.evaluation.label_table import LabelTable
from nearcast.evaluation.ranked_lists import SnapshotLists
from nearcast.evaluation.sorted_ids import SortedIds, convert_ids
from nearcast.sources.column_roles import plain_id_type

__all__ = ["count_unknown_items", "find_popular", "rank_by_attribute"]


def find_popular(log: LabelTable, item: str, lists: SnapshotLists, n: int) -> pa.Array:
    """Return the n items of the snapshot that are most frequent in the column `item`, equal ones by id.

    Raises InputError if the log holds none of the snapshot's items.
    """
    counts: Counter[str | int] = Counter()
    kind: pa.DataType = pa.string()
    for batch in log.batches([item]):
        kind = plain_id_type(batch.schema.field(item).type, log.name, item)
        column = cast_column(batch[item], log.name, item)
        for pair in column.combine_chunks().drop_null().value_counts().to_pylist():
            counts[pair["values"]] += pair["counts"]
    ids = convert_ids(pa.array(list(counts), kind), lists.item_ids)
    numbers = np.fromiter(counts.values(), np.int64, len(counts))
    known = _find_known(ids, lists)
    if not known.any():
        raise InputError(f"{log.name} holds no item of {lists.name} in the column {item!r}; is it another generator's?")
    table = pa.table({"id": ids, "count": numbers}).filter(pa.array(known))
    return _sort_rows(table, "count").slice(0, n)["id"].combine_chunks()


def rank_by_attribute(column: str, lists: SnapshotLists, n: int) -> pa.Array:
    """Return the n items with the highest values of an attribute, equal ones by id. Raises SpecError."""
    schema = lists.files.schema("items")
    known = ", ".join(name for name in schema.names if name != "id") or "none"
    if column not in schema.names or column == "id":
        raise SpecError(f"{column!r} is no attribute of the items to rank by; {lists.name} holds {known}")
    kind = schema.field(column).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise SpecError(f"{column!r} holds {kind}; popularity needs a number")
    best: pa.Table | None = None
    for table in lists.iterate_rows("items", ["id", column]):
        number = table[column].cast(pa.float64(), safe=False)
        rows = pa.table({"id": table["id"], "count": number}).filter(pc.is_finite(number))
        best = _sort_rows(rows if best is None else pa.concat_tables([best, rows]), "count").slice(0, n)
    if best is None or not len(best):
        raise InputError(f"no item of {lists.name} has a value of {column!r}")
    return convert_ids(best["id"].combine_chunks(), lists.item_ids)


def count_unknown_items(items: pa.Array, lists: SnapshotLists) -> int:
    """Return how many of these distinct ids the snapshot's items lack."""
    return int((~_find_known(convert_ids(items, lists.item_ids), lists)).sum())


def _find_known(ids: pa.Array, lists: SnapshotLists) -> npt.NDArray[np.bool_]:
    """Return (ids,) whether the snapshot has an item. Reads the items by row group; a null is no item."""
    known, ordered = np.zeros(len(ids), np.bool_), SortedIds.sort(ids)
    for table in lists.iterate_rows("items", ["id"]):
        known[ordered.match(table["id"])[1]] = True
    return known


def _sort_rows(table: pa.Table, by: str) -> pa.Table:
    return table.sort_by([(by, "descending"), ("id", "ascending")])
