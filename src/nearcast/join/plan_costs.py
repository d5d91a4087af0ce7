"""The cost table of a generator from its inputs: row counts of the files, and a short trial on the first items.

Reads file footers and one batch, never all rows, so that it takes seconds for any input. Rows that a check will drop
are counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from nearcast.engines import choose_engine
from nearcast.engines.base import EngineSettings, Estimate
from nearcast.errors import InputError
from nearcast.join.context import RunContext, prepare
from nearcast.join.cost_rates import CostRates
from nearcast.join.cost_table import CostTable, JobSizes, Prices, ShardCost, compute_costs
from nearcast.join.listener import Listener
from nearcast.join.passes import count_passes
from nearcast.sources.matrix import RowState, list_lengths, to_matrix
from nearcast.sources.open_source import open_source
from nearcast.sources.row_source import RowSource
from nearcast.spec import GeneratorSpec
from nearcast.types import AnyArray, ArrayVectors

__all__ = ["estimate_generator"]

TRIAL_ROWS = 65_536
TRIAL_BYTES = 64 << 20
VALUE_BYTES = 16  # of an id or attribute


def estimate_generator(
    spec: GeneratorSpec,
    base: Path,
    rates: CostRates,
    prices: Prices,
    *,
    workers: int,
    cores: int | None = None,
    listener: Listener | None = None,
) -> CostTable:
    """Return the cost table of a generator. Joins a few of its items with its engine, on this machine.

    cores: of a worker; default: threads of the spec, else the cores of this machine.
    Raises InputError if no item has a vector, and the errors of opening the inputs.
    """
    run = prepare(spec, base, listener or Listener())
    items = open_source(spec.items, base)
    queries = items if spec.queries is None else open_source(spec.queries, base)
    trial = _read_trial(items)
    sizes = JobSizes(
        n_items=max(1, items.n_rows),
        n_queries=max(1, queries.n_rows),
        dim=trial.dim,
        k=spec.join_k,
        recall=spec.recall,
        item_bytes=trial.dtype.itemsize,
        row_bytes=VALUE_BYTES * (1 + max(len(spec.items.columns), len(spec.query_source.columns))),
        workers=workers,
        cores=cores or run.resources.threads,
        calibration=spec.measure.calibration,
        sample=spec.measure.sample,
        selects=spec.overfetch is not None or spec.exposure is not None,
        scored=bool(spec.score.columns),
        self_join=queries is items,
    )
    sizes = replace(sizes, shards=_count_shards(run, sizes))
    return compute_costs(sizes, _cost_of_shard(run, sizes, trial), rates, prices)


def _count_shards(run: RunContext, sizes: JobSizes) -> int:
    """Return the shards that the spec sets, or as many as the memory of a worker needs."""
    settings = run.spec.run
    if settings.shards is not None:
        return settings.shards
    if settings.shard_bytes is not None:
        return max(1, -(-sizes.n_items * sizes.vector_bytes // settings.shard_bytes))
    memory = settings.worker_memory or run.meter.budget_bytes
    return count_passes(run.engine, run.settings, sizes.shape(), memory)


def _cost_of_shard(run: RunContext, sizes: JobSizes, trial: ArrayVectors) -> ShardCost:
    """Return the cost of a shard by trials of the engine and of the reference."""
    threads, pairs = run.resources.threads, float(sizes.n_queries) * sizes.n_items
    found = _estimate(run, sizes, trial)
    exact_sizes = replace(sizes, shards=1, recall=1.0)
    reference = choose_engine("exact")
    truth = reference.estimate(exact_sizes.shape(), trial, reference.settings(), run.resources)
    truth_seconds = truth.seconds["join"] * threads / pairs
    scan_seconds = truth_seconds
    if run.engine.exact:
        scan = run.engine.estimate(exact_sizes.shape(), trial, _plain_settings(run), run.resources)
        scan_seconds = scan.seconds["join"] * threads / pairs
    rows = -(-sizes.n_items // sizes.shards)
    return ShardCost(
        build_seconds=found.seconds.get("build", 0.0) * threads,
        join_seconds=found.seconds["join"] * threads,
        scan_seconds=scan_seconds,
        truth_seconds=truth_seconds,
        memory_bytes=found.memory_bytes,
        index_bytes=max(0, found.disk_bytes - rows * sizes.vector_bytes) if run.engine.persists_index else 0,
        held_bytes=found.mapped_bytes + found.working_bytes,
    )


def _estimate(run: RunContext, sizes: JobSizes, trial: ArrayVectors) -> Estimate:
    shape = sizes.shape()
    shape = replace(shape, request=replace(shape.request, metric=run.spec.metric))
    return run.engine.estimate(shape, trial, run.settings, run.resources)


def _plain_settings(run: RunContext) -> EngineSettings:
    return type(run.settings)()


def _read_trial(source: RowSource) -> ArrayVectors:
    """Read the first vectors of the most frequent dimension."""
    pieces: list[AnyArray] = []
    dim = 0
    for batch in source.batches(vectors=True, attributes=False, memory_bytes=TRIAL_BYTES):
        lengths = list_lengths(batch.vectors)
        counts = Counter(lengths[lengths > 0].tolist())
        if not dim and counts:
            dim = int(counts.most_common(1)[0][0])
        if dim:
            matrix, states = to_matrix(batch.vectors, dim)
            usable = (states == RowState.GOOD) & np.isfinite(matrix).all(axis=1)
            pieces.append(np.ascontiguousarray(matrix[usable]))
        if sum(len(piece) for piece in pieces) >= TRIAL_ROWS:
            break
    if not sum(len(piece) for piece in pieces):
        raise InputError(f"{source.name} has no row with a vector; `nearcast check` lists the problems of its rows")
    return ArrayVectors(np.concatenate(pieces)[:TRIAL_ROWS])
