"""Measure the lists of a snapshot on sampled queries: recall at several depths and by slice, regret, repeats.

The lists are read from the snapshot's files; the truth comes from the exact reference join.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.knn.scores import rescore
from nearcast.measure.list_figures import DEPTHS, ListFigures, compare_lists, concat_figures, cut_blocks
from nearcast.measure.recall import estimate_recall, recall_per_query
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
from nearcast.measure.ties import count_ties, tie_warning
from nearcast.sources.freed_memory import return_freed_memory
from nearcast.sources.ids import find_ascending
from nearcast.sources.ingest import Inputs, read_rows
from nearcast.spec import GeneratorSpec
from nearcast.table.snapshot import Snapshot
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Metric, Neighbors

__all__ = [
    "Quality",
    "ReadLists",
    "check_slice_type",
    "choose_diagnosed",
    "guess_metric",
    "measure_quality",
    "read_weights",
]

WORST = 20  # queries with the lowest recall that are named
DIAGNOSED = 200  # queries that are compared with the truth under other metrics
RUNNERS_UP, RUNNERS_UP_BYTES = 50, 256 << 20  # queries whose second best item is searched if k is 1, and its memory
CLEARLY_MORE = 0.1  # recall under another metric; so large a difference is not chance

Float64Array = npt.NDArray[np.float64]
ReadLists = Callable[[IntArray], tuple[Neighbors, SampledLists | None]]
"""Returns the true neighbors of some queries, and their lists; None where the snapshot's files have them."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures of the sampled lists."""

    measures: dict[str, float]
    slices: list[SliceRecall]
    diagnosed: IntArray  # (choose_diagnosed(n), widest list) item positions, -1 for none
    worst: list[dict[str, Any]]  # sampled queries with the lowest recall, the lowest first: query, recall
    ties: str | None  # a warning where scores cannot tell items apart


def measure_quality(
    spec: GeneratorSpec,
    snapshot: Snapshot,
    inputs: Inputs,
    rows: IntArray,
    read: ReadLists,
    last: Snapshot | None,
    block_slots: int,
) -> Quality:
    """Compare the lists of the queries at these positions with their true neighbors.

    read: called with blocks of the queries, of about `block_slots` slots. It returns other lists than those of the
    files if a model has ranked them since: recall is measured before ranking.
    Raises InputError for a weight that is not a number of at least 0, or an attribute that cannot make slices.
    """
    columns = _read_columns(spec, inputs, rows)
    weights = None if spec.query_source.weight is None else read_weights(spec.query_source.weight, columns)
    figures, diagnosed = _compare_blocks(spec, snapshot, inputs, rows, read, last, block_slots)
    n, shares = inputs.queries.vectors.n, figures.recalls[0]
    measures = _estimate_with_interval("recall", shares, n) | {"recall_sample": len(rows)}
    for depth, at_depth in zip(DEPTHS, figures.recalls[1:], strict=False):
        measures |= _estimate_with_interval(f"recall_at_{depth}", at_depth, n)
    if weights is not None:
        measures |= _estimate_with_interval("recall_by_traffic", shares, n, weights)
    measures["score_regret"] = float(figures.regrets.mean()) if len(rows) else 0.0
    filled, repeated, followers, tied = (int(count) for count in figures.slots.sum(axis=0))
    measures["repeats"] = repeated / max(1, filled)
    extremes = figures.extremes
    if spec.k == 1:
        extremes = _score_runners_up(spec, inputs, rows)
        followers, tied = (int(counts.sum()) for counts in count_ties(extremes))
    measures["score_ties"] = tied / max(1, followers)
    return_freed_memory()
    slices = list(_make_slices(spec, inputs, rows, columns, weights))
    recalls = slice_recalls(slices, shares, figures.best, n, spec.recall)
    if last is not None:
        recalls += _new_item_recalls(figures, n, spec.recall)
    worst = _find_worst(shares, inputs.queries.ids.take(pa.array(rows)))
    ties = tie_warning(measures["score_ties"], extremes, inputs.metric, measures["repeats"])
    return Quality(measures, recalls, diagnosed, worst, ties)


