"""Find the labelled items in lists, and compute the metrics of each query from where they stand.

Definitions, for a query with at least one relevant item, over the first k candidates of its list:

    hit_rate    1 if one of them is relevant, else 0
    recall      relevant ones / relevant items of the query
    precision   relevant ones / k
    mrr         1 / rank of the first relevant one, 0 without one
    ndcg        sum of grade / log2(rank + 1), divided by that sum for the best order of all labelled items

A query without a list has 0 everywhere. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.evaluation.label_set import FloatArray64, LabelSet
from nearcast.evaluation.ranked_lists import ListBatch, RankedLists
from nearcast.evaluation.sorted_ids import SortedIds, convert_ids
from nearcast.settings.label_tables import parse_metric
from nearcast.stores.value_format import IdType
from nearcast.types import IntArray

__all__ = ["LabelHits", "compute_metrics", "find_hits", "list_relevant"]


@dataclass(frozen=True, slots=True, eq=False)
class LabelHits:
    """Labelled items that stand in the lists, ordered by query and rank."""

    queries: IntArray  # (hits,)
    ranks: IntArray  # (hits,) from 1
    labels: IntArray  # (hits,) index of the label
    has_list: npt.NDArray[np.bool_]  # (queries,) whether the source knows the query


def find_hits(source: RankedLists, labels: LabelSet, depth: int) -> LabelHits:
    """Find the labelled items among the first `depth` candidates of each query's list."""
    items = convert_ids(labels.item_ids, source.item_ids)
    has_list = np.zeros(len(labels.queries), np.bool_)
    pieces: list[tuple[IntArray, IntArray, IntArray]] = []
    for batch in source.read(SortedIds.sort(convert_ids(labels.queries, source.query_ids))):
        has_list[batch.queries] = True
        pieces.append(_find_in_batch(batch, labels, items, depth))
    nothing = np.zeros(0, np.int64)
    queries, ranks, found = (np.concatenate([nothing, *(piece[at] for piece in pieces)]) for at in range(3))
    by_rank = np.lexsort((ranks, queries))
    return LabelHits(queries[by_rank], ranks[by_rank], found[by_rank], has_list)


def _find_in_batch(
    batch: ListBatch, labels: LabelSet, items: pa.Array, depth: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Return query, rank and label of each labelled candidate."""
    owners = batch.queries
    lengths = np.diff(batch.offsets)
    row = np.repeat(np.arange(len(owners)), lengths)
    rank = np.arange(len(row)) - np.repeat(batch.offsets[:-1] - batch.offsets[0], lengths) + 1
    starts, counts = labels.offsets[owners], labels.offsets[owners + 1] - labels.offsets[owners]
    label_row = np.repeat(np.arange(len(owners)), counts)
    label = np.arange(len(label_row)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(starts, counts)
    here, code = np.unique(labels.items[label], return_inverse=True)
    known = items.take(pa.array(here))
    valid = known.is_valid().to_numpy(zero_copy_only=False)  # an id of another type stands in no list
    deep = np.flatnonzero(rank <= depth)
    flat = batch.ids if len(deep) == len(batch.ids) else batch.ids.take(pa.array(deep))
    place = pc.index_in(flat.cast(known.type), value_set=known.filter(pa.array(valid)), skip_nulls=True)
    place = place.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    is_item = np.flatnonzero(place >= 0)
    candidates = row[deep[is_item]] * len(here) + np.flatnonzero(valid)[place[is_item]]
    pairs = label_row * len(here) + code
    order = np.argsort(pairs, kind="stable")
    at = np.searchsorted(pairs[order], candidates)
    at = np.minimum(at, len(pairs) - 1)
    hit = pairs[order][at] == candidates
    found = label[order[at[hit]]]
    ranks = rank[deep[is_item[hit]]]
    first = np.unique(found, return_index=True)[1]  # an item that a list holds twice counts once, where it is first
    return owners[row[deep[is_item[hit]]]][first], ranks[first], found[first]


def list_relevant(labels: LabelSet, types: tuple[IdType, IdType], rows: IntArray) -> dict[Any, frozenset[Any]]:
    """Return the relevant items of some queries, in other types of ids; an id that cannot be of its type is left out.

    rows: positions of the queries. types: of the ids of queries and items.
    """
    keys, items = convert_ids(labels.queries.take(pa.array(rows)), types[0]), convert_ids(labels.item_ids, types[1])
    found = {}
    for row, key in zip(rows.tolist(), keys.to_pylist(), strict=True):
        own = slice(labels.offsets[row], labels.offsets[row + 1])
        chosen = labels.items[own][labels.relevant[own]]
        found[key] = frozenset(items.take(pa.array(chosen)).drop_null().to_pylist())
    found.pop(None, None)
    return found


def compute_metrics(hits: LabelHits, labels: LabelSet, metrics: Sequence[str]) -> FloatArray64:
    """Return (queries, metrics) the value of every metric."""
    n = len(labels.queries)
    values = np.zeros((n, len(metrics)))
    totals = np.bincount(labels.owners[labels.relevant], minlength=n)
    relevant = labels.relevant[hits.labels]
    gains = labels.grades[hits.labels] / np.log2(hits.ranks + 1)
    for column, name in enumerate(metrics):
        kind, k = parse_metric(name)
        among = hits.ranks <= k
        counts = np.bincount(hits.queries[among & relevant], minlength=n)
        if kind == "hit_rate":
            values[:, column] = counts > 0
        elif kind == "recall":
            values[:, column] = counts / totals
        elif kind == "precision":
            values[:, column] = counts / k
        elif kind == "mrr":
            first = np.unique(hits.queries[among & relevant], return_index=True)
            values[first[0], column] = 1 / hits.ranks[among & relevant][first[1]]
        else:
            gained = np.bincount(hits.queries[among], weights=gains[among], minlength=n)
            values[:, column] = gained / _sum_ideal_gains(labels, k)
    return values


def _sum_ideal_gains(labels: LabelSet, k: int) -> FloatArray64:
    """Return (queries,) the discounted gain of the best list of k. Labels are sorted by grade already."""
    owners = labels.owners
    place = np.arange(len(owners)) - labels.offsets[owners]
    among = place < k
    gains = labels.grades[among] / np.log2(place[among] + 2)
    sums: FloatArray64 = np.bincount(owners[among], weights=gains, minlength=len(labels.queries)).astype(np.float64)
    return sums
