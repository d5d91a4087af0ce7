"""Recall of served lists among today's items, with the items that the overlay removes left out of lists and truth.

Reads a view of the served version and today's ingested tables; judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.engines.base import JoinRequest
from nearcast.join.compile_constraints import open_constraints
from nearcast.join.context import RunContext
from nearcast.knn.scores import rescore
from nearcast.measure.recall import Recall, estimate_recall, recall_per_query
from nearcast.measure.sampled_recall import find_truth
from nearcast.measure.truth import TruthCache
from nearcast.serve.lookup_data import convert_key
from nearcast.serve.view import StoredLists, View
from nearcast.sources.ids import find_positions
from nearcast.sources.ingest import Inputs
from nearcast.stores.base import Space
from nearcast.stores.value_format import encode_key, id_type
from nearcast.types import EMPTY_POSITION, IntArray, Neighbors

__all__ = ["RecallToday", "TodaysTables", "find_surviving_neighbors", "measure_recall_today"]

UNKNOWN_POPULATION = 1 << 62  # the number of all look-ups is not known, so no finite-population correction
MOST_MISSED = 5_000  # missed neighbors that are looked up in the served version


@dataclass(frozen=True, slots=True)
class TodaysTables:
    """A run over today's files: its context, the ingested tables, and the folder of its compiled constraints."""

    run: RunContext
    inputs: Inputs
    constraints: Path | None


@dataclass(frozen=True, slots=True)
class RecallToday:
    """Recall of served lists among today's items."""

    recall: Recall | None = None
    missed_new: float | None = None  # share of the missed neighbors that the served version does not hold
    reason: str | None = None  # why recall cannot be measured


def measure_recall_today(
    today: TodaysTables, view: View, stored: StoredLists, lists: IntArray, removed: Sequence[str | int]
) -> RecallToday:
    """Measure the recall of the lists whose keys are queries today.

    lists: (keys, longest) positions among today's items, -1 for an empty slot. removed: ids that the overlay removes.
    A key that was looked up twice counts twice; a key without a list does not count. A list from which the overlay
    has removed r candidates is compared with r fewer true neighbors.
    """
    spec, inputs, facts = today.run.spec, today.inputs, view.version.facts
    for what, then, now in (
        ("ids of the queries are", facts.query_ids, id_type(inputs.queries.ids.type)),
        ("ids of the items are", facts.item_ids, id_type(inputs.items.ids.type)),
        ("metric is", str(facts.metric), str(spec.metric)),
    ):
        if then != now:
            return RecallToday(reason=f"the {what} {now} today and {then} in the served version; run and publish")
    if not len(stored.found) or spec.rank is not None:  # a ranking model may replace the nearest items
        return RecallToday()
    rows = _find_query_rows(inputs, view, stored)
    depths = _count_true_neighbors(stored, facts.k)
    measurable = np.flatnonzero((rows >= 0) & stored.found & (depths > 0))
    if not len(measurable):
        return RecallToday()
    unique, first, back = np.unique(rows[measurable], return_index=True, return_inverse=True)
    truth = _find_truth_today(today, unique, depths[measurable][first], removed)
    lists = lists[measurable][first]
    queries = inputs.queries.vectors.take(unique)
    scores = rescore(queries, inputs.items.vectors, lists, inputs.metric).scores
    shares = recall_per_query(scores, truth)
    missed = _measure_missed_new(view, inputs, lists[shares < 1], truth.positions[shares < 1])
    return RecallToday(estimate_recall(shares[back], UNKNOWN_POPULATION), missed)


def _find_query_rows(inputs: Inputs, view: View, stored: StoredLists) -> IntArray:
    """Return (keys,) the row of each key among today's queries, -1 if it is none of them."""
    keys = [convert_key(key, view.version.query_ids) for key in stored.keys]
    known = np.flatnonzero(np.array([key is not None for key in keys], np.bool_))
    ids = pa.array([keys[number] for number in known], inputs.queries.ids.type)
    rows = np.full(len(keys), EMPTY_POSITION, np.int64)
    rows[known] = find_positions(ids, inputs.queries.ids)
    return rows


