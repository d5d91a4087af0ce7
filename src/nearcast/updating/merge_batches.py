"""Merge batches that follow each other into one with their effect: the last row of an id counts.

`TimedBatch` keeps of each row when its update was made, so that the later rows can be taken out again. Arrays and
tables only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.sources.ids import argsort_ids, find_positions
from nearcast.types import IntArray
from nearcast.updating.read_batch import UpdateBatch

__all__ = ["Cutoff", "TimedBatch", "Times", "merge_batches", "merge_timed"]

Times = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cutoff:
    """The tables of a run lack updates made after these times, in seconds since 1970; -inf: all updates."""

    items: float
    queries: float

    @property
    def first(self) -> float:
        """Return the earlier time."""
        return min(self.items, self.queries)


@dataclass(frozen=True, slots=True, eq=False)
class TimedBatch:
    """A batch, and of each of its rows when the update was made, in seconds since 1970."""

    batch: UpdateBatch
    items: Times  # (items,)
    gone: Times  # (gone,)
    queries: Times  # (queries,)

    @classmethod
    def of_update(cls, batch: UpdateBatch, made: float) -> TimedBatch:
        """Return a batch whose rows are all of one update."""
        counts = (len(batch.items.rows.ids), len(batch.gone), len(batch.queries.rows.ids))
        items, gone, queries = (np.full(count, made) for count in counts)
        return cls(batch, items, gone, queries)

    @property
    def newest(self) -> float:
        """Return the latest of the times; -inf without rows."""
        return float(np.concatenate([self.items, self.gone, self.queries]).max(initial=-np.inf))

    def since(self, cutoff: Cutoff) -> TimedBatch:
        """Return the rows of updates that were made after these times."""
        items, gone, queries = self.items > cutoff.items, self.gone > cutoff.items, self.queries > cutoff.queries
        batch = UpdateBatch(
            self.batch.items.take(np.flatnonzero(items)),
            self.batch.gone.filter(pa.array(gone)),
            self.batch.queries.take(np.flatnonzero(queries)),
            self.batch.digest,
        )
        return TimedBatch(batch, self.items[items], self.gone[gone], self.queries[queries])


def merge_timed(parts: Sequence[TimedBatch]) -> TimedBatch:
    """Return the batch that has the effect of several, one after the other, with the times of its rows.

    After a clock that went back, a row counts as made at the latest time before: rather applied twice than not at all.
    """
    merged, latest, risen = merge_batches([part.batch for part in parts]), -np.inf, list[TimedBatch]()
    for part in parts:
        times = (np.maximum(own, latest) for own in (part.items, part.gone, part.queries))
        risen.append(TimedBatch(part.batch, *times))
        latest = max(latest, risen[-1].newest)
    return TimedBatch(
        merged,
        _find_times([(part.batch.items.rows.ids, part.items) for part in risen], merged.items.rows.ids),
        _find_times([(part.batch.gone, part.gone) for part in risen], merged.gone),
        _find_times([(part.batch.queries.rows.ids, part.queries) for part in risen], merged.queries.rows.ids),
    )


def _find_times(parts: Sequence[tuple[pa.Array, Times]], ids: pa.Array) -> Times:
    """Return the last time of each id among all parts."""
    every, times = pa.concat_arrays([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    last = _find_last(every)
    return times[last][find_positions(ids, every.take(pa.array(last)))]


def merge_batches(batches: Sequence[UpdateBatch]) -> UpdateBatch:
    """Return the batch that has the effect of several, one after the other: the last row of an id counts."""
    last = batches[-1]
    if len(batches) == 1:
        return last
    ids = pa.concat_arrays([part for batch in batches for part in (batch.gone, batch.items.rows.ids)])
    is_row = np.concatenate(
        [np.repeat([False, True], [len(batch.gone), len(batch.items.rows.ids)]) for batch in batches]
    )
    newest = _find_last(ids)
    numbers = np.cumsum(is_row) - 1  # of the row among all rows of items
    gone = ids.take(pa.array(newest[~is_row[newest]]))
    items = type(last.items).concat([batch.items for batch in batches]).take(numbers[newest[is_row[newest]]])
    queries = type(last.queries).concat([batch.queries for batch in batches])
    queries = queries.take(_find_last(queries.rows.ids))
    return UpdateBatch(items, gone, queries, last.digest)


def _find_last(ids: pa.Array) -> IntArray:
    """Return the last row of each distinct id, in the order of ids."""
    codes = ids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    last = np.empty(int(codes.max(initial=-1)) + 1, np.int64)
    last[codes] = np.arange(len(codes))
    return last[argsort_ids(ids.take(pa.array(last)))]
