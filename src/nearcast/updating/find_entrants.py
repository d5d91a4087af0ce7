"""Find the lists that a new item may enter, and those that a removed item may be in.

Scores every pair of a query and an item of the batch against the query's threshold. Reads no lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from nearcast.eligibility import compile_rules
from nearcast.errors import AuditError
from nearcast.join.compile_constraints import list_constraint_columns, parse_rules
from nearcast.kernels.scan_thresholds import scan_thresholds
from nearcast.knn.eligible import eligible_pairs
from nearcast.knn.find_pairs import FoundPairs
from nearcast.sources.ids import find_positions
from nearcast.types import FloatArray, IntArray, Progress
from nearcast.updating.updated_tables import UpdatedTables

__all__ = ["FoundEntrants", "find_entrants"]

PAIR_BYTES = 64
BLOCK_FLAGS = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class FoundEntrants:
    """Pairs of a list and a new item that may enter it, by list."""

    rows: IntArray  # (m,) of the queries, ascending
    columns: IntArray  # (m,) rows of the batch's items
    scores: FloatArray
    disturbed: IntArray  # rows of the queries, ascending: lists that a removed or changed item may be in


def find_entrants(tables: UpdatedTables, thresholds: FloatArray, progress: Progress) -> FoundEntrants:
    """Return the eligible pairs that reach their list's threshold. The minimum score is checked later.

    Raises AuditError if they do not fit in memory: vectors of another model.
    """
    state, batch = tables.state, tables.batch
    fresh = batch.items.rows
    before = state.items.find(pa.concat_arrays([fresh.ids, batch.gone.cast(fresh.ids.type)]))
    old = state.items.vectors.take(before[before >= 0])
    vectors = np.concatenate([fresh.vectors, old])
    n_fresh, most, count = len(fresh.ids), tables.resources.memory_bytes // PAIR_BYTES, 0
    parts, disturbed = [_no_pairs()], [np.empty(0, np.int64)]
    for rows, columns, scores in scan_thresholds(
        tables.queries.vectors, vectors, thresholds, state.metric, tables.resources, progress
    ):
        is_fresh = columns < n_fresh
        if len(old):
            disturbed.append(np.unique(rows[~is_fresh]))
            rows, columns, scores = rows[is_fresh], columns[is_fresh], scores[is_fresh]
        parts.append(_keep_eligible(tables, rows, columns, scores))
        count += len(parts[-1][0])
        if count > most:
            raise AuditError(
                f"the batch would enter lists at more than {most:,} places; were its vectors made by another model? "
                "Check them, or run and publish instead"
            )
    rows, columns, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    return FoundEntrants(rows, columns, scores, np.unique(np.concatenate(disturbed)))


def _no_pairs() -> FoundPairs:
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)


def _keep_eligible(tables: UpdatedTables, rows: IntArray, columns: IntArray, scores: FloatArray) -> FoundPairs:
    """Return the pairs that exclude_self and rules allow."""
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
