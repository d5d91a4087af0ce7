"""Compute the lists that an update changes, as a run on the new tables would.

    find the lists that a new item enters or a removed one may be in -> read them from the store -> merge
    -> join in full: new queries, and lists that lost more than is known

A list that would be joined in full, and for which there is no budget, stays shorter; its bound is remembered, and its
reason is `not_probed`. Knows nothing of journals and patches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.eligibility import compile_rules
from nearcast.errors import AuditError
from nearcast.join.compile_constraints import compile_columns, list_constraint_columns, parse_rules
from nearcast.join.short_lists import CODES, find_reasons
from nearcast.knn.constraints import Constraints
from nearcast.knn.eligible import eligible_pairs
from nearcast.knn.exact_join import exact_join
from nearcast.knn.find_pairs import find_pairs
from nearcast.knn.item_shards import ShardLists
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.knn.topk import gather_pairs
from nearcast.knn.update_lists import KnownLists, move_lists, update_lists
from nearcast.measure.sampled_recall import find_own_items
from nearcast.sources.ids import find_positions, lower_bound
from nearcast.sources.ingest import Inputs
from nearcast.stores.base import Reader, Space
from nearcast.stores.value_format import CandidateLists, decode_lists, encode_keys, encode_lists, id_type
from nearcast.table.candidate_schema import Reason, candidate_table
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Neighbors, Progress, as_score, no_progress
from nearcast.updating.live_table import LiveTable
from nearcast.updating.read_batch import UpdateBatch
from nearcast.updating.served_state import ListBound, ServedState

__all__ = ["ChangedLists", "change_lists"]

REJOINED_PAIRS = 1_000_000_000  # of a query and an item, per update: some seconds on two cores
PAIR_BYTES = 64
CODE_NOT_PROBED = CODES.index(Reason.NOT_PROBED)
BLOCK_FLAGS = 1 << 24

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class ChangedLists:
    """The lists that an update writes, and the state after it."""

    after: ServedState
    keys: list[bytes]  # of the lists that change
    values: list[bytes]
    positions: IntArray  # (len(keys),) of their queries in `after.queries`
    n_new: int  # lists of new and changed queries among them
    n_joined: int  # lists joined in full, without those
    n_short: int  # lists that may lack items, of all


@dataclass(frozen=True, slots=True, eq=False)
class _Touched:
    """Lists that may change, as the store has them, in positions of the new items."""

    rows: IntArray  # (t,) positions in the new queries
    values: list[bytes]
    known: KnownLists  # (t, k) without removed and changed items
    lost: BoolArray  # (t,) whether an item was removed
    is_short: BoolArray  # (t,) whether items may be missing


def change_lists(
    state: ServedState, batch: UpdateBatch, reader: Reader, resources: Resources, progress: Progress = no_progress
) -> ChangedLists:
    """Return the lists of a version that a batch changes. reader: of the version, with the patches of `state`.

    Raises AuditError if so many pairs reach a threshold that they do not fit in memory: vectors of another model.
    """
    items = state.items.update(batch.items.rows, batch.gone)
    queries = items if state.joins_itself else state.queries.update(batch.queries.rows, batch.gone.slice(0, 0))
    fresh_rows = queries.find(batch.queries.rows.ids)
    thresholds = _move_thresholds(state, queries, fresh_rows)
    tables = _Tables(state, batch, items, queries, resources)
    pairs, disturbed = _find_pairs(tables, thresholds, progress)
    backlog = queries.find(pa.array(list(state.short), queries.ids.type)) if state.short else np.empty(0, np.int64)
    backlog = np.setdiff1d(backlog[backlog >= 0], fresh_rows)
    touched = _read_touched(tables, np.unique(np.concatenate([pairs[0], disturbed, backlog])), reader)
    best, proven = _merge_pairs(tables, touched, pairs)
    budget = max(0, REJOINED_PAIRS // max(1, items.n))
    chosen = np.flatnonzero(~proven)[:budget]
    joined = _join_in_full(tables, np.concatenate([fresh_rows, touched.rows[chosen]]), progress)
    best.positions[chosen], best.scores[chosen] = joined.positions[len(fresh_rows) :], joined.scores[len(fresh_rows) :]
    proven[chosen] = True
    rows = np.concatenate([touched.rows, fresh_rows])
    lists = Neighbors(
        np.concatenate([best.positions, joined.positions[: len(fresh_rows)]]),
        np.concatenate([best.scores, joined.scores[: len(fresh_rows)]]),
    )
    proven = np.concatenate([proven, np.ones(len(fresh_rows), np.bool_)])
    short = _remember_bounds(tables, touched, proven[: len(touched.rows)])
    thresholds[rows] = _list_thresholds(lists, state.spec.k)
    for query, bound in short.items():
        thresholds[queries.find(pa.array([query], queries.ids.type))] = bound[0]
    values = _encode(tables, rows, lists, proven)
    before: list[bytes | None] = [*touched.values, *[None] * len(fresh_rows)]
    changed = [at for at, (old, new) in enumerate(zip(before, values, strict=True)) if old != new]
    after = replace(state, items=items, queries=queries, thresholds=thresholds, short=short)
    keys = encode_keys(queries.ids.take(pa.array(rows[changed])))
    n_new = sum(at >= len(touched.rows) for at in changed)
    return ChangedLists(after, keys, [values[at] for at in changed], rows[changed], n_new, len(chosen), len(short))


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """The state before, the batch, and the tables after it."""

    state: ServedState
    batch: UpdateBatch
    items: LiveTable
    queries: LiveTable
    resources: Resources

    def request(self, rows: IntArray) -> tuple[JoinRequest, Inputs]:
        """Return the request of a full join of these queries with all items, and both tables."""
        spec = self.state.spec
        inputs = Inputs(self.items.as_ingested(), self.queries.as_ingested(rows), self.state.metric)
        request = JoinRequest(self.state.metric, spec.k, exclude_self=spec.exclude_self)
        query_columns, item_columns = list_constraint_columns(spec)
        if spec.rules or spec.caps or spec.min_score is not None:
            found = compile_columns(
                spec, self.queries.attributes(query_columns, rows), self.items.attributes(item_columns)
            )
            request = replace(request, constraints=found)
        exclude = find_own_items(inputs, np.arange(len(rows))) if spec.exclude_self else None
        return replace(request, exclude=exclude), inputs


def _move_thresholds(state: ServedState, queries: LiveTable, fresh_rows: IntArray) -> FloatArray:
    """Return (queries.n,) thresholds; infinite for new queries, which are joined in full."""
    if queries is state.queries:
        return state.thresholds.copy()
    before = state.queries.find(queries.ids)
    thresholds = np.where(before >= 0, state.thresholds[before], np.float32(np.inf)).astype(np.float32)
    thresholds[fresh_rows] = np.inf
    return thresholds


def _find_pairs(
    tables: _Tables, thresholds: FloatArray, progress: Progress
) -> tuple[tuple[IntArray, IntArray, FloatArray], IntArray]:
    """Return the pairs of a new item and a list that it may enter, and the lists that a removed item may be in.

    Pairs: rows of the queries, positions of the items, scores; eligible, and at least the minimum score.
    """
    state, batch = tables.state, tables.batch
    fresh = batch.items.rows
    before = state.items.find(pa.concat_arrays([fresh.ids, batch.gone.cast(fresh.ids.type)]))
    old = state.items.vectors.take(before[before >= 0])
    vectors = np.concatenate([fresh.vectors, old])
    n_fresh, most, count = len(fresh.ids), tables.resources.memory_bytes // PAIR_BYTES, 0
    parts, disturbed = [], [np.empty(0, np.int64)]
    for rows, columns, scores in find_pairs(
        tables.queries.vectors, vectors, thresholds, state.metric, tables.resources, progress
    ):
        is_fresh = columns < n_fresh
        disturbed.append(np.unique(rows[~is_fresh]))
        parts.append(_keep_eligible(tables, rows[is_fresh], columns[is_fresh], scores[is_fresh]))
        count += len(parts[-1][0])
        if count > most:
            raise AuditError(
                f"the batch would enter lists at more than {most:,} places; were its vectors made by another model? "
                "Check them, or run and publish instead"
            )
    rows, columns, scores = (np.concatenate(part) for part in zip(*parts, strict=True)) if parts else _no_pairs()
    return (rows, tables.items.find(fresh.ids)[columns], scores), np.unique(np.concatenate(disturbed))


def _no_pairs() -> tuple[IntArray, IntArray, FloatArray]:
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)


def _keep_eligible(
    tables: _Tables, rows: IntArray, columns: IntArray, scores: FloatArray
) -> tuple[IntArray, IntArray, FloatArray]:
    """Return the pairs that exclude_self and rules allow. The minimum score is checked later: see `_merge_pairs`."""
    spec, fresh = tables.state.spec, tables.batch.items.rows
    if spec.exclude_self and len(rows):
        unique, back = np.unique(rows, return_inverse=True)
        own = find_positions(tables.queries.ids.take(pa.array(unique)), fresh.ids)
        kept = own[back] != columns
        rows, columns, scores = rows[kept], columns[kept], scores[kept]
    if not spec.rules or not len(rows):
        return rows, columns, scores
    query_columns, item_columns = list_constraint_columns(spec)
    unique, back = np.unique(rows, return_inverse=True)
    items = fresh.with_ids(item_columns)
    rule = compile_rules(parse_rules(spec), tables.queries.attributes(query_columns, unique), items)
    if rule is None:
        return rows, columns, scores
    kept = np.empty(len(rows), np.bool_)
    step = max(1, BLOCK_FLAGS // max(1, len(fresh.ids)))
    for start in range(0, len(unique), step):
        flags = eligible_pairs(rule.of_queries(slice(start, start + step)))
        here = (back >= start) & (back < start + step)
        kept[here] = flags[back[here] - start, columns[here]]
    return rows[kept], columns[kept], scores[kept]


def _read_touched(tables: _Tables, rows: IntArray, reader: Reader) -> _Touched:
    """Read lists from the store, and find their items among the new items."""
    items, k = tables.items, tables.state.spec.k
    ids = tables.queries.ids.take(pa.array(rows))
    values = reader.get_many(Space.LISTS, encode_keys(ids))
    lists = decode_lists(values, id_type(items.ids.type))
    n, lengths = len(rows), np.diff(lists.offsets)
    row = np.repeat(np.arange(n), lengths)
    slot = np.arange(len(row)) - np.repeat(lists.offsets[:-1], lengths)
    listed = lists.ids.cast(items.ids.type)
    found = items.find(listed)
    found[find_positions(listed, tables.batch.items.rows.ids) >= 0] = EMPTY_POSITION  # changed: it enters anew
    positions = np.full((n, k), EMPTY_POSITION, np.int64)
    scores = np.full((n, k), -np.inf, np.float32)
    positions[row, slot], scores[row, slot] = found, lists.scores
    lost = np.bincount(row[found == EMPTY_POSITION], minlength=n) > 0
    bounds, edges, is_short = _find_bounds(tables, ids, lists)
    known = move_lists(KnownLists(Neighbors(positions, scores), bounds, edges), positions, edges)
    return _Touched(rows, [value or b"" for value in values], known, lost, is_short)


def _find_bounds(tables: _Tables, ids: pa.Array, lists: CandidateLists) -> tuple[FloatArray, IntArray, BoolArray]:
    """Return bounds and edges of lists in the store, see `knn.update_lists`, and whether items may be missing."""
    state, items = tables.state, tables.items
    n, lengths = len(ids), np.diff(lists.offsets)
    full = lengths >= state.spec.k
    bounds, edges = np.full(n, -np.inf, np.float32), np.zeros(n, np.int64)
    at = np.flatnonzero(full)
    bounds[at] = lists.scores[lists.offsets[at + 1] - 1]
    edges[at] = _find_edges(items, lists.ids.take(pa.array(lists.offsets[at + 1] - 1)))
    is_short = np.zeros(n, np.bool_)
    if state.short:
        for row, query in enumerate(ids.to_pylist()):
            bound = state.short.get(query)
            if bound is not None:
                is_short[row], bounds[row] = True, bound[0]
                edges[row] = _find_edges(items, pa.array([bound[1]], items.ids.type))[0] if np.isfinite(bound[0]) else 0
    return bounds, edges, is_short


def _find_edges(items: LiveTable, ids: pa.Array) -> IntArray:
    """Return (len(ids),) the number of items whose id is not larger than each of these."""
    edges = items.find(ids) + 1
    for row in np.flatnonzero(edges == 0).tolist():
        edges[row] = lower_bound(items.ids, ids[row].as_py(), 0, items.n)
    return edges


def _merge_pairs(
    tables: _Tables, touched: _Touched, pairs: tuple[IntArray, IntArray, FloatArray]
) -> tuple[Neighbors, BoolArray]:
    """Return the touched lists with the new items in them, and whether each is what a full join finds."""
    spec, n = tables.state.spec, len(touched.rows)
    rows, positions, scores = pairs
    if spec.min_score is not None:
        good = scores >= as_score(spec.min_score)
        rows, positions, scores = rows[good], positions[good], scores[good]
    local = np.searchsorted(touched.rows, rows)
    width = max(1, int(np.bincount(local, minlength=1).max(initial=0)))
    if not spec.caps:
        fresh = gather_pairs(local, positions, scores, n=n, k=min(width, spec.k))
        renewed = update_lists(touched.known, fresh, spec.k)
        return renewed.best, renewed.complete(spec.k)
    fresh = gather_pairs(local, positions, scores, n=n, k=width)
    caps = _compile_caps(tables)
    parts = [ShardLists(part, caps.find_groups(part.positions)) for part in (touched.known.best, fresh)]
    merged = parts[0].merge(parts[1:], spec.k, caps.max_per_group).lists
    # a removed item may have kept others of its group out, at any score below its own
    return merged, ~touched.lost & ~touched.is_short


def _compile_caps(tables: _Tables) -> Constraints:
    spec = tables.state.spec.model_copy(update={"rules": (), "min_score": None})
    columns = list_constraint_columns(spec)[1]
    return compile_columns(spec, pa.table({"id": tables.queries.ids.slice(0, 0)}), tables.items.attributes(columns))


def _join_in_full(tables: _Tables, rows: IntArray, progress: Progress) -> Neighbors:
    if not len(rows):
        return Neighbors.empty(0, tables.state.spec.k)
    request, inputs = tables.request(rows)
    vectors = tables.queries.vectors.take(rows)
    return exact_join(vectors, inputs.items.vectors, request, tables.resources, progress)


def _remember_bounds(tables: _Tables, touched: _Touched, proven: BoolArray) -> dict[str | int, ListBound]:
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


def _list_thresholds(lists: Neighbors, k: int) -> FloatArray:
    full = lists.lengths >= k
    return np.where(full, lists.scores[:, k - 1], np.float32(-np.inf)).astype(np.float32)


def _encode(tables: _Tables, rows: IntArray, lists: Neighbors, proven: BoolArray) -> list[bytes]:
    """Return the values of these lists as the store keeps them, with the reasons of short lists."""
    codes = np.zeros(len(rows), np.uint8)
    codes[~proven & (lists.lengths < tables.state.spec.k)] = CODE_NOT_PROBED
    explained = np.flatnonzero(proven & (lists.lengths < tables.state.spec.k))
    if len(explained):
        request, inputs = tables.request(rows[explained])
        every = np.arange(len(explained))
        codes[explained] = find_reasons(request, tables.resources, inputs, every, lists.lengths[explained], exact=True)
    reasons = [None if code == 0 else str(CODES[code]) for code in codes.tolist()]
    ids = tables.queries.ids.take(pa.array(rows))
    table = candidate_table(ids, lists, tables.items.ids, reasons)
    listed, scores = (table.column(name).combine_chunks() for name in ("candidate_ids", "scores"))
    return encode_lists(listed, scores, reasons, tables.state.id_kind)
