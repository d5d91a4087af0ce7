"""The schema of candidate tables, and the conversion of arrays to rows. See `docs/snapshot-format.md`.

Knows nothing of files.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import pyarrow as pa

from nearcast.sources.ids import take_ids
from nearcast.types import EMPTY_POSITION, FloatArray, Neighbors

__all__ = ["FORMAT_VERSION", "Reason", "candidate_schema", "candidate_table", "rows_per_group"]

FORMAT_VERSION = 1
GROUP_SLOTS = 1 << 20  # slots per row group: 12 MB of ids and scores, one disk read
LARGEST_GROUP = 1 << 16
GROUP_BYTES = 72 << 20  # of ids: a row group is held several times while it is written, read and published


class Reason(StrEnum):
    """Why a list is shorter than k."""

    TOO_FEW_ELIGIBLE = "too_few_eligible"  # fewer than k items are eligible for the query
    NOT_PROBED = "not_probed"  # the search parameters were too low to find k items
    CAPPED = "capped"  # caps were full before k items were selected
    BELOW_MIN_SCORE = "below_min_score"  # the other items score below min_score
    NO_VECTOR = "no_vector"  # the query has no usable vector, and was kept by policy


def rows_per_group(k: int, item_id_bytes: float = 0, query_id_bytes: float = 0) -> int:
    """Return the rows per row group, from k and the mean bytes of long ids, so that no byte depends on the machine.

    Ids of up to 64 bytes change nothing. Longer ones halve the row groups until their ids take GROUP_BYTES.
    """
    rows = max(1, min(LARGEST_GROUP, GROUP_SLOTS // k))
    while rows > 1 and rows * (k * item_id_bytes + query_id_bytes) > GROUP_BYTES:
        rows //= 2
    return rows


def candidate_schema(query_id: pa.DataType, item_id: pa.DataType, *, ranked: bool = False) -> pa.Schema:
    """Return the schema: query_id, candidate_ids, scores, length, reason; with a ranking model also rank_scores."""
    scores = pa.list_(pa.field("element", pa.float32(), nullable=False))
    return pa.schema(
        [
            pa.field("query_id", _short_string_type(query_id), nullable=False),
            pa.field(
                "candidate_ids",
                pa.list_(pa.field("element", _short_string_type(item_id), nullable=False)),
                nullable=False,
            ),
            pa.field("scores", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
            pa.field("length", pa.int32(), nullable=False),
            pa.field("reason", pa.string()),
            *([pa.field("rank_scores", scores, nullable=False)] if ranked else []),
        ],
        metadata={"nearcast_format": str(FORMAT_VERSION)},
    )


def candidate_table(
    query_ids: pa.Array,
    neighbors: Neighbors,
    item_ids: pa.Array,
    reasons: list[str | None],
    rank_scores: FloatArray | None = None,
) -> pa.Table:
    """Convert the lists of n queries to table rows, best candidate first, without empty slots.

    rank_scores: (n, k) a model's scores of the same slots, which order them.
    """
    schema = candidate_schema(query_ids.type, item_ids.type, ranked=rank_scores is not None)
    filled = neighbors.positions != EMPTY_POSITION
    lengths = np.count_nonzero(filled, axis=1)
    offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
    ids = take_ids(neighbors.positions[filled], item_ids).cast(_short_string_type(item_ids.type))
    lists = pa.ListArray.from_arrays(offsets, ids, type=schema.field("candidate_ids").type)
    scores = pa.ListArray.from_arrays(offsets, pa.array(neighbors.scores[filled]), type=schema.field("scores").type)
    columns = [query_ids.cast(_short_string_type(query_ids.type)), lists, scores]
    columns += [pa.array(lengths.astype(np.int32)), pa.array(reasons, pa.string())]
    if rank_scores is not None:
        kind = schema.field("rank_scores").type
        columns.append(pa.ListArray.from_arrays(offsets, pa.array(rank_scores[filled]), type=kind))
    return pa.Table.from_arrays(columns, schema=schema)


def _short_string_type(kind: pa.DataType) -> pa.DataType:
    """Return string for large_string: every reader supports 32-bit offsets."""
    return pa.string() if kind == pa.large_string() else kind
