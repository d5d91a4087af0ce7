"""How good the lists of a snapshot are, on sampled queries: recall at several depths and by slice, regret, copies.

Recall is a fact here, not a hope: the lists are read from the snapshot's files, and the truth is the referee's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.engines.base import Resources
from nearcast.errors import InputError
from nearcast.knn.constraints import FREE, Constraints
from nearcast.knn.scores import rescore
from nearcast.measure.drift import repeat_share
from nearcast.measure.recall import estimate_recall, recall_at, recall_per_query, regret_per_query
from nearcast.measure.sampled_recall import SampledLists, sampled_lists, truth_of
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
from nearcast.parquet import open_dataset
from nearcast.sources.attribute_columns import rows_of
from nearcast.sources.ids import positions_of
from nearcast.sources.ingest import Inputs
from nearcast.spec import GeneratorSpec
from nearcast.table.snapshot import Snapshot
from nearcast.types import FloatArray, IntArray, Metric, Neighbors, no_progress

__all__ = ["Asked", "Quality", "likely_metric", "measure_quality", "refuse_slices_of", "weights_of"]

DEPTHS = (1, 10)  # beside k
WORST = 20  # queries that are named, for people to look into
DIAGNOSED = 200  # queries that are held against the truth under other metrics
RUNNERS_UP, RUNNERS_UP_BYTES = 50, 256 << 20  # queries of lists of one whose second best is found, and memory for it
LIKELIER = 0.1  # so much more recall under another metric is no chance

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quality:
    """What the sampled lists show."""

    measures: dict[str, float]
    slices: list[SliceRecall]
    lists: SampledLists
    worst: list[dict[str, Any]]  # sampled queries with the lowest recall, the lowest first: query, recall
    ties: str | None  # a warning where scores cannot tell items apart


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of a join, as far as its truth depends on it."""

    metric: Metric
    recall: float
    exclude_self: bool
    resources: Resources
    constraints: Constraints = FREE


def measure_quality(
    spec: GeneratorSpec,
    snapshot: Snapshot,
    inputs: Inputs,
    rows: IntArray,
    truth: Neighbors,
    last: Snapshot | None,
    retrieved: SampledLists | None = None,
) -> Quality:
    """Hold the lists of the queries at these positions against their true neighbors.

    retrieved: what the join found, where a model has ranked it since: the model owes nobody the nearest.

    Raises InputError for a weight that is no number of 0 or more, or an attribute that queries cannot be sliced by.
    """
    metric = Metric(spec.metric)
    width = truth.positions.shape[1]
    lists = retrieved or sampled_lists(snapshot, inputs.items, inputs.queries, rows, metric, width)
    columns = _columns(spec, inputs, rows)
    weights = None if spec.query_source.weight is None else weights_of(spec.query_source.weight, columns)
    shares = recall_per_query(lists.scores, truth)
    n = inputs.queries.vectors.n
    measures = _intervals("recall", shares, n) | {"recall_sample": len(rows)}
    for depth in (d for d in DEPTHS if d < width):
        measures |= _intervals(f"recall_at_{depth}", recall_at(lists.scores, truth, depth), n)
    if weights is not None:
        measures |= _intervals("recall_by_traffic", shares, n, weights)
    measures["score_regret"] = float(regret_per_query(lists.scores, truth).mean()) if len(rows) else 0.0
    measures["repeats"] = _repeats(lists, inputs)
    scores = lists.scores if spec.k > 1 else _with_runners_up(spec, inputs, rows)
    measures["score_ties"] = tied_share(scores)
    slices = list(_slices(spec, inputs, rows, columns, weights))
    best = lists.scores[:, 0] if lists.scores.shape[1] else np.full(len(rows), -np.inf)
    found = slice_recalls(slices, shares, best.astype(np.float64), n, spec.recall)
    if last is not None:
        found += _new_items(inputs, last, lists, truth, n, spec.recall)
    worst = _worst(shares, inputs.queries.ids.take(pa.array(rows)))
    ties = tie_warning(measures["score_ties"], scores, metric, measures["repeats"])
    return Quality(measures, found, lists, worst, ties)


def likely_metric(asked: Asked, inputs: Inputs, rows: IntArray, lists: SampledLists, recall: float) -> str | None:
    """The metric that the lists look like they were made for, where recall is below what was asked; else None."""
    if recall >= asked.recall or not len(rows):
        return None
    some = np.linspace(0, len(rows) - 1, min(len(rows), DIAGNOSED)).astype(np.int64)
    found: dict[str, float] = {}
    for metric in Metric:
        truth = truth_of(
            inputs.items,
            inputs.queries,
            rows[some],
            lists.positions.shape[1],
            metric,
            exclude_self=asked.exclude_self,
            resources=asked.resources,
            progress=no_progress,
            constraints=replace(asked.constraints, min_score=None),
        )
        queries = inputs.queries.vectors.take(rows[some])
        scores = rescore(queries, inputs.items.vectors, lists.positions[some], metric).scores
        found[str(metric)] = float(recall_per_query(scores, truth).mean())
    best = max(found, key=lambda name: found[name])
    return best if found[best] >= found[str(asked.metric)] + LIKELIER else None


