"""Compute the lists that an update changes, as a run on the new tables would.

    find the lists that a new item enters or a removed one may be in -> enter new items into full lists that lose
    nothing -> merge the others -> join in full: new queries, and lists that lost more than is known

A list that would be joined in full, and for which there is no budget, stays shorter; its bound is remembered, and its
reason is `not_probed`. Knows nothing of journals and patches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.join.short_lists import CODES, find_reasons
from nearcast.knn.join_request import Resources
from nearcast.stores.base import Reader
from nearcast.stores.value_format import encode_keys, encode_lists, id_kind
from nearcast.table.candidate_schema import Reason, candidate_table
from nearcast.types import AnyArray, FloatArray, IntArray, Neighbors, Progress, no_progress
from nearcast.updating.enter_lists import enter_lists
from nearcast.updating.find_entrants import find_entrants
from nearcast.updating.live_table import LiveTable
from nearcast.updating.merge_touched import join_in_full, merge_touched
from nearcast.updating.read_batch import UpdateBatch
from nearcast.updating.served_state import ServedState
from nearcast.updating.updated_tables import UpdatedTables

__all__ = ["ChangedLists", "change_lists"]

CODE_NOT_PROBED = CODES.index(Reason.NOT_PROBED)

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class ChangedLists:
    """The lists that an update writes, and the state after it."""

    after: ServedState
    keys: list[bytes]  # of the lists that change
    values: list[bytes]
    n_new: int  # lists of new and changed queries among them
    n_joined: int  # lists joined in full, without those


def change_lists(
    state: ServedState, batch: UpdateBatch, reader: Reader, resources: Resources, progress: Progress = no_progress
) -> ChangedLists:
    """Return the lists of a version that a batch changes. reader: of the version, with the patches of `state`.

    Raises AuditError if so many pairs reach a threshold that they do not fit in memory: vectors of another model.
    """
    items = state.items.update(batch.items.rows, batch.gone)
    queries = items if state.joins_itself else state.queries.update(batch.queries.rows, batch.gone.slice(0, 0))
    fresh_rows = queries.find(batch.queries.rows.ids)
    thresholds = _move(state, queries, state.thresholds, np.float32(np.inf))
    lengths = _move(state, queries, state.lengths, np.int32(0))
    thresholds[fresh_rows] = np.inf  # they are joined in full
    tables = UpdatedTables(state, batch, items, queries, resources)
    found = find_entrants(tables, thresholds, progress)
    backlog = queries.find(pa.array(list(state.short), queries.ids.type)) if state.short else np.empty(0, np.int64)
    backlog = np.setdiff1d(backlog[backlog >= 0], fresh_rows)
    plain = np.isfinite(thresholds) if not state.spec.caps else np.zeros(queries.n, np.bool_)
    plain[found.disturbed] = plain[backlog] = False
    entered = enter_lists(tables, found, plain, reader)
    is_left = np.zeros(queries.n, np.bool_)
    is_left[found.rows] = is_left[found.disturbed] = is_left[backlog] = True
    is_left[entered.rows] = False
    merged = merge_touched(tables, np.flatnonzero(is_left), found, reader, progress)
    joined = join_in_full(tables, fresh_rows, progress)
    rows = np.concatenate([merged.rows, fresh_rows])
    lists = Neighbors(
        np.concatenate([merged.lists.positions, joined.positions]), np.concatenate([merged.lists.scores, joined.scores])
    )
    proven = np.concatenate([merged.proven, np.ones(len(fresh_rows), np.bool_)])
    thresholds[entered.rows] = entered.thresholds
    thresholds[rows] = _list_thresholds(lists, state.spec.k)
    lengths[rows] = lists.lengths
    for query, bound in merged.short.items():
        thresholds[queries.find(pa.array([query], queries.ids.type))] = bound[0]
    values = _encode(tables, rows, lists, proven)
    before: list[bytes | None] = [*merged.before, *[None] * len(fresh_rows)]
    changed = [at for at, (old, new) in enumerate(zip(before, values, strict=True)) if old != new]
    return ChangedLists(
        replace(state, items=items, queries=queries, thresholds=thresholds, lengths=lengths, short=merged.short),
        entered.keys + encode_keys(queries.ids.take(pa.array(rows[changed], pa.int64()))),
        entered.values + [values[at] for at in changed],
        sum(at >= len(merged.rows) for at in changed),
        merged.n_joined,
    )


def _move(state: ServedState, queries: LiveTable, values: AnyArray, missing: np.generic) -> AnyArray:
    """Return (queries.n,) a copy of values of the queries before, and `missing` for new ones."""
    if queries is state.queries:
        return values.copy()
    before = state.queries.find(queries.ids)
    moved, known = np.full(len(before), missing, values.dtype), before >= 0  # before, there may have been none
    moved[known] = values[before[known]]
    return moved


def _list_thresholds(lists: Neighbors, k: int) -> FloatArray:
    full = lists.lengths >= k
    return np.where(full, lists.scores[:, k - 1], np.float32(-np.inf)).astype(np.float32)


def _encode(tables: UpdatedTables, rows: IntArray, lists: Neighbors, proven: BoolArray) -> list[bytes]:
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
    kind = tables.state.id_kind
    if id_kind(listed.flatten()) <= kind:
        return encode_lists(listed, scores, reasons, kind)
    values = []  # a list with an id that needs 8 bytes has 8 for all
    for row, reason in enumerate(reasons):
        ids, own = listed.slice(row, 1), scores.slice(row, 1)
        values += encode_lists(ids, own, [reason], max(kind, id_kind(ids.flatten())))
    return values
