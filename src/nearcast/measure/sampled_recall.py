"""Measure a written table on sampled queries: exact neighbors, lists read back from its files, and overlap.

Candidates are read from Parquet as any reader reads them, and scored again from the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.knn.exact_join import join_ranges
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.knn.scores import rescore
from nearcast.measure.tally import overlap_per_query
from nearcast.sources.freed_memory import return_freed_memory
from nearcast.sources.ids import find_positions, find_sorted, sample_rows_by_hash, shared_positions
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.table.snapshot import Snapshot
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Metric, Neighbors, Progress, no_progress

__all__ = [
    "RANGE_SLOTS",
    "OverlapSums",
    "SampledLists",
    "choose_ranges",
    "find_own_items",
    "find_truth",
    "measure_overlap",
    "read_sampled_lists",
    "resolve_request",
    "sample_queries",
]

RANGE_SLOTS = 1 << 18  # compared at a time: some tens of megabytes
HASHED_AT_ONCE = 1 << 16  # ids
MAX_RANGES = 32  # 8 million slots: overlap is known to a fraction of a percent long before

Float64Array = npt.NDArray[np.float64]


def sample_queries(queries: IngestedTable, sizes: tuple[int, ...], seed: int) -> tuple[IntArray, ...]:
    """Draw disjoint samples of the query table, each sorted by position. If n is too small, the last ones are short.

    Draws by hashes of ids: a query that comes or goes changes each sample by one at most, and the cache of exact
    neighbors has the others. Reads all ids, in pieces.
    """
    starts = range(0, len(queries.ids), HASHED_AT_ONCE)
    drawn = sample_rows_by_hash((queries.ids[at : at + HASHED_AT_ONCE] for at in starts), sum(sizes), seed)
    return tuple(np.sort(part) for part in np.split(drawn, np.cumsum(sizes))[:-1])


def find_own_items(inputs: Inputs, rows: IntArray) -> IntArray:
    """Return (len(rows),) the position of the item with the id of each of these queries, -1 if there is none."""
    return shared_positions(inputs.queries.ids.take(pa.array(rows)), inputs.items.ids)


def resolve_request(request: JoinRequest, inputs: Inputs, rows: IntArray) -> JoinRequest:
    """Return the request for the queries at these positions, with `exclude_self` resolved into item positions."""
    exclude = find_own_items(inputs, rows) if request.exclude_self else None
    return replace(request, exclude=exclude, constraints=request.constraints.of_queries(rows))


def find_truth(
    inputs: Inputs, rows: IntArray, request: JoinRequest, resources: Resources, progress: Progress = no_progress
) -> Neighbors:
    """Return the exact neighbors of the queries at these positions. The request is that of all queries.

    Items whose constraints are compiled by shard are joined shard by shard, and the lists are merged.
    """
    queries, items = inputs.queries.vectors.take(rows), inputs.items.vectors
    return join_ranges(queries, items, resolve_request(request, inputs, rows), resources, progress)


@dataclass(frozen=True, slots=True)
class SampledLists:
    """Lists of some queries from the snapshot's files, scored again."""

    positions: IntArray  # (n, widest list), -1 for unknown ids and for repetitions of an item
    scores: FloatArray  # the same shape, best first; -inf where there is no candidate


