"""Measure the lists of a snapshot on sampled queries: recall at several depths and by slice, regret, repeats.

The lists are read from the snapshot's files; the truth comes from the exact reference join.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.knn.scores import rescore
from nearcast.measure.drift import measure_repeats
from nearcast.measure.recall import estimate_recall, recall_at, recall_per_query, regret_per_query
from nearcast.measure.sampled_recall import SampledLists, find_truth, read_sampled_lists
from nearcast.measure.slices import (
    FEWEST,
    MOST_VALUES,
    Slice,
    SliceRecall,
    quarter_slices,
    rare_slices,
    slice_recall,
    slice_recalls,
    traffic_slices,
    value_slices,
)
from nearcast.measure.ties import tie_warning, tied_share
from nearcast.sources.ids import find_ascending
from nearcast.sources.ingest import Inputs, read_rows
from nearcast.spec import GeneratorSpec
from nearcast.table.snapshot import Snapshot
from nearcast.types import FloatArray, IntArray, Metric, Neighbors

__all__ = ["Quality", "check_slice_type", "find_hits", "guess_metric", "measure_quality", "read_weights"]

DEPTHS = (1, 10)  # beside k
WORST = 20  # queries with the lowest recall that are named
DIAGNOSED = 200  # queries that are compared with the truth under other metrics
RUNNERS_UP, RUNNERS_UP_BYTES = 50, 256 << 20  # queries whose second best item is searched if k is 1, and its memory
CLEARLY_MORE = 0.1  # recall under another metric; so large a difference is not chance

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures of the sampled lists."""

    measures: dict[str, float]
    slices: list[SliceRecall]
    lists: SampledLists
    worst: list[dict[str, Any]]  # sampled queries with the lowest recall, the lowest first: query, recall
    ties: str | None  # a warning where scores cannot tell items apart


def measure_quality(
    spec: GeneratorSpec,
    snapshot: Snapshot,
    inputs: Inputs,
    rows: IntArray,
    truth: Neighbors,
    last: Snapshot | None,
    retrieved: SampledLists | None = None,
) -> Quality:
    """Compare the lists of the queries at these positions with their true neighbors.

    retrieved: the lists of the join, if a model has ranked them since; recall is measured before ranking.
    Raises InputError for a weight that is not a number of at least 0, or an attribute that cannot make slices.
    """
    metric = inputs.metric
    width = truth.positions.shape[1]
    lists = retrieved or read_sampled_lists(snapshot, inputs, rows, metric, width)
    columns = _read_columns(spec, inputs, rows)
    weights = None if spec.query_source.weight is None else read_weights(spec.query_source.weight, columns)
    shares = recall_per_query(lists.scores, truth)
    n = inputs.queries.vectors.n
    measures = _estimate_with_interval("recall", shares, n) | {"recall_sample": len(rows)}
    for depth in (d for d in DEPTHS if d < width):
        measures |= _estimate_with_interval(f"recall_at_{depth}", recall_at(lists.scores, truth, depth), n)
    if weights is not None:
        measures |= _estimate_with_interval("recall_by_traffic", shares, n, weights)
    measures["score_regret"] = float(regret_per_query(lists.scores, truth).mean()) if len(rows) else 0.0
    measures["repeats"] = _measure_repeats(lists, inputs)
    scores = lists.scores if spec.k > 1 else _score_runners_up(spec, inputs, rows)
    measures["score_ties"] = tied_share(scores)
    slices = list(_make_slices(spec, inputs, rows, columns, weights))
    best = lists.scores[:, 0] if lists.scores.shape[1] else np.full(len(rows), -np.inf)
    recalls = slice_recalls(slices, shares, best.astype(np.float64), n, spec.recall)
    if last is not None:
        recalls += _new_item_recalls(inputs, last, lists, truth, n, spec.recall)
    worst = _find_worst(shares, inputs.queries.ids.take(pa.array(rows)))
    ties = tie_warning(measures["score_ties"], scores, metric, measures["repeats"])
    return Quality(measures, recalls, lists, worst, ties)


def guess_metric(
    request: JoinRequest, resources: Resources, inputs: Inputs, rows: IntArray, lists: SampledLists, recall: float
) -> str | None:
    """Return another metric under which the lists have clearly more recall, if recall is below the target; else None.

    recall: of the lists under the request's own metric.
    """
    if recall >= request.recall or not len(rows):
        return None
    some = np.linspace(0, len(rows) - 1, min(len(rows), DIAGNOSED)).astype(np.int64)
    queries = inputs.queries.vectors.take(rows[some])
    request = replace(request, k=lists.positions.shape[1], constraints=request.constraints.without_min_score())
    recalls: dict[str, float] = {}
    for metric in Metric:
        truth = find_truth(inputs, rows[some], replace(request, metric=metric), resources)
        scores = rescore(queries, inputs.items.vectors, lists.positions[some], metric).scores
        recalls[str(metric)] = float(recall_per_query(scores, truth).mean())
    best = max(recalls, key=lambda name: recalls[name])
    return best if recalls[best] >= recalls[str(request.metric)] + CLEARLY_MORE else None


def _estimate_with_interval(
    name: str, shares: Float64Array, n: int, weights: Float64Array | None = None
) -> dict[str, float]:
    recall = estimate_recall(shares, n, weights)
    return {name: recall.value, f"{name}_low": recall.low, f"{name}_high": recall.high}


def _read_columns(spec: GeneratorSpec, inputs: Inputs, rows: IntArray) -> pa.Table | None:
    """Return the slice and weight columns of the sampled queries, in their order; None if there are none."""
    weight = spec.query_source.weight
    names = list(dict.fromkeys((*spec.measure.slices, *((weight,) if weight else ()))))
    return read_rows(inputs.queries, inputs.queries.ids.take(pa.array(rows)), names) if names else None