def _intervals(name: str, shares: Float64Array, n: int, weights: Float64Array | None = None) -> dict[str, float]:
    found = estimate_recall(shares, n, weights)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _columns(spec: GeneratorSpec, inputs: Inputs, rows: IntArray) -> pa.Table | None:
    """The columns of the sampled queries by which recall is told, in their order; None where there are none."""
    weight = spec.query_source.weight
    names = list(dict.fromkeys((*spec.measure.slices, *((weight,) if weight else ()))))
    return rows_of(inputs.queries.attributes, inputs.queries.ids.take(pa.array(rows)), names) if names else None


def _worst(shares: Float64Array, ids: pa.Array) -> list[dict[str, Any]]:
    """The queries that miss most of their true neighbors; none that misses nothing. Ties go to the first."""
    places = np.argsort(shares, kind="stable")[:WORST]
    return [{"query": ids[int(p)].as_py(), "recall": round(float(shares[p]), 6)} for p in places if shares[p] < 1.0]


def weights_of(name: str, columns: pa.Table | None) -> Float64Array:
    """(rows,) the traffic of queries, from a column of theirs; InputError for what is no number of 0 or more."""
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


def _slices(
    spec: GeneratorSpec, inputs: Inputs, rows: IntArray, columns: pa.Table | None, weights: Float64Array | None
) -> Iterator[Slice]:
    for name in spec.measure.slices:
        assert columns is not None
        yield from _attribute_slices(name, columns.column(name))
    if weights is not None:
        yield from traffic_slices(weights)
    yield from rare_slices(np.asarray(inputs.queries.vectors.take(rows), np.float32), spec.seed)


def refuse_slices_of(name: str, kind: pa.DataType) -> None:
    """Raise InputError for a column of this type in `measure.slices`, of which no slices can be made."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_nested(plain) or pa.types.is_binary(plain):
        raise InputError(
            f"measure.slices names {name!r}, a column of {kind}: slices are made of single values; "
            "add a column with one value a query"
        )


def _attribute_slices(name: str, column: pa.ChunkedArray) -> Iterator[Slice]:
    """A slice per value, or per quarter of a number with many values."""
    refuse_slices_of(name, column.type)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.combine_chunks().dictionary_encode()
    labels = [str(value) for value in encoded.dictionary.to_pylist()]
    if len(labels) > MOST_VALUES and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        numbers = column.cast(pa.float64(), safe=False)
        yield from quarter_slices(name, pc.fill_null(numbers, float("nan")).to_numpy())
    else:
        yield from value_slices(name, pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64), labels)


def _new_items(
    inputs: Inputs, last: Snapshot, lists: SampledLists, truth: Neighbors, n: int, promise: float
) -> list[SliceRecall]:
    """Recall of items that the last snapshot did not have, and of those it had, over the queries that want one."""
    wanted = np.unique(truth.positions[truth.positions >= 0])
    ids = inputs.items.ids.take(pa.array(wanted))
    dataset = open_dataset(last.folder / "items")
    kind = dataset.schema.field("id").type
    if pa.types.is_integer(kind) != pa.types.is_integer(ids.type) or not len(wanted):
        return []
    known = dataset.to_table(columns=["id"], filter=pc.field("id").isin(ids.cast(kind)), use_threads=False)
    new = np.zeros(inputs.items.vectors.n, np.bool_)
    new[wanted[positions_of(ids.cast(kind), known.column("id").combine_chunks()) < 0]] = True
    hits = _hits(lists, truth)
    found: list[SliceRecall] = []
    for value, members in (("new", new), ("known", ~new)):
        asked = (truth.positions >= 0) & members[np.maximum(truth.positions, 0)]
        wanting = asked.any(axis=1)
        if wanting.sum() >= FEWEST and new.any():
            shares = (hits & asked).sum(axis=1)[wanting] / asked.sum(axis=1)[wanting]
            best = lists.scores[wanting, 0].astype(np.float64)
            per_sampled = n / len(lists.scores)
            found.append(slice_recall("items", value, shares, best, per_sampled, promise, n_slices=2))
    return found


def _hits(lists: SampledLists, truth: Neighbors) -> npt.NDArray[np.bool_]:
    """(n, k) which true neighbors were found; one that ties with the last of them may stand in for another."""
    n_items = int(max(lists.positions.max(initial=0), truth.positions.max(initial=0))) + 1
    row = np.arange(len(truth.positions))[:, None] * n_items
    there = np.isin(row + truth.positions, (row + lists.positions)[lists.positions >= 0])
    last = np.take_along_axis(truth.scores, np.maximum(truth.lengths - 1, 0)[:, None], 1)
    tied = (truth.scores == last) & (recall_per_query(lists.scores, truth) == 1.0)[:, None]
    hits: npt.NDArray[np.bool_] = (there | tied) & (truth.positions >= 0)
    return hits


def _with_runners_up(spec: GeneratorSpec, inputs: Inputs, rows: IntArray) -> FloatArray:
    """Return the two best scores of some queries: lists of one candidate do not show whether the next one ties."""
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), RUNNERS_UP)).astype(np.int64)]
    return truth_of(
        inputs.items,
        inputs.queries,
        some,
        2,
        Metric(spec.metric),
        exclude_self=spec.exclude_self,
        resources=Resources(1, RUNNERS_UP_BYTES),
        progress=no_progress,
    ).scores


def _repeats(lists: SampledLists, inputs: Inputs) -> float:
    seen = np.unique(lists.positions[lists.positions >= 0])
    vectors = np.asarray(inputs.items.vectors.take(seen))
    return repeat_share(lists.positions, lists.scores, vectors, seen)