def read_sampled_lists(
    snapshot: Snapshot, inputs: Inputs, rows: IntArray, metric: Metric, min_width: int
) -> SampledLists:
    """Return the lists of the queries at these (ascending) positions, at least `min_width` wide."""
    step = max(1, RANGE_SLOTS // max(1, min_width))
    parts = [
        _read_lists(snapshot, inputs, rows[start : start + step], metric, min_width)
        for start in range(0, max(1, len(rows)), step)
    ]
    width = max(part.positions.shape[1] for part in parts)
    lists = SampledLists(
        np.full((len(rows), width), EMPTY_POSITION, np.int64), np.full((len(rows), width), -np.inf, np.float32)
    )
    for number, part in enumerate(parts):
        some = np.s_[number * step : (number + 1) * step, : part.positions.shape[1]]
        lists.positions[some], lists.scores[some] = part.positions, part.scores
    return lists


def _read_lists(snapshot: Snapshot, inputs: Inputs, rows: IntArray, metric: Metric, min_width: int) -> Neighbors:
    items, queries = inputs.items, inputs.queries
    numbers = find_sorted(queries.ids.take(pa.array(rows)), queries.listed_ids)
    listed = _drop_repeats(_candidate_positions(snapshot.rows(numbers, ["candidate_ids"]), items, min_width))
    return_freed_memory()  # of the row groups
    return rescore(queries.vectors.take(rows), items.vectors, listed, metric)


class OverlapSums:
    """Adds up the overlap of two tables, range by range."""

    def __init__(self) -> None:
        self._shares: list[Float64Array] = []
        self._seen = 0

    def add(self, shares: Float64Array, seen: int) -> None:
        """Add some queries. shares: of the lists that both tables have, in the order of ids. seen: old queries."""
        self._shares.append(shares)
        self._seen += seen

    def measures(self) -> dict[str, float]:
        """Return the mean overlap, and the share of the old queries that both tables have. NaN is of an empty list."""
        shares = np.concatenate([np.empty(0), *self._shares])
        overlaps = shares[~np.isnan(shares)]
        overlap = float(overlaps.mean()) if len(overlaps) else 0.0
        return {"overlap": overlap, "queries_kept": len(shares) / max(1, self._seen)}


def measure_overlap(old: Snapshot, new: Snapshot, progress: Progress) -> dict[str, float]:
    """Return overlap@k with an older snapshot over the queries of both, and the share of its queries that both contain.

    Both tables are sorted by query id, so a range of one is found in the other. Of a large table, evenly spread ranges
    are compared.
    """
    sums, rows = OverlapSums(), max(1, RANGE_SLOTS // new.manifest.k)
    ranges = choose_ranges(new.n_rows, new.manifest.k, new.manifest.group_rows)
    for number, (start, stop) in enumerate(ranges):
        here = new.rows(np.arange(start, stop), ["query_id", "candidate_ids"])
        ids = here.column("query_id").combine_chunks()
        end = new.rows(np.array([stop]), ["query_id"]).column(0)[0].as_py() if stop < new.n_rows else None
        there = old.lists_between(ids[0].as_py() if start else None, end)
        if there.schema.field("query_id").type != ids.type:
            return {"overlap": 0.0, "queries_kept": 0.0}  # ids of another type: nothing is kept
        slots = find_positions(there.column("query_id").combine_chunks(), ids)
        for first in range(0, len(there), rows):
            both = first + np.flatnonzero(slots[first : first + rows] >= 0)
            shares = _compare_lists(there.take(pa.array(both)), here.take(pa.array(slots[both])))
            sums.add(shares, min(len(there), first + rows) - first)
        progress("overlap", number + 1, len(ranges))
    return sums.measures()


def choose_ranges(n_rows: int, k: int, group_rows: int) -> list[tuple[int, int]]:
    """Return start and stop of the ranges of a table to compare: the row groups of a small table, else evenly spread
    ranges."""
    rows = max(1, RANGE_SLOTS // k)
    starts = range(0, n_rows, rows)
    if len(starts) <= MAX_RANGES:
        return [(start, min(n_rows, start + group_rows)) for start in range(0, n_rows, group_rows)]
    chosen = np.linspace(0, len(starts) - 1, MAX_RANGES).astype(int)
    return [(starts[i], min(n_rows, starts[i] + rows)) for i in chosen]


def _compare_lists(old: pa.Table, new: pa.Table) -> Float64Array:
    """Return (rows,) the share of each old list that the new list still holds. Only lists that differ are numbered."""
    shares = np.ones(len(old))
    differ = np.flatnonzero(~_are_equal_lists(*(rows.column("candidate_ids").combine_chunks() for rows in (old, new))))
    if len(differ):
        chosen = pa.array(differ)
        shares[differ] = overlap_per_query(*_number_candidates(old.take(chosen), new.take(chosen)))
    return shares


def _are_equal_lists(old: pa.ListArray, new: pa.ListArray) -> npt.NDArray[np.bool_]:
    """Return (rows,) whether two lists are the same, and not empty."""
    lengths, others = (pc.list_value_length(lists).to_numpy() for lists in (old, new))
    is_equal: npt.NDArray[np.bool_] = (lengths == others) & (lengths > 0) & (old.type == new.type)
    rows = np.flatnonzero(is_equal)
    if len(rows):
        same = pc.equal(*(lists.take(pa.array(rows)).flatten() for lists in (old, new)))
        counts = np.append(0, np.cumsum(same.to_numpy(zero_copy_only=False)))
        is_equal[rows] = np.diff(counts[np.append(0, np.cumsum(lengths[rows]))]) == lengths[rows]
    return is_equal


def _number_candidates(old: pa.Table, new: pa.Table) -> tuple[IntArray, IntArray]:
    """Return the lists of two tables, (rows, longest list), with a number for every id that occurs in them."""
    before, now = (rows.column("candidate_ids").combine_chunks() for rows in (old, new))
    kind = now.type.value_type
    if before.type.value_type != kind and pa.types.is_integer(kind):  # ids of another type: nothing is kept
        return _place_values(before, np.zeros(len(before.flatten()), np.int64), 1), np.full((len(new), 1), -1)
    ids = pa.concat_arrays([before.flatten().cast(kind), now.flatten()])  # no look-up among all items: it costs more
    numbers = ids.dictionary_encode().indices.to_numpy().astype(np.int64)
    split = len(before.flatten())
    return _place_values(before, numbers[:split], 1), _place_values(now, numbers[split:], 1)


def _candidate_positions(rows: pa.Table, items: IngestedTable, min_width: int) -> IntArray:
    """Return (rows, longest list) item positions of the candidates; -1 for an id that is no item."""
    lists = rows.column("candidate_ids").combine_chunks()
    if lists.type.value_type != items.ids.type and pa.types.is_integer(items.ids.type):
        return np.full((len(rows), max(min_width, 1)), EMPTY_POSITION, np.int64)
    return _place_values(lists, find_sorted(lists.flatten().cast(items.ids.type), items.ids), max(min_width, 1))


def _place_values(lists: pa.ListArray, values: IntArray, min_width: int) -> IntArray:
    """Return (rows, longest list, at least `min_width`) the values of the lists' elements; -1 beyond the end."""
    lengths = pc.list_value_length(lists).to_numpy()
    placed = np.full((len(lists), int(lengths.max(initial=min_width))), EMPTY_POSITION, np.int64)
    placed[np.arange(placed.shape[1])[None, :] < lengths[:, None]] = values
    return placed


def _drop_repeats(positions: IntArray) -> IntArray:
    """Return the lists without repetitions of an item, which must count once."""
    ordered = np.sort(positions, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = EMPTY_POSITION
    return ordered
