"""The columns of a candidate table and how rows are made of arrays. `docs/snapshot-format.md` describes it.

Knows nothing of files.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import pyarrow as pa

from nearcast.types import EMPTY_POSITION, FloatArray, Neighbors

__all__ = ["FORMAT_VERSION", "Reason", "candidate_schema", "candidate_table", "rows_per_group"]

FORMAT_VERSION = 1
GROUP_SLOTS = 1 << 20  # slots in a row group: 12 MB of ids and scores, one read of a disk
LARGEST_GROUP = 1 << 16


class Reason(StrEnum):
    """Why a list is shorter than k."""

    TOO_FEW_ELIGIBLE = "too_few_eligible"  # there are not k items that the query may get
    NOT_PROBED = "not_probed"  # the engine's effort ended before k items were seen
    CAPPED = "capped"  # caps have filled up before k items were taken
    BELOW_MIN_SCORE = "below_min_score"  # other items score less than the least that is wanted
    NO_VECTOR = "no_vector"  # the query was kept without a usable vector


def rows_per_group(k: int) -> int:
    """Rows in a row group; depends on k alone, so that the bytes of a table depend on nothing else."""
    return max(1, min(LARGEST_GROUP, GROUP_SLOTS // k))


def candidate_schema(query_id: pa.DataType, item_id: pa.DataType, *, ranked: bool = False) -> pa.Schema:
    """query_id, candidate_ids, scores, length, reason; and rank_scores where a model has put the lists in order."""
    scores = pa.list_(pa.field("element", pa.float32(), nullable=False))
    return pa.schema(
        [
            pa.field("query_id", _plain(query_id), nullable=False),
            pa.field(
                "candidate_ids",
                pa.list_(pa.field("element", _plain(item_id), nullable=False)),
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
    """Rows of the table for n queries, best candidate first, without the empty slots.

    rank_scores: (n, k) a model's scores of the same slots, by which they are in order.
    """
    schema = candidate_schema(query_ids.type, item_ids.type, ranked=rank_scores is not None)
    there = neighbors.positions != EMPTY_POSITION
    lengths = np.count_nonzero(there, axis=1)
    offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
    ids = item_ids.take(pa.array(neighbors.positions[there])).cast(_plain(item_ids.type))
    lists = pa.ListArray.from_arrays(offsets, ids, type=schema.field("candidate_ids").type)
    scores = pa.ListArray.from_arrays(offsets, pa.array(neighbors.scores[there]), type=schema.field("scores").type)
    columns = [query_ids.cast(_plain(query_ids.type)), lists, scores]
    columns += [pa.array(lengths.astype(np.int32)), pa.array(reasons, pa.string())]
    if rank_scores is not None:
        kind = schema.field("rank_scores").type
        columns.append(pa.ListArray.from_arrays(offsets, pa.array(rank_scores[there]), type=kind))
    return pa.Table.from_arrays(columns, schema=schema)


def _plain(kind: pa.DataType) -> pa.DataType:
    """32-bit string offsets in files: every reader knows them."""
    return pa.string() if kind == pa.large_string() else kind