def _find_worst(shares: Float64Array, ids: pa.Array) -> list[dict[str, Any]]:
    """Return the queries with the lowest recall below 1, lowest first. Ties go to the first."""
    rows = np.argsort(shares, kind="stable")[:WORST]
    return [{"query": ids[int(p)].as_py(), "recall": round(float(shares[p]), 6)} for p in rows if shares[p] < 1.0]


def read_weights(name: str, columns: pa.Table | None) -> Float64Array:
    """Return (rows,) the traffic of each query. Raises InputError unless the column holds numbers of at least 0."""
    assert columns is not None
    column = columns.column(name)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(f"the weight of queries is a number of 0 or more, and column {name!r} holds {column.type}")
    weights: Float64Array = pc.fill_null(column.cast(pa.float64(), safe=False), 0.0).to_numpy()
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(bad):
        query = columns.column("id")[int(bad[0])].as_py()
        raise InputError(
            f"the weight of queries is a number of 0 or more; column {name!r} holds {weights[bad[0]]:g} for {query!r}"
        )
    return weights


def _make_slices(
    spec: GeneratorSpec, inputs: Inputs, rows: IntArray, columns: pa.Table | None, weights: Float64Array | None
) -> Iterator[Slice]:
    for name in spec.measure.slices:
        assert columns is not None
        yield from _attribute_slices(name, columns.column(name))
    if weights is not None:
        yield from traffic_slices(weights)
    yield from rare_slices(np.asarray(inputs.queries.vectors.take(rows), np.float32), spec.seed)


def check_slice_type(name: str, kind: pa.DataType) -> None:
    """Raise InputError if a column of this type in `measure.slices` cannot make slices."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_nested(plain) or pa.types.is_binary(plain):
        raise InputError(
            f"measure.slices names {name!r}, a column of {kind}: slices are made of single values; "
            "add a column with one value a query"
        )


def _attribute_slices(name: str, column: pa.ChunkedArray) -> Iterator[Slice]:
    """Yield a slice per value, or per quarter of a number with many values."""
    check_slice_type(name, column.type)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.combine_chunks().dictionary_encode()
    labels = [str(value) for value in encoded.dictionary.to_pylist()]
    if len(labels) > MOST_VALUES and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        numbers = column.cast(pa.float64(), safe=False)
        yield from quarter_slices(name, pc.fill_null(numbers, float("nan")).to_numpy())
    else:
        yield from value_slices(name, pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64), labels)


def _new_item_recalls(
    inputs: Inputs, last: Snapshot, lists: SampledLists, truth: Neighbors, n: int, target: float
) -> list[SliceRecall]:
    """Return the recall of items new since the last snapshot, and of all others, over the queries that need them."""
    listed = np.unique(truth.positions[truth.positions >= 0])
    ids = inputs.items.ids.take(pa.array(listed))
    kind = last.dataset("items").schema.field("id").type
    if pa.types.is_integer(kind) != pa.types.is_integer(ids.type) or not len(listed):
        return []
    new = ~_find_known(last, ids)
    number = np.searchsorted(listed, np.maximum(truth.positions, listed[0]))  # of each slot's item
    hits = find_hits(lists, truth)
    recalls: list[SliceRecall] = []
    for value, members in (("new", new), ("known", ~new)):
        true_members = (truth.positions >= 0) & members[number]
        rows = true_members.any(axis=1)
        if rows.sum() >= FEWEST and new.any():
            shares = (hits & true_members).sum(axis=1)[rows] / true_members.sum(axis=1)[rows]
            best = lists.scores[rows, 0].astype(np.float64)
            per_sampled = n / len(lists.scores)
            recalls.append(slice_recall("items", value, shares, best, per_sampled, target, n_slices=2))
    return recalls


def _find_known(last: Snapshot, ids: pa.Array) -> npt.NDArray[np.bool_]:
    """Return (n,) whether the earlier snapshot had the item of each of these ascending ids."""
    known = np.zeros(len(ids), np.bool_)
    for batch in last.dataset("items").to_batches(columns=["id"], use_threads=False):
        found = find_ascending(batch.column(0).cast(ids.type), ids)
        known[found[found >= 0]] = True
    return known


def find_hits(lists: SampledLists, truth: Neighbors) -> npt.NDArray[np.bool_]:
    """Return (n, k) which true neighbors are in the lists. An item that ties with the last true one counts as a hit."""
    n_items = int(max(lists.positions.max(initial=0), truth.positions.max(initial=0))) + 1
    row = np.arange(len(truth.positions))[:, None] * n_items
    there = np.isin(row + truth.positions, (row + lists.positions)[lists.positions >= 0])
    last = np.take_along_axis(truth.scores, np.maximum(truth.lengths - 1, 0)[:, None], 1)
    tied = (truth.scores == last) & (recall_per_query(lists.scores, truth) == 1.0)[:, None]
    hits: npt.NDArray[np.bool_] = (there | tied) & (truth.positions >= 0)
    return hits


def _score_runners_up(spec: GeneratorSpec, inputs: Inputs, rows: IntArray) -> FloatArray:
    """Return the two best scores of some queries: lists of one candidate do not show whether the next one ties."""
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), RUNNERS_UP)).astype(np.int64)]
    request = JoinRequest(inputs.metric, 2, exclude_self=spec.exclude_self)
    return find_truth(inputs, some, request, Resources(1, RUNNERS_UP_BYTES)).scores


def _measure_repeats(lists: SampledLists, inputs: Inputs) -> float:
    seen = np.unique(lists.positions[lists.positions >= 0])
    vectors = np.asarray(inputs.items.vectors.take(seen))
    return measure_repeats(lists.positions, lists.scores, vectors, seen)
