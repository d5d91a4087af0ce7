"""Slices of labelled queries: by a column of the labels, or by an attribute of the queries in a snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from nearcast.errors import SpecError
from nearcast.evaluation.label_set import SEVERAL, LabelSet
from nearcast.evaluation.ranked_lists import SnapshotLists
from nearcast.evaluation.sorted_ids import SortedIds, convert_ids
from nearcast.measure.slices import MOST_VALUES, Slice, quarter_slices, value_slices
from nearcast.types import IntArray

__all__ = ["list_slices", "split_slice_columns"]


def split_slice_columns(
    names: Sequence[str], label_columns: Sequence[str], lists: SnapshotLists
) -> tuple[list[str], list[str]]:
    """Return the columns to slice by: those of the labels, and those of the queries. Raises SpecError for others."""
    part = _query_part(lists)
    known = [name for name in lists.files.schema(part).names if name != "id"] if lists.files.has(part) else []
    for name in names:
        if name not in label_columns and name not in known:
            raise SpecError(
                f"{name!r} is no column to slice by; labels have {', '.join(label_columns)}, and queries of the "
                f"snapshot {', '.join(known) or 'none: add it to the attributes of [queries]'}"
            )
    of_labels = [name for name in names if name in label_columns]
    return of_labels, [name for name in names if name not in label_columns]


def list_slices(labels: LabelSet, names: Sequence[str], lists: SnapshotLists) -> list[Slice]:
    """Return the slices by columns of the labels, and by `names`, columns of the queries."""
    found: list[Slice] = []
    for by, (codes, values) in labels.slices.items():
        found += _slice_values(by, codes, values)
    for by in names:
        found += _slice_values(by, *_read_query_column(labels, by, lists))
    return found


def _slice_values(by: str, codes: IntArray, values: pa.Array) -> Iterator[Slice]:
    """Yield the slices of a column. codes: (queries,) index of values, -1 for null, -2 for several values."""
    kind = values.type
    is_number = (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and not pa.types.is_boolean(kind)
    if is_number and len(values) > MOST_VALUES:
        numbers = np.append(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.nan)
        yield from quarter_slices(by, numbers[np.where(codes < 0, len(values), codes)])
        return
    texts = ["" if value is None else str(value) for value in values.to_pylist()]
    yield from value_slices(by, np.where(codes == -2, len(texts), codes), [*texts, SEVERAL])


def _query_part(lists: SnapshotLists) -> str:
    return "queries" if lists.files.has("queries") else "items"  # items that are joined with themselves


def _read_query_column(labels: LabelSet, by: str, lists: SnapshotLists) -> tuple[IntArray, pa.Array]:
    keys = SortedIds.sort(convert_ids(labels.queries, lists.query_ids))
    pieces, places = [], []
    for table in lists.iterate_rows(_query_part(lists), ["id", by]):
        rows, positions = keys.match(table["id"])
        if len(rows):
            places.append(positions)
            pieces.append(table[by].take(pa.array(rows)))
    codes = np.full(len(labels.queries), -1, np.int64)
    if not pieces:
        return codes, pa.array([], pa.string())
    column = pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks])
    if pa.types.is_nested(column.type):
        raise SpecError(f"{by!r} holds {column.type}; slices need one value per query")
    coded = column.combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    codes[np.concatenate(places)] = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes, coded.dictionary
