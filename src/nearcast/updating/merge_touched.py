"""Merge new items into lists that lose some, are short, or are under caps; the others are in `enter_lists`.

    read the lists from the store -> drop removed and changed items -> merge -> fill those that lost more than is known
    from the reserves of an incremental run -> join the others in full, as far as there is a budget

A list that would be joined in full, and for which there is no budget, stays shorter; its bound is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import DamagedError
from nearcast.knn.exact_join import exact_join
from nearcast.knn.item_shards import ShardLists
from nearcast.knn.topk import gather_pairs
from nearcast.knn.update_lists import KnownLists, move_lists, update_lists
from nearcast.sources.ids import find_positions
from nearcast.stores.base import Reader, Space
from nearcast.stores.value_format import CandidateLists, decode_lists, encode_keys, id_type
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Neighbors, Progress, as_score
from nearcast.updating.find_entrants import FoundEntrants
from nearcast.updating.refill_lists import refill_lists
from nearcast.updating.served_state import ListBound
from nearcast.updating.snapshot_reserves import SnapshotReserves
from nearcast.updating.updated_tables import UpdatedTables

__all__ = ["MergedLists", "join_in_full", "merge_touched"]

REJOINED_PAIRS = 1_000_000_000  # of a query and an item, per update: some seconds on two cores

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class MergedLists:
    """Lists after the batch."""

    rows: IntArray  # (t,) of the queries
    before: list[bytes]  # values in the store
    lists: Neighbors  # (t, k)
    proven: BoolArray  # (t,) whether each is what a full join finds
    short: dict[str | int, ListBound]  # all lists that may lack items after the update, by query
    n_joined: int


@dataclass(frozen=True, slots=True, eq=False)
class _Touched:
    """Lists that may change, as the store has them, in positions of the new items."""

    rows: IntArray  # (t,) positions in the new queries
    values: list[bytes]
    known: KnownLists  # (t, k) without removed and changed items
    lost: BoolArray  # (t,) whether an item was removed
    is_short: BoolArray  # (t,) whether items may be missing


def merge_touched(
    tables: UpdatedTables, rows: IntArray, found: FoundEntrants, reader: Reader, progress: Progress
) -> MergedLists:
    """Return the lists of these queries, ascending, after the batch."""
    touched = _read_touched(tables, rows, reader)
    best, proven = _merge_pairs(tables, touched, found)
    most, reserves = REJOINED_PAIRS // max(1, tables.items.n), tables.state.reserves
    if reserves is not None:
        left = np.flatnonzero(~proven)[0 if reserves.is_exact else most :]  # exact lists are better, and cost more
        _refill(tables, reserves, (rows, left), best, proven)
    chosen = np.flatnonzero(~proven)[:most]
    joined = join_in_full(tables, rows[chosen], progress)
    best.positions[chosen], best.scores[chosen] = joined.positions, joined.scores
    proven[chosen] = True
    short = _remember_bounds(tables, touched, proven)
    return MergedLists(rows, touched.values, best, proven, short, len(chosen))


def _refill(
    tables: UpdatedTables,
    reserves: SnapshotReserves,
    some: tuple[IntArray, IntArray],
    best: Neighbors,
    proven: BoolArray,
) -> None:
    """Replace lists by those that reserves prove complete. some: rows of all lists, and the numbers to replace."""
    rows, left = some
    try:
        numbers, lists = refill_lists(tables, reserves, rows[left])
    except DamagedError:  # they are joined in full, as far as there is a budget
        return
    done = left[numbers]
    best.positions[done], best.scores[done], proven[done] = lists.positions, lists.scores, True


def join_in_full(tables: UpdatedTables, rows: IntArray, progress: Progress) -> Neighbors:
    """Return the exact lists of these queries among all items after the batch."""
    if not len(rows):
        return Neighbors.empty(0, tables.state.spec.k)
    request, inputs = tables.request(rows)
    vectors = tables.queries.vectors.take(rows)
    return exact_join(vectors, inputs.items.vectors, request, tables.resources, progress)


def _read_touched(tables: UpdatedTables, rows: IntArray, reader: Reader) -> _Touched:
    """Read lists from the store, and find their items among the new items."""
    items, k = tables.items, tables.state.spec.k
    ids = tables.queries.ids.take(pa.array(rows))
    values = reader.get_many(Space.LISTS, encode_keys(ids))
    lists = decode_lists(values, id_type(items.ids.type))
    n, lengths = len(rows), np.diff(lists.offsets)
    row = np.repeat(np.arange(n), lengths)
    slot = np.arange(len(row)) - np.repeat(lists.offsets[:-1], lengths)
    listed = lists.ids.cast(items.ids.type)
    found = find_positions(listed, items.ids)
    found[find_positions(listed, tables.batch.items.rows.ids) >= 0] = EMPTY_POSITION  # changed: it enters anew
    positions = np.full((n, k), EMPTY_POSITION, np.int64)
    scores = np.full((n, k), -np.inf, np.float32)
    positions[row, slot], scores[row, slot] = found, lists.scores
    lost = np.bincount(row[found == EMPTY_POSITION], minlength=n) > 0
    bounds, edges, is_short = _find_bounds(tables, ids, lists)
    known = move_lists(KnownLists(Neighbors(positions, scores), bounds, edges), positions, edges)
    return _Touched(rows, [value or b"" for value in values], known, lost, is_short)


def _find_bounds(tables: UpdatedTables, ids: pa.Array, lists: CandidateLists) -> tuple[FloatArray, IntArray, BoolArray]:
    """Return bounds and edges of lists in the store, see `knn.update_lists`, and whether items may be missing."""
    state, items = tables.state, tables.items
    n, lengths = len(ids), np.diff(lists.offsets)
    full = lengths >= state.spec.k
    bounds, edges = np.full(n, -np.inf, np.float32), np.zeros(n, np.int64)
    at = np.flatnonzero(full)
    bounds[at] = lists.scores[lists.offsets[at + 1] - 1]
    edges[at] = items.count_to(lists.ids.take(pa.array(lists.offsets[at + 1] - 1)))
    is_short = np.zeros(n, np.bool_)
    if state.short:
        for row, query in enumerate(ids.to_pylist()):
            bound = state.short.get(query)
            if bound is not None:
                is_short[row], bounds[row] = True, bound[0]
                edges[row] = items.count_to(pa.array([bound[1]], items.ids.type))[0] if np.isfinite(bound[0]) else 0
    return bounds, edges, is_short


def _merge_pairs(tables: UpdatedTables, touched: _Touched, found: FoundEntrants) -> tuple[Neighbors, BoolArray]:
    """Return the touched lists with the new items in them, and whether each is what a full join finds."""
    spec, n = tables.state.spec, len(touched.rows)
    here = np.isin(found.rows, touched.rows)
    if spec.min_score is not None:
        here &= found.scores >= as_score(spec.min_score)
    rows, scores = found.rows[here], found.scores[here]
    positions = tables.items.find(tables.batch.items.rows.ids)[found.columns[here]]
    local = np.searchsorted(touched.rows, rows)
    width = max(1, int(np.bincount(local, minlength=1).max(initial=0)))
    if not spec.caps:
        fresh = gather_pairs(local, positions, scores, n=n, k=min(width, spec.k))
        renewed = update_lists(touched.known, fresh, spec.k)
        return renewed.best, renewed.complete(spec.k)
    fresh = gather_pairs(local, positions, scores, n=n, k=width)
    caps = tables.compile_caps()
    parts = [ShardLists(part, caps.find_groups(part.positions)) for part in (touched.known.best, fresh)]
    merged = parts[0].merge(parts[1:], spec.k, caps.max_per_group).lists
    # a removed item may have kept others of its group out, at any score below its own
    return merged, ~touched.lost & ~touched.is_short


def _remember_bounds(tables: UpdatedTables, touched: _Touched, proven: BoolArray) -> dict[str | int, ListBound]:
    """Return the bounds of all lists that may lack items after the update."""
    here = set(tables.queries.ids.take(pa.array(touched.rows)).to_pylist()) if tables.state.short else set()
    fresh = set(tables.batch.queries.rows.ids.to_pylist()) | set(tables.batch.gone.to_pylist())
    short = {query: bound for query, bound in tables.state.short.items() if query not in here and query not in fresh}
    left = np.flatnonzero(~proven)
    queries = tables.queries.ids.take(pa.array(touched.rows[left])).to_pylist()
    for query, row in zip(queries, left.tolist(), strict=True):
        earlier = tables.state.short.get(query)
        if earlier is None:
            last = decode_lists([touched.values[row]], id_type(tables.items.ids.type))
            earlier = float(last.scores[-1]), last.ids[len(last.ids) - 1].as_py()
        short[query] = earlier
    return short
