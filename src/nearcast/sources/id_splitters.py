"""Splitters: the ids at which a table is cut into ranges of about equal size, from a sample by hash.

The sample, and so the ranges, depend on the ids alone: not on the order of rows, files, units or machines.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from nearcast.sources.ids import argsort_ids, hash_ids
from nearcast.sources.row_source import RowSource
from nearcast.sources.row_units import RowUnit

__all__ = ["RANGE_ROWS", "choose_splitters", "sample_ids"]

RANGE_ROWS = 1 << 20  # a table with more rows has several ranges
FILL = 0.75  # of RANGE_ROWS in ranges that are cut by a sample, so that few have more than RANGE_ROWS
SAMPLE_PER_RANGE = 1 << 10  # the size of a range deviates by 3% from its mean


def sample_ids(
    source: RowSource, unit: RowUnit, memory_bytes: int, range_rows: int = RANGE_ROWS
) -> tuple[int, pa.Array]:
    """Read the ids of a unit. Return the number of rows, and the sampled ids, each once, sorted."""
    rows, sampled = 0, [pa.array([], source.id_type)]
    share = min(1.0, SAMPLE_PER_RANGE / range_rows)
    limit = np.uint64(share * (2**64 - 2**12))
    for batch in source.batches(vectors=False, attributes=False, memory_bytes=memory_bytes // 4, spans=unit.spans):
        rows += len(batch.ids)
        ids = batch.ids.drop_null()
        sampled.append(ids if share == 1 else ids.filter(pa.array(hash_ids(ids) < limit)))
    return rows, _sort_once(sampled)


def choose_splitters(rows: int, samples: Iterable[pa.Array], range_rows: int = RANGE_ROWS) -> pa.Array:
    """Return the lower bounds of all ranges but the first, for a table of so many rows. None for a small table."""
    ids = _sort_once(samples)
    ranges = 1 if rows <= range_rows else -(-rows // max(1, int(range_rows * FILL)))
    places = np.unique(len(ids) * np.arange(1, ranges) // ranges)
    return ids.take(pa.array(places[(places > 0) & (places < len(ids))]))


def _sort_once(pieces: Iterable[pa.Array]) -> pa.Array:
    """Return the distinct ids of all pieces, sorted."""
    ids = pa.concat_arrays(list(pieces)).unique()
    return ids.take(pa.array(argsort_ids(ids)))
