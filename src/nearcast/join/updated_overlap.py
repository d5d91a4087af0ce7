"""The overlap of updated lists with those of the last snapshot, from positions: the written tables are not read.

The reserves of the last run have its lists, and the stage `compare` knows which items stayed. The figures are those of
`measure_overlap`, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.artifact_files import map_array
from nearcast.errors import DamagedError, NotFoundError
from nearcast.join.reserve_folders import map_reserve_folder, read_reserve_folder
from nearcast.join.reserves import open_shape
from nearcast.join.run_mode import COMPARE, joins_in_full, read_base
from nearcast.join.run_tasks import open_prepared
from nearcast.join.select_candidates import SelectedLists
from nearcast.join.table_stage import find_queries, table_shape
from nearcast.join.task_context import TaskContext
from nearcast.knn.reserve_lists import cut_reserve
from nearcast.measure.sampled_recall import OverlapSums, choose_ranges
from nearcast.measure.tally import overlap_per_query
from nearcast.sources.ids import find_positions, find_sorted, lower_bound
from nearcast.sources.ingest import IngestedTable, open_ingested_table
from nearcast.table.snapshot import Snapshot
from nearcast.types import EMPTY_POSITION, IntArray

__all__ = ["measure_updated_overlap"]

IDS_AT_ONCE = 1 << 16


def measure_updated_overlap(
    context: TaskContext, lists: SelectedLists, earlier: Snapshot | None
) -> dict[str, float] | None:
    """Return what `measure_overlap` finds in the tables of this run and of an earlier snapshot.

    None where the tables have to be read: the run joined everything, the snapshot is not the one whose lists were
    updated, a model, an exposure cap or an over-fetch plan has selected from the lists, or files are missing.
    """
    spec = context.run.spec
    if earlier is None or joins_in_full(context) or (spec.rank or spec.exposure or spec.overfetch) is not None:
        return None
    if (earlier.manifest.run.reserves or {}).get("name") != read_base(context)["name"]:
        return None
    try:
        return _add_up(context, lists)
    except (NotFoundError, DamagedError):
        return None


def _add_up(context: TaskContext, lists: SelectedLists) -> dict[str, float]:
    """Compare the lists of the queries of both tables, a range of the new table at a time."""
    run, new = context.run, open_prepared(context).inputs
    old_items, old_queries = (_open_table(context, name) for name in read_base(context)["tables"])
    numbers = _ItemNumbers.of(context, old_items, new.items)
    listed, before = new.queries.listed_ids, old_queries.listed_ids
    ranges = choose_ranges(len(listed), run.spec.k, table_shape(context).group_rows)
    sums, low, high = OverlapSums(), 0, 0
    for number, (start, stop) in enumerate(ranges):
        ids, positions = find_queries(new.queries, start, stop)
        low = lower_bound(before, ids[0].as_py(), high, len(before)) if start else 0
        high = lower_bound(before, listed[stop].as_py(), low, len(before)) if stop < len(listed) else len(before)
        for first in range(low, high, stop - start):
            there, old_positions = find_queries(old_queries, first, min(high, first + stop - start))
            slots = find_positions(there, ids)
            both = np.flatnonzero(slots >= 0)
            then = numbers.find(_read_lists(context, old_positions[both]))
            sums.add(_compare_lists(then, _read_new(lists, positions[slots[both]])), len(there))
        run.listener.progress("overlap", number + 1, len(ranges))
    return sums.measures()


def _open_table(context: TaskContext, name: str) -> IngestedTable:
    return open_ingested_table(context.run.artifacts.open(name), context.run.artifacts.open)


@dataclass(frozen=True, slots=True)
class _ItemNumbers:
    """Numbers for the old items: their new positions by id, and others for the items that are gone."""

    now: IntArray  # (old items,) new position of each item that stayed as it is, -1 for the others
    others: IntArray  # ascending old positions of the others
    numbers: IntArray  # of the others

    @classmethod
    def of(cls, context: TaskContext, old: IngestedTable, new: IngestedTable) -> _ItemNumbers:
        """Number the items. An item with another vector keeps its id, and is the same item in a list."""
        now = map_array(context.run.results.open(COMPARE) / "items" / "now.npy")
        others = np.flatnonzero(now == EMPTY_POSITION)
        numbers = new.vectors.n + others
        for start in range(0, len(others), IDS_AT_ONCE):
            part = slice(start, start + IDS_AT_ONCE)
            found = find_sorted(old.ids.take(others[part]), new.ids)
            numbers[part] = np.where(found >= 0, found, numbers[part])
        return cls(now, others, numbers)

    def find(self, positions: IntArray) -> IntArray:
        """Return the numbers of old items, -1 for empty slots."""
        filled = positions != EMPTY_POSITION
        numbers = np.where(filled, self.now[np.where(filled, positions, 0)], EMPTY_POSITION)
        is_other = filled & (numbers == EMPTY_POSITION)
        numbers[is_other] = self.numbers[np.searchsorted(self.others, positions[is_other])]
        return numbers


def _read_lists(context: TaskContext, positions: IntArray) -> IntArray:
    """Return (n, k) old positions of the lists of old queries, ascending; a query without a vector has none, at -1."""
    base, shape = read_base(context), open_shape(context)
    rows = np.flatnonzero(positions >= 0)
    lists = np.full((len(positions), shape.k), EMPTY_POSITION, np.int64)
    for number, (start, stop) in enumerate(base["splits"]):
        first, last = np.searchsorted(positions[rows], (start, stop))
        if first < last:
            folder = context.run.artifacts.open(f"{base['name']}/{number:06d}")
            chosen = positions[rows[first:last]] - start
            if shape.relaxed:
                lists[rows[first:last]] = cut_reserve(read_reserve_folder(folder, chosen), shape).positions
            else:  # the first slots of the reserve
                lists[rows[first:last]] = map_reserve_folder(folder).known.best.positions[chosen, : shape.k]
    return lists


def _read_new(lists: SelectedLists, positions: IntArray) -> IntArray:
    """Return (n, k) the positions of the stored lists of queries, ascending; -1 for a query without a vector."""
    rows = np.flatnonzero(positions >= 0)
    stored = lists.stored.read(positions[rows]).positions
    whole = np.full((len(positions), stored.shape[1]), EMPTY_POSITION, np.int64)
    whole[rows] = stored
    return whole


def _compare_lists(old: IntArray, new: IntArray) -> npt.NDArray[np.float64]:
    """Return (n,) the share of each old list that the new list still holds, NaN for an empty old list."""
    shares = np.ones(len(old))
    differ = np.flatnonzero((old != new).any(axis=1) | (old[:, 0] == EMPTY_POSITION))
    shares[differ] = overlap_per_query(old[differ], new[differ])
    return shares