def _compare_blocks(
    spec: GeneratorSpec,
    snapshot: Snapshot,
    inputs: Inputs,
    rows: IntArray,
    read: ReadLists,
    last: Snapshot | None,
    block_slots: int,
) -> tuple[ListFigures, IntArray]:
    """Return the figures of all lists, and the item positions of the diagnosed ones; a block of queries at a time."""
    known = None if last is None else _find_kind(last, inputs)
    chosen, parts, diagnosed = choose_diagnosed(len(rows)), [], []
    for outer in cut_blocks(len(rows), spec.join_k, block_slots):
        truth, retrieved = read(rows[outer])
        width, new = truth.positions.shape[1], None
        listed = np.unique(truth.positions[truth.positions >= 0]) if known is not None else np.empty(0, np.int64)
        if known is not None and len(listed):
            new = _NewItems(listed, ~_find_known(known, inputs.items.ids.take(pa.array(listed))))
        for inner in cut_blocks(len(truth.positions), width):
            true = Neighbors(truth.positions[inner], truth.scores[inner])
            if retrieved is None:
                lists = read_sampled_lists(snapshot, inputs, rows[outer][inner], inputs.metric, width)
            else:
                lists = SampledLists(retrieved.positions[inner], retrieved.scores[inner])
            parts.append(compare_lists(lists, true, inputs.items.vectors, new))
            first = outer.start + inner.start
            here = chosen[(chosen >= first) & (chosen < first + len(true.positions))]
            diagnosed.append(lists.positions[here - first])
    widest = max(lists.shape[1] for lists in diagnosed)
    padded = [
        np.pad(lists, ((0, 0), (0, widest - lists.shape[1])), constant_values=EMPTY_POSITION) for lists in diagnosed
    ]
    return concat_figures(parts), np.concatenate(padded)


@dataclass(frozen=True, slots=True)
class _NewItems:
    """Which of the true neighbors the earlier snapshot did not have."""

    positions: IntArray  # ascending
    is_new: npt.NDArray[np.bool_]

    def __call__(self, positions: IntArray) -> npt.NDArray[np.bool_]:
        """Return (n,) whether the items at these positions, true neighbors, are new."""
        found: npt.NDArray[np.bool_] = self.is_new[np.searchsorted(self.positions, positions)]
        return found


def choose_diagnosed(n: int) -> IntArray:
    """Return the rows, of n, of the lists that are compared with the truth under other metrics."""
    return np.linspace(0, n - 1, min(n, DIAGNOSED)).astype(np.int64)


def guess_metric(
    request: JoinRequest, resources: Resources, inputs: Inputs, rows: IntArray, lists: IntArray, recall: float
) -> str | None:
    """Return another metric under which the lists have clearly more recall, if recall is below the target; else None.

    rows: the diagnosed queries. lists: their item positions. recall: of all lists under the request's own metric.
    """
    if recall >= request.recall or not len(rows):
        return None
    queries = inputs.queries.vectors.take(rows)
    request = replace(request, k=lists.shape[1], constraints=request.constraints.without_min_score())
    recalls: dict[str, float] = {}
    for metric in Metric:
        truth = find_truth(inputs, rows, replace(request, metric=metric), resources)
        scores = rescore(queries, inputs.items.vectors, lists, metric).scores
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


def _new_item_recalls(figures: ListFigures, n: int, target: float) -> list[SliceRecall]:
    """Return the recall of items new since the last snapshot, and of all others, over the queries that need them."""
    recalls: list[SliceRecall] = []
    for value, first in (("new", 0), ("known", 2)):
        true_members, found = figures.new[:, first], figures.new[:, first + 1]
        rows = true_members > 0
        if rows.sum() >= FEWEST and figures.new[:, 0].any():
            per_sampled = n / len(rows)
            shares, best = found[rows] / true_members[rows], figures.best[rows]
            recalls.append(slice_recall("items", value, shares, best, per_sampled, target, n_slices=2))
    return recalls


def _find_kind(last: Snapshot, inputs: Inputs) -> Snapshot | None:
    """Return the earlier snapshot; None if its items have ids of another type."""
    kind = last.dataset("items").schema.field("id").type
    return last if pa.types.is_integer(kind) == pa.types.is_integer(inputs.items.ids.type) else None


def _find_known(last: Snapshot, ids: pa.Array) -> npt.NDArray[np.bool_]:
    """Return (n,) whether the earlier snapshot had the item of each of these ascending ids."""
    known = np.zeros(len(ids), np.bool_)
    for batch in last.dataset("items").to_batches(columns=["id"], use_threads=False):
        found = find_ascending(batch.column(0).cast(ids.type), ids)
        known[found[found >= 0]] = True
    return known


def _score_runners_up(spec: GeneratorSpec, inputs: Inputs, rows: IntArray) -> FloatArray:
    """Return the two best scores of some queries: lists of one candidate do not show whether the next one ties."""
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), RUNNERS_UP)).astype(np.int64)]
    request = JoinRequest(inputs.metric, 2, exclude_self=spec.exclude_self)
    return find_truth(inputs, some, request, Resources(1, RUNNERS_UP_BYTES)).scores