def _count_true_neighbors(stored: StoredLists, k: int) -> IntArray:
    """Return (n,) the number of true neighbors for each list: k, less the stored candidates that are removed."""
    lengths = np.diff(stored.offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    removed = np.bincount(owner[stored.removed], minlength=len(lengths))
    depths: IntArray = np.minimum(k, np.maximum(lengths, k) - removed)
    return depths


def _find_truth_today(
    today: TodaysTables, rows: IntArray, depths: IntArray, removed_ids: Sequence[str | int]
) -> Neighbors:
    """Return the exact neighbors of these queries among today's items that the overlay does not remove."""
    run, inputs, items = today.run, today.inputs, today.inputs.items
    removed = np.zeros(items.vectors.n, np.bool_)
    if len(removed_ids):
        positions = find_positions(pa.array(removed_ids, items.ids.type), items.ids)
        removed[positions[positions >= 0]] = True
    cache = TruthCache(run.workspace.home / "monitor" / "truth", run.listener.note)
    rules = open_constraints(today.constraints)

    def report(_stage: str, done: int, total: int) -> None:
        run.listener.progress("truth of today", done, total)

    def find(some: IntArray, width: int) -> Neighbors:
        request = JoinRequest(inputs.metric, width, exclude_self=run.spec.exclude_self, constraints=rules)
        if len(some) < len(rows):  # a later round, of few queries
            return find_truth(inputs, some, request, run.resources, report)
        return cache.find(inputs, some, request, run.resources, report)

    return find_surviving_neighbors(removed, rows, depths, find)


def find_surviving_neighbors(
    removed: npt.NDArray[np.bool_],
    rows: IntArray,
    depths: IntArray,
    find: Callable[[IntArray, int], Neighbors],
) -> Neighbors:
    """Return the exact neighbors of queries among the items that are not removed, `depths[i]` of query i.

    removed: (items,) whether an item is removed. rows, depths: (n,) the queries, and how many neighbors each needs.
    find(rows, width): exact neighbors among all items. If too many of a query's first `width` neighbors are removed,
    the width is doubled until enough are left, or all items were searched.
    """
    most = int(depths.max(initial=1))
    positions = np.full((len(rows), most), EMPTY_POSITION, np.int64)
    scores = np.full((len(rows), most), -np.inf, np.float32)
    open_rows, width = np.arange(len(rows)), most
    while len(open_rows):
        neighbors = find(rows[open_rows], width)
        filled = neighbors.positions != EMPTY_POSITION
        keep = filled & ~removed[np.where(filled, neighbors.positions, 0)]
        slot = np.cumsum(keep, axis=1) - 1
        keep &= slot < depths[open_rows][:, None]
        enough = (keep.sum(axis=1) >= depths[open_rows]) | (filled.sum(axis=1) < width) | (width >= len(removed))
        row, column = np.nonzero(keep & enough[:, None])
        positions[open_rows[row], slot[row, column]] = neighbors.positions[row, column]
        scores[open_rows[row], slot[row, column]] = neighbors.scores[row, column]
        open_rows, width = open_rows[~enough], min(2 * width, len(removed))
    return Neighbors(positions, scores)


def _measure_missed_new(view: View, inputs: Inputs, lists: IntArray, truth: IntArray) -> float | None:
    """Return the share of the missed true neighbors that the served version does not hold; None if none is missed."""
    row = np.arange(len(truth))[:, None] * (inputs.items.vectors.n + 1)
    missed = truth[(truth >= 0) & ~np.isin(row + truth, (row + lists)[lists >= 0])]
    if not len(missed) or not view.version.facts.items:
        return None
    unique, counts = np.unique(missed, return_counts=True)
    if len(unique) > MOST_MISSED:
        chosen = np.sort(np.argsort(-counts, kind="stable")[:MOST_MISSED])
        unique, counts = unique[chosen], counts[chosen]
    ids = inputs.items.ids.take(pa.array(unique)).to_pylist()
    values = view.version.reader.get_many(Space.ITEMS, [encode_key(item) for item in ids])
    new = np.array([value is None for value in values], np.bool_)
    return float(counts[new].sum() / counts.sum())
