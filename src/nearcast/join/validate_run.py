"""Validation of a run before its join. `nearcast check` calls the same functions, and gives the same errors.

A run validates its ingested tables. A check validates ids and attributes alone, which `sketch_inputs` writes into a
temporary folder. Every error that needs no join belongs here.
"""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from nearcast.eligibility import request_time
from nearcast.engines.base import CAPS, MIN_SCORE, RULES, require_constraint_kinds
from nearcast.errors import SpecError
from nearcast.evaluation.judge_snapshot import open_labels
from nearcast.evaluation.label_table import open_label_table
from nearcast.join.compile_constraints import check_constraints, check_spec_rules, parse_rules
from nearcast.join.context import RunContext
from nearcast.join.inputs import Checked, InMemoryTables, Sources, keep_labels_apart, open_sources
from nearcast.join.plan_overfetch import check_overfetch, check_weights, estimate_survival, open_lookup_log
from nearcast.join.rank import identify_ranker, load_ranker, make_rank_settings, score_pairs
from nearcast.join.run_plan import RunPlan, make_plan
from nearcast.join.score_terms import check_score_terms
from nearcast.join.shard_plan import refuse_on_shards
from nearcast.knn.scores import pair_scores
from nearcast.measure.list_quality import check_slice_type
from nearcast.sources.ingest import IngestedTable, Inputs, open_ingested_table
from nearcast.sources.ingest_rows import ingest_staged
from nearcast.sources.matrix import RowState, compute_lengths, to_matrix
from nearcast.sources.row_source import RowSource
from nearcast.storage.artifacts import LocalArtifacts
from nearcast.storage.host_cache import HostCache
from nearcast.storage.locations import Location
from nearcast.stores import check_store_url
from nearcast.table.snapshot import open_home
from nearcast.types import AnyArray, Metric

__all__ = [
    "OpenedRun",
    "check_columns",
    "check_ranker_on_pairs",
    "open_run",
    "refuse_out",
    "sketch_inputs",
]

TRIAL_PAIRS = 4
NOT_WRITABLE = (errno.ENOTDIR, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG)
SMALL_READ = 16 << 20


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """The sources of a run, unread, and its plan."""

    sources: Sources
    plan: RunPlan


def open_run(run: RunContext, tables: InMemoryTables) -> OpenedRun:
    """Open the sources and plan the run. Raises all errors of settings and schemas, before any row is read."""
    spec = run.spec
    _check_settings(run)
    with run.meter.stage("hash"):
        sources = open_sources(spec, run.workspace.base, run.listener, tables)
    check_spec_rules(spec, sources)
    for name in spec.measure.slices:
        if name in sources.queries.attribute_types:
            check_slice_type(name, sources.queries.attribute_types[name])
    ranker = identify_ranker(spec, run.workspace.model_base)
    sources = replace(sources, lookup_log=open_lookup_log(run))
    _check_labels(run, sources)
    digests = sources.item_digests, sources.query_digests
    settings = run.settings.model_dump()
    plan = make_plan(spec, run.engine.name, settings, *digests, ranker, sources.lookup_digests)
    return OpenedRun(sources, plan)


def _check_labels(run: RunContext, sources: Sources) -> None:
    """Raise InputError for labels that cannot be opened, SpecError for labels that something learns from."""
    spec, base = run.spec, run.workspace.base
    if spec.labels is None:
        return
    open_labels(spec.labels, base, spec.query_source.columns)
    logs = {} if sources.lookup_log is None else {"overfetch.log": sources.lookup_log.digests()}
    if spec.labels.popularity is not None:
        logs["labels.popularity"] = open_label_table(spec.labels.popularity, base, "the log of popularity").digests()
    keep_labels_apart(spec, base, logs)


def refuse_out(out: Location, what: str = "out", *, works_here: bool = True) -> None:
    """Raise SpecError if no folder can be created in `out`, or in the nearest existing folder above it.

    Raises StorageError for a bucket that does not exist, cannot be reached, or can be overwritten under a condition,
    and for a cache of this host that cannot be written if a run with `out` in a bucket works here. what: the setting.
    """
    if not isinstance(out, Path):
        open_home(out).check_writable()
        if works_here:
            HostCache().check_writable()
        return
    existing = out
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".nearcast-", dir=existing))
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            return  # for example a full disk: the estimate checks that
        why = error.strerror if existing.is_dir() else "it is no folder"
        raise SpecError(
            f"{what} is {out}, and nothing can be written to {existing}: {why}; choose another folder"
        ) from None


