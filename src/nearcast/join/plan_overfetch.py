"""Plan the over-fetch of a run: survival from an attribute or a log, list lengths, queries without enough survivors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nearcast.errors import BudgetError, InputError
from nearcast.join.context import RunContext
from nearcast.join.joined_lists import JoinedLists
from nearcast.measure.list_quality import read_weights
from nearcast.overfetch.budget import HullEdges, allocate_edges
from nearcast.overfetch.candidates_needed import OverfetchPlan, Shortage, compute_edges, evaluate_lengths, plan_lengths
from nearcast.overfetch.survival import learn_survival
from nearcast.overfetch.survival_log import open_log, read_counts
from nearcast.overfetch.survivor_probability import (
    CandidateSurvival,
    Float64Array,
    compute_group_survival,
    gather_survival,
)
from nearcast.sources.ingest import IngestedTable, Inputs, iterate_attributes
from nearcast.sources.parquet_files import ParquetFiles
from nearcast.spec import GeneratorSpec, OverfetchSpec
from nearcast.types import IntArray

__all__ = [
    "SHORT_FILE",
    "Planned",
    "Survival",
    "check_overfetch",
    "check_weights",
    "describe_log",
    "estimate_survival",
    "open_lookup_log",
    "plan_overfetch",
]

SHORT_FILE = "surplus/short.parquet"  # of a snapshot: the queries without enough survivors
QUERY_BYTES, ITEM_BYTES = 64, 24  # memory of a plan per query and item, at least
SAMPLED_QUANTILES = (0, 0.05, 0.5, 0.95, 1)


@dataclass(frozen=True, slots=True)
class Planned:
    """Planned lengths for all queries, with measures and facts for the manifest."""

    plan: OverfetchPlan
    measures: dict[str, float]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Survival:
    """The probability that each item is still eligible at look-up."""

    rates: Float64Array  # (items,)
    origin: dict[str, Any]  # for the manifest: the attribute, or the log and its counts


def open_lookup_log(run: RunContext) -> ParquetFiles | None:
    """Open the look-up log that survival is learned from; None if the spec names none."""
    overfetch = run.spec.overfetch
    if overfetch is None or overfetch.log is None:
        return None
    log = open_log(overfetch.log, run.workspace.base)
    log.tell(run.listener.note)
    return log


def estimate_survival(spec: GeneratorSpec, inputs: Inputs, lookup_log: ParquetFiles | None) -> Survival | None:
    """Estimate the survival of every item, from an attribute or the look-up log; None without over-fetch.

    Reads the log before the join, since logs grow. Raises InputError for a column or a log that holds no
    probabilities or outcomes.
    """
    overfetch = spec.overfetch
    if overfetch is None:
        return None
    if overfetch.survival is not None:
        return Survival(_read_survival(inputs, overfetch.survival), {"attribute": overfetch.survival})
    assert lookup_log is not None
    counts = read_counts(lookup_log, inputs.items.ids)
    groups = None if overfetch.smoothing_group is None else _group_by_column(inputs, overfetch.smoothing_group)
    learned = learn_survival(counts.survived, counts.seen, groups)
    origin = {name: value for name, value in asdict(learned).items() if name != "survival"}
    origin |= {"log": describe_log(lookup_log), "look_ups": int(counts.seen.sum()), "unknown": counts.unknown}
    return Survival(learned.survival, origin | {"unseen_items": int(np.count_nonzero(counts.seen == 0))})


def describe_log(log: ParquetFiles) -> list[dict[str, str]]:
    """Return names and hashes of the files of a look-up log."""
    return [{"name": digest["name"], "blake2b": digest["blake2b"]} for digest in log.digests()]


def check_weights(run: RunContext, inputs: Inputs) -> None:
    """Raise InputError if the weight of a query is not a number of at least 0."""
    name = run.spec.query_source.weight
    if name is None:
        return
    for block in iterate_attributes(inputs.queries, [name]):
        read_weights(name, block)


def check_overfetch(run: RunContext, inputs: Inputs) -> None:
    """Raise InputError if the column of correlated groups holds lists, BudgetError if a plan does not fit in memory."""
    spec = run.spec.overfetch
    if spec is not None:
        _require_memory(run, inputs)
    if spec is not None and spec.correlated_group is not None:
        _group_by_column(inputs, spec.correlated_group)


def _require_memory(run: RunContext, inputs: Inputs) -> None:
    """Raise BudgetError if the numbers that a plan holds of all queries and items at once do not fit in memory."""
    n, m = inputs.queries.vectors.n, inputs.items.vectors.n
    needed, available = (n * QUERY_BYTES + m * ITEM_BYTES) / 1e9, run.resources.memory_bytes / 1e9
    if needed > available:
        raise BudgetError(
            f"an over-fetch plan holds numbers of all {n:,} queries and {m:,} items at once, which takes at least "
            f"{needed:.1f} GB; the budget leaves {available:.1f} GB: raise `memory`, or store the same number for all "
            "queries (`k`, without [overfetch])"
        )


def plan_overfetch(run: RunContext, lists: JoinedLists, inputs: Inputs, survival: Survival, folder: Path) -> Planned:
    """Plan how many candidates each query stores; list the queries without enough survivors in `folder`."""
    spec = run.spec.overfetch
    assert spec is not None
    rates = survival.rates
    groups = None if spec.correlated_group is None else _group_by_column(inputs, spec.correlated_group)
    alive = None if groups is None else compute_group_survival(rates, groups)

    def survivals() -> Iterator[CandidateSurvival]:
        for part in lists.ranges:
            positions = lists.read(np.arange(part.start, part.stop)).positions[:, : run.spec.k]
            yield gather_survival(positions, rates, groups, alive)

    traffic = _read_traffic(run, inputs)
    plan = _plan_lengths(spec, survivals, traffic, inputs.queries.vectors.n)
    _write_short_queries(plan, inputs, folder / SHORT_FILE)
    slots, below = int(plan.lengths.sum()), plan.expected_below(traffic)
    if plan.n_short:
        run.listener.note(
            f"{plan.n_short:,} queries cannot have {spec.at_least} survivors with probability {spec.probability:g}; "
            f"{below:.2%} of requests are expected to end below; {SHORT_FILE} in the snapshot lists them"
        )
    measures = {"surplus_slots": slots, "surplus_short": plan.n_short, "surplus_below": below}
    return Planned(plan, measures, {"surplus": _plan_facts(plan) | {"survival": survival.origin}})


def _plan_lengths(
    spec: OverfetchSpec, survivals: Callable[[], Iterator[CandidateSurvival]], traffic: Float64Array | None, n: int
) -> OverfetchPlan:
    """Plan the fewest slots per query; with a limit of slots, share them out."""
    m, p = spec.at_least, spec.probability
    if n == 0:
        return OverfetchPlan(np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0, dtype=object))
    if spec.slots is None:
        return OverfetchPlan.concatenate([plan_lengths(survival, m, p) for survival in survivals()])
    least, edges, first = [], [], 0
    for survival in survivals():
        least.append(np.minimum(survival.lengths, m))
        edges.append(compute_edges(survival, m, least[-1], p, first_query=first))
        first += len(least[-1])
    all_edges = HullEdges.concatenate(edges)
    lengths = allocate_edges(
        all_edges if traffic is None else all_edges.scale(traffic), np.concatenate(least), int(spec.slots * n)
    )
    parts, first = [], 0
    for survival in survivals():
        part = lengths[first : first + len(survival.lengths)]
        parts.append(evaluate_lengths(survival, m, p, part))
        first += len(part)
    return OverfetchPlan.concatenate(parts)


def _read_survival(inputs: Inputs, name: str) -> Float64Array:
    """Read (items,) survival from an attribute. Raises InputError for values outside 0 to 1."""
    column = _read_column(inputs.items, name)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(f"overfetch.survival is a probability, and column {name!r} holds {column.type}")
    rates: Float64Array = pc.fill_null(column.cast(pa.float64(), safe=False), float("nan")).to_numpy()
    bad = np.flatnonzero(~((rates >= 0) & (rates <= 1)))
    if len(bad):
        item, value = inputs.items.ids[int(bad[0])].as_py(), column[int(bad[0])].as_py()
        raise InputError(
            f"column {name!r} holds {'null' if value is None else value} for item {item!r}, and "
            f"{len(bad) - 1:,} more are no probability; write numbers from 0 to 1"
        )
    return rates


def _group_by_column(inputs: Inputs, name: str) -> IntArray:
    """Return (items,) the group of each item by the value of an attribute, -1 for null."""
    values = _read_column(inputs.items, name).combine_chunks()
    if pa.types.is_nested(values.type):
        raise InputError(f"overfetch groups items by single values, and column {name!r} holds {values.type}")
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    groups: IntArray = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return groups


def _read_traffic(run: RunContext, inputs: Inputs) -> Float64Array | None:
    """Read (queries,) the weight of each query; None if the spec names no weight."""
    name = run.spec.query_source.weight
    if name is None:
        return None
    return np.concatenate([read_weights(name, block) for block in iterate_attributes(inputs.queries, [name])])


def _read_column(table: IngestedTable, name: str) -> pa.ChunkedArray:
    """Read one attribute of all vectors, without ids."""
    chunks = [block.column(name) for block in iterate_attributes(table, [name])]
    return pa.chunked_array([chunk for column in chunks for chunk in column.chunks], chunks[0].type)


def _write_short_queries(plan: OverfetchPlan, inputs: Inputs, path: Path) -> None:
    """Write the queries below the required probability, by id, with their reason and expected survivors."""
    path.parent.mkdir(parents=True)
    rows = np.flatnonzero(plan.is_short)
    columns = {
        "query_id": inputs.queries.ids.take(pa.array(rows)),
        "reason": pa.array([str(reason) for reason in plan.shortage[rows]], pa.string()),
        "stored": plan.lengths[rows].astype(np.int32),
        "expected_survivors": plan.expected[rows],
        "probability": plan.probabilities[rows],
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def _plan_facts(plan: OverfetchPlan) -> dict[str, Any]:
    """Return the facts of a plan for the manifest."""
    short = {str(reason): int(np.count_nonzero(plan.shortage == reason)) for reason in Shortage}
    if not len(plan.lengths):
        return {"lengths": {}, "short": short}
    lengths = np.quantile(plan.lengths, SAMPLED_QUANTILES, method="inverted_cdf")
    names = ("shortest", "p05", "median", "p95", "longest")
    return {"lengths": dict(zip(names, lengths.astype(int).tolist(), strict=True)), "short": short}
