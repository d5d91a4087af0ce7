"""What a run refuses before its join, in one place: `nearcast check` refuses the same, with the same words.

A run calls these on what it has ingested; a check on the ids and attributes alone, which `sketched_inputs` puts into a
folder that goes away. Whatever is new and can be refused without a join belongs here.
"""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.eligibility import request_time
from nearcast.engines.base import CAPS, MIN_SCORE, RULES, require_constraint_kinds
from nearcast.errors import SpecError
from nearcast.join.compile_constraints import check_constraints, check_spec_rules, rules_of
from nearcast.join.context import RunContext
from nearcast.join.inputs import Checked, InMemoryTables, Sources, open_sources
from nearcast.join.plan_overfetch import check_surplus, check_weights, estimate_survival, open_lookup_log
from nearcast.join.profile_inputs import profile_rules
from nearcast.join.rank import load_ranker, rank_settings, ranker_identity, score_pairs
from nearcast.join.run_plan import Plan, make_plan
from nearcast.join.score_terms import check_terms
from nearcast.join.select_candidates import stop_if_exposure_is_too_large
from nearcast.knn.scores import pair_scores
from nearcast.measure.list_quality import check_slice_type
from nearcast.sources.ingest import IngestedTable, Inputs, ingest_attributes, open_ingested_table
from nearcast.sources.matrix import RowState, lengths_and_states, to_matrix
from nearcast.sources.row_source import RowSource
from nearcast.sources.scan_rows import select_rows
from nearcast.stores import check_store_url
from nearcast.types import AnyArray, Metric

__all__ = ["check_columns", "check_ranker_on_pairs", "open_run", "refuse_out", "rule_shares", "sketched_inputs"]

TRIED_PAIRS = 4
NO_PLACE = (errno.ENOTDIR, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG)
SMALL_READ = 16 << 20


def open_run(run: RunContext, tables: InMemoryTables) -> tuple[Sources, Plan]:
    """Open the sources and plan the run. Raises for all that settings and schemas decide, before any row is read."""
    spec = run.spec
    _check_settings(run)
    with run.meter.stage("hash"):
        sources = open_sources(spec, run.workspace.base, run.listener, tables)
    check_spec_rules(spec, sources)
    for name in spec.measure.slices:
        if name in sources.queries.attribute_types:
            check_slice_type(name, sources.queries.attribute_types[name])
    ranker = ranker_identity(spec, run.workspace.base)
    sources = replace(sources, lookup_log=open_lookup_log(run))
    digests = sources.item_digests, sources.query_digests
    settings = run.settings.model_dump()
    return sources, make_plan(spec, run.engine.name, settings, *digests, ranker, sources.lookup_digests)


def refuse_out(out: Path) -> None:
    """Raise SpecError where no folder can be made below `out`, or below the nearest folder above it that is there."""
    there = out
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".nearcast-", dir=there))
    except OSError as error:
        if error.errno not in NO_PLACE:
            return  # such as a full disk, of which the estimate knows more
        why = error.strerror if there.is_dir() else "it is no folder"
        raise SpecError(
            f"out is {out}, and nothing can be written to {there}: {why}; set `out` to another folder"
        ) from None


def _check_settings(run: RunContext) -> None:
    """Refuse an engine that does not support what the spec asks for, a store of no known kind, a model that is none."""
    spec = run.spec
    rules = rules_of(spec)
    bound = len(rules) > len(request_time(rules))
    require_constraint_kinds(run.engine, {RULES: bound, CAPS: bool(spec.caps), MIN_SCORE: spec.min_score is not None})
    check_store_url(spec.publish.store)
    ranker = rank_settings(spec, run.workspace.base)
    if ranker is not None:
        load_ranker(ranker)


def check_columns(run: RunContext, inputs: Inputs) -> None:
    """Refuse values that the stages after the join could not take: traffic, survival; and memory that they lack."""
    check_weights(run, inputs)
    check_surplus(run, inputs)
    stop_if_exposure_is_too_large(run, inputs.queries.vectors.n)


def sketched_inputs(run: RunContext, checked: Checked, folder: Path) -> Inputs:
    """Ids and attributes of both sides in `folder`, or as an earlier run has ingested them; vectors are zeros.

    Raises for score terms, rules, caps and columns that a run would refuse.
    """

    def side(name: str) -> IngestedTable:
        seen = checked.item_scan if name == "items" else checked.query_scan
        if seen is None:
            return open_ingested_table(checked.item_folder if name == "items" else checked.query_folder)
        return ingest_attributes(seen, select_rows(seen, run.spec), folder / name, memory_bytes=run.read_bytes)

    items = side("items")
    same = checked.query_folder == checked.item_folder
    inputs = Inputs(items, items if same else side("queries"))
    estimate_survival(run.spec, inputs, checked.sources)
    check_terms(run, inputs)
    check_constraints(run, inputs)
    check_columns(run, inputs)
    return inputs


def rule_shares(run: RunContext, inputs: Inputs) -> dict[str, dict[str, Any]]:
    """By rule, the share of sampled pairs that it keeps, and of queries that it leaves nothing."""
    return profile_rules(run.spec, inputs)


def check_ranker_on_pairs(run: RunContext, sources: Sources, dim: int) -> None:
    """Ask the ranking model about a few real pairs; InputError or SpecError as the join would raise them."""
    settings = rank_settings(run.spec, run.workspace.base)
    if settings is None or run.spec.score.columns:  # score terms change the vectors that a model is given
        return
    queries, items = _first_rows(sources.queries, dim), _first_rows(sources.items, dim)
    n = min(len(queries[1]), len(items[1]))
    if n == 0:
        return
    scores = pair_scores(queries[1][:n], items[1][:n], Metric(run.spec.metric))
    columns: dict[str, pa.Array] = {
        "query_id": queries[0].column("id").combine_chunks()[:n],
        "item_id": items[0].column("id").combine_chunks()[:n],
        "score": pa.array(scores),
        "query_vector": _lists(queries[1][:n]),
        "item_vector": _lists(items[1][:n]),
    }
    for prefix, table in (("query", queries[0]), ("item", items[0])):
        for name in table.column_names[1:]:
            columns[f"{prefix}.{name}"] = table.column(name).combine_chunks()[:n]
    score_pairs(settings, pa.RecordBatch.from_pydict(columns))


def _lists(vectors: AnyArray) -> pa.Array:
    flat = np.ascontiguousarray(vectors, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def _first_rows(source: RowSource, dim: int) -> tuple[pa.Table, AnyArray]:
    """A few rows with usable vectors: "id" and the attributes, and the vectors."""
    for batch in source.batches(vectors=True, attributes=True, memory_bytes=SMALL_READ):
        matrix, states = to_matrix(batch.vectors, dim)
        usable = np.flatnonzero(lengths_and_states(matrix, states)[1] == RowState.GOOD)[:TRIED_PAIRS]
        rows = pa.array(usable)
        if len(usable):
            attributes = batch.attributes
            columns = {name: attributes.column(name).take(rows) for name in attributes.column_names}
            return pa.table({"id": batch.ids.take(rows), **columns}), matrix[usable]
    return pa.table({"id": pa.array([], source.id_type)}), np.empty((0, dim), np.float32)