def _check_settings(run: RunContext) -> None:
    """Raise SpecError for a constraint that the engine does not support, a store URL, or a model that does not load."""
    spec = run.spec
    rules = parse_rules(spec)
    bound = len(rules) > len(request_time(rules))
    require_constraint_kinds(run.engine, {RULES: bound, CAPS: bool(spec.caps), MIN_SCORE: spec.min_score is not None})
    if (spec.run.shards or 1) > 1:
        refuse_on_shards(spec)
    check_store_url(spec.publish.store)
    ranker = make_rank_settings(spec, run.workspace.model_base)
    if ranker is not None:
        load_ranker(ranker)


def check_columns(run: RunContext, inputs: Inputs) -> None:
    """Raise errors of the stages after the join: InputError for weights or groups."""
    check_weights(run, inputs)
    check_overfetch(run, inputs)


def sketch_inputs(run: RunContext, checked: Checked, folder: Path) -> Inputs:
    """Write ids and attributes of both tables into `folder`, with vectors of zeros, or open an earlier ingestion.

    Raises the errors of a run for score terms, rules, caps and columns.
    """

    def sketch_table(name: str) -> IngestedTable:
        staged = checked.staged_items if name == "items" else checked.staged_queries
        if staged is None:
            ingested = checked.item_name if name == "items" else checked.query_name
            return open_ingested_table(run.artifacts.open(ingested), run.artifacts.open)
        side = {"dim": staged.facts.dim, "dtype": staged.facts.dtype}
        return ingest_staged(staged, name, LocalArtifacts(folder), side, memory_bytes=run.read_bytes, table=name)

    items = sketch_table("items")
    same = checked.query_name == checked.item_name
    inputs = Inputs(items, items if same else sketch_table("queries"), run.spec.metric)
    estimate_survival(run.spec, inputs, checked.sources.lookup_log)
    check_score_terms(run.spec, inputs)
    check_constraints(run, inputs)
    check_columns(run, inputs)
    return inputs


def check_ranker_on_pairs(run: RunContext, sources: Sources, dim: int) -> None:
    """Score a few real pairs with the ranking model. Raises the InputError or SpecError that the join would raise."""
    settings = make_rank_settings(run.spec, run.workspace.model_base)
    if settings is None or run.spec.score.columns:  # score terms change the vectors of the model's pairs
        return
    queries, items = _read_first_rows(sources.queries, dim), _read_first_rows(sources.items, dim)
    n = min(len(queries[1]), len(items[1]))
    if n == 0:
        return
    scores = pair_scores(queries[1][:n], items[1][:n], Metric(run.spec.metric))
    columns: dict[str, pa.Array] = {
        "query_id": queries[0].column("id").combine_chunks()[:n],
        "item_id": items[0].column("id").combine_chunks()[:n],
        "score": pa.array(scores),
        "query_vector": _to_lists(queries[1][:n]),
        "item_vector": _to_lists(items[1][:n]),
    }
    for prefix, table in (("query", queries[0]), ("item", items[0])):
        for name in table.column_names[1:]:
            columns[f"{prefix}.{name}"] = table.column(name).combine_chunks()[:n]
    score_pairs(settings, pa.RecordBatch.from_pydict(columns))


def _to_lists(vectors: AnyArray) -> pa.Array:
    flat = np.ascontiguousarray(vectors, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def _read_first_rows(source: RowSource, dim: int) -> tuple[pa.Table, AnyArray]:
    """Read the first rows with good vectors: a table of "id" and attributes, and the vectors."""
    for batch in source.batches(vectors=True, attributes=True, memory_bytes=SMALL_READ):
        matrix, states = to_matrix(batch.vectors, dim)
        usable = np.flatnonzero(compute_lengths(matrix, states)[1] == RowState.GOOD)[:TRIAL_PAIRS]
        rows = pa.array(usable)
        if len(usable):
            attributes = batch.attributes
            columns = {name: attributes.column(name).take(rows) for name in attributes.column_names}
            return pa.table({"id": batch.ids.take(rows), **columns}), matrix[usable]
    return pa.table({"id": pa.array([], source.id_type)}), np.empty((0, dim), np.float32)
