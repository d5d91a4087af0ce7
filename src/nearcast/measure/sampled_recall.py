"""Measure a written table: recall on sampled queries, read back from its files, and overlap with the last snapshot.

Believes nobody: candidates are read from Parquet as a reader would, and scored again from the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.engines.base import Resources
from nearcast.knn.constraints import FREE, Constraints
from nearcast.knn.exact_join import exact_join
from nearcast.knn.scores import rescore
from nearcast.measure.tally import overlap_per_query
from nearcast.sources.ids import positions_of, shared_positions
from nearcast.sources.ingest import IngestedTable
from nearcast.table.snapshot import Snapshot
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Metric, Neighbors, Progress

__all__ = ["SampledLists", "exclusions", "measure_overlap", "sampled_lists", "truth_of"]

STRETCH_SLOTS = 1 << 18  # compared at a time: some tens of megabytes
MOST_STRETCHES = 32  # 8 million slots: overlap is known to a fraction of a percent long before

Float64Array = npt.NDArray[np.float64]


def exclusions(items: IngestedTable, queries: IngestedTable, rows: IntArray, *, exclude_self: bool) -> IntArray | None:
    """(len(rows),) the item position that each of these queries must not get, -1 for none; None if none at all."""
    if not exclude_self:
        return None
    return shared_positions(queries.ids.take(pa.array(rows)), items.ids)


def truth_of(
    items: IngestedTable,
    queries: IngestedTable,
    rows: IntArray,
    k: int,
    metric: Metric,
    *,
    exclude_self: bool,
    resources: Resources,
    progress: Progress,
    constraints: Constraints = FREE,
) -> Neighbors:
    """The exact neighbors of these queries; the constraints are those of all queries."""
    return exact_join(
        queries.vectors.take(rows),
        items.vectors,
        k,
        metric,
        exclude=exclusions(items, queries, rows, exclude_self=exclude_self),
        constraints=constraints.of_queries(rows),
        threads=resources.threads,
        memory_bytes=resources.memory_bytes,
        progress=progress,
    )


@dataclass(frozen=True, slots=True)
class SampledLists:
    """Lists of some queries as the snapshot's files hold them, scored anew."""

    positions: IntArray  # (n, widest list), -1 for ids that are no items, and for repetitions of an item
    scores: FloatArray  # the same shape, best first; -inf where there is no candidate


def sampled_lists(
    snapshot: Snapshot, items: IngestedTable, queries: IngestedTable, rows: IntArray, metric: Metric, width: int
) -> SampledLists:
    """The lists of the queries at these (ascending) positions, at least `width` wide."""
    numbers = positions_of(queries.ids.take(pa.array(rows)), queries.listed_ids)
    found = _each_once(_positions(snapshot.rows(numbers), items, width))
    scored = rescore(queries.vectors.take(rows), items.vectors, found, metric)
    return SampledLists(scored.positions, scored.scores)


def measure_overlap(old: Snapshot, new: Snapshot, items: IngestedTable, progress: Progress) -> dict[str, float]:
    """overlap@k with an older snapshot over the queries of both, and the share of its queries that are kept.

    Both tables are sorted by query id, so a stretch of one is found in the other. Of a large table, stretches
    spread evenly are compared.
    """
    shares: list[Float64Array] = []
    kept = seen = 0
    rows = max(1, STRETCH_SLOTS // new.manifest.k)
    starts = _stretches(new.n_rows, rows)
    for number, start in enumerate(starts):
        here = new.rows(np.arange(start, min(new.n_rows, start + rows)))
        ids = here.column("query_id").combine_chunks()
        there = old.lists_between(ids[0].as_py() if start else None, _id_after(new, start + rows))
        if there.schema.field("query_id").type != ids.type:
            return {"overlap": 0.0, "queries_kept": 0.0}  # ids of another type: nothing is kept
        places = positions_of(there.column("query_id").combine_chunks(), ids)
        both = np.flatnonzero(places >= 0)
        kept, seen = kept + len(both), seen + len(there)
        old_rows = there.take(pa.array(both))
        new_lists = _positions(here.take(pa.array(places[both])), items, 0)
        shares.append(_kept_shares(_positions(old_rows, items, 0), new_lists, old_rows))
        progress("overlap", number + 1, len(starts))
    every = np.concatenate(shares) if shares else np.empty(0)
    every = every[~np.isnan(every)]
    return {"overlap": float(every.mean()) if len(every) else 0.0, "queries_kept": kept / max(1, seen)}


def _id_after(snapshot: Snapshot, number: int) -> str | int | None:
    """The query id of a row, or None where the table ends before it."""
    if number >= snapshot.n_rows:
        return None
    found: str | int = snapshot.rows(np.array([number])).column("query_id")[0].as_py()
    return found


def _stretches(n_rows: int, rows: int) -> list[int]:
    """Where the compared stretches of a table start: all of it when it is small, else spread evenly."""
    starts = range(0, n_rows, rows)
    if len(starts) <= MOST_STRETCHES:
        return list(starts)
    chosen = np.linspace(0, len(starts) - 1, MOST_STRETCHES).astype(int)
    return [starts[i] for i in chosen]


def _kept_shares(old: IntArray, new: IntArray, old_rows: pa.Table) -> Float64Array:
    """overlap_per_query, with candidates that are no items any more counted as not kept."""
    shares = overlap_per_query(old, new)
    known = np.count_nonzero(old != EMPTY_POSITION, axis=1)
    lengths = pc.list_value_length(old_rows.column("candidate_ids")).to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(lengths > 0, np.nan_to_num(shares) * known / lengths, np.nan)


def _positions(rows: pa.Table, items: IngestedTable, width: int) -> IntArray:
    """(rows, widest list) positions of the candidates among the items; ids that are no items are left empty."""
    lists = rows.column("candidate_ids").combine_chunks()
    if lists.type.value_type != items.ids.type and pa.types.is_integer(items.ids.type):
        return np.full((len(rows), max(width, 1)), EMPTY_POSITION, np.int64)
    lengths = pc.list_value_length(lists).to_numpy()
    positions = np.full((len(rows), int(lengths.max(initial=max(width, 1)))), EMPTY_POSITION, np.int64)
    slots = np.arange(positions.shape[1])[None, :] < lengths[:, None]
    positions[slots] = positions_of(lists.flatten(), items.ids)
    return positions


def _each_once(positions: IntArray) -> IntArray:
    """The lists with repetitions of an item taken out: it must not be paid for twice."""
    ordered = np.sort(positions, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = EMPTY_POSITION
    return ordered
