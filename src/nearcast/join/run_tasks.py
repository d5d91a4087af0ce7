"""The task functions of a run: each writes one artifact into an empty folder, from the plan and earlier artifacts.

    ingest -> prepare -> plan; other stages are in modules of their own

They return small facts, which later tasks and the driver read. The folder is committed by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.artifact_files import map_array
from nearcast.join.estimate import estimate_run, require_budget
from nearcast.join.ingest_stage import open_inputs, sweep_pieces
from nearcast.join.inputs import check_inputs, describe_inputs, ingest_inputs
from nearcast.join.plan_join import JoinPlan, make_run_request, plan_join
from nearcast.join.plan_overfetch import Survival, describe_log, estimate_survival, open_lookup_log
from nearcast.join.prepare_inputs import PreparedInputs, prepare_inputs
from nearcast.join.rank import check_ranker
from nearcast.join.run_mode import joins_in_full, read_base
from nearcast.join.shard_plan import ItemShards
from nearcast.join.task_context import TaskContext
from nearcast.knn.query_splits import cut_queries
from nearcast.sources.freed_memory import return_freed_memory
from nearcast.sources.ingest import IngestedTable, Inputs, open_ingested_table
from nearcast.sources.parquet_files import ParquetFiles
from nearcast.sources.user_files import changed_error
from nearcast.sources.validate_rows import Report, TableReport
from nearcast.types import Metric

__all__ = [
    "count_run_shards",
    "do_ingest",
    "do_plan",
    "do_prepare",
    "ingested_names",
    "joined_tables",
    "list_splits",
    "open_ingested",
    "open_plan",
    "open_prepared",
    "read_report",
]

SURVIVAL = "survival.npy"


def do_ingest(context: TaskContext, _args: Mapping[str, Any], _folder: Path) -> dict[str, Any]:
    """Check both tables, estimate the run, and ingest the tables into artifacts.

    Raises InputError for bad rows, BudgetError if the run does not fit.
    """
    run = context.run
    sources = open_inputs(context)
    with run.meter.stage("check"):
        checked = check_inputs(
            run.spec,
            sources,
            run.artifacts,
            settings=run.stage_settings,
            progress=run.listener.progress,
            checked=run.listener.checked,
        )
    return_freed_memory()
    with run.meter.stage("estimate"):
        estimate = estimate_run(run, checked, context.spec)
    require_budget(estimate, run)
    return_freed_memory()
    with run.meter.stage("read"):
        ingest_inputs(run.spec, checked, run.artifacts, memory_bytes=run.read_bytes, progress=run.listener.progress)
    swept = sweep_pieces(context)
    return {
        **{f"earlier {key}": value for key, value in swept.items()},
        "tables": [checked.item_name, checked.query_name],
        "report": checked.report.as_dict(),
        "inputs": describe_inputs(sources, checked.report, run.spec),
        "estimate": estimate.as_dict(),
    }


def do_prepare(context: TaskContext, _args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Apply score terms, compile the constraints, and estimate the survival of the items."""
    run = context.run
    ingested = open_ingested(context)
    survival = None
    if run.spec.overfetch is not None:
        with run.meter.stage("read"):
            survival = estimate_survival(run.spec, ingested, _open_planned_log(context))
    if survival is not None:
        np.save(folder / SURVIVAL, survival.rates)
    prepared = prepare_inputs(run, ingested, survival, context.spec)
    _note_passes(context, prepared)
    return {
        "tables": [prepared.inputs.items.fingerprint, prepared.inputs.queries.fingerprint],
        "metric": str(prepared.inputs.metric),
        "constraints": None if prepared.constraints is None else prepared.constraints.name,
        "survival": None if survival is None else survival.origin,
        "shards": None if prepared.shards is None else prepared.shards.as_dict(),
    }


def _note_passes(context: TaskContext, prepared: PreparedInputs) -> None:
    """Tell that the run joins in passes, if the spec did not ask for shards."""
    spec = context.spec
    if prepared.shards is None or spec.run.shards is not None or spec.run.shard_bytes is not None:
        return
    hint = "; other budgets may have other misses: run.shards fixes the number" if spec.recall < 1 else ""
    context.run.listener.note(
        f"the items with their index do not fit the memory budget: they are joined in {len(prepared.shards.ranges)} "
        f"passes{hint}"
    )


def _open_planned_log(context: TaskContext) -> ParquetFiles | None:
    """Open the look-up log that the run was planned for. Raises InputError if its files differ now."""
    log = open_lookup_log(context.run) if context.opened is None else context.opened.sources.lookup_log
    if log is not None and describe_log(log) != context.plan.parts["lookups"]:
        raise changed_error(log.name)
    return log


def do_plan(context: TaskContext, _args: Mapping[str, Any], _folder: Path) -> dict[str, Any]:
    """Build the index, and choose the search parameters; of updated lists, those of the join that found them."""
    if not joins_in_full(context):
        base = read_base(context)
        check_ranker(context.run.spec, context.run.workspace.model_base, context.plan)
        fixed: dict[str, Any] = {"index": "", "calibration": None, "shard_params": []}
        return {**fixed, "params": base["params"], "is_exact": base["is_exact"]}
    shards = range(count_run_shards(context))
    indexes = [context.read_facts(f"index/{shard:05d}") for shard in shards if len(shards) > 1]
    plan = plan_join(context.run, open_prepared(context), indexes)
    check_ranker(context.run.spec, context.run.workspace.model_base, context.plan)
    return {
        "index": plan.index,
        "params": dict(plan.params),
        "calibration": plan.calibration,
        "is_exact": plan.is_exact,
        "shard_params": [dict(params) for params in plan.shard_params],
    }


def list_splits(context: TaskContext) -> list[tuple[int, int]]:
    """Return the ranges of the queries that are joined by a task each: start and stop."""
    report = read_report(context)
    return cut_queries(report.queries.vectors, _joined_dim(context, report), context.run.spec.join_k)


def count_run_shards(context: TaskContext) -> int:
    """Return the number of item shards of the run."""
    shards = context.read_facts("prepare")["shards"]
    return 1 if shards is None else int(shards["count"])


def joined_tables(context: TaskContext) -> dict[str, str]:
    """Return the names of the artifacts that are joined: "items", and "queries" unless they are the items."""
    items, queries = context.read_facts("prepare")["tables"]
    return {"items": items} if items == queries else {"items": items, "queries": queries}


def read_report(context: TaskContext) -> Report:
    """Return the report of the inputs."""
    facts = context.read_facts("ingest")["report"]
    items = TableReport.from_dict(facts["items"])
    names = context.read_facts("ingest")["tables"]
    queries = items if names[0] == names[1] else TableReport.from_dict(facts["queries"])
    return Report(items, queries, ())


def open_prepared(context: TaskContext) -> PreparedInputs:
    """Open the tables and constraints of the join. They stay open for the next task."""

    def open_all() -> PreparedInputs:
        run, facts = context.run, context.read_facts("prepare")
        ingested = open_ingested(context)
        inputs = _open_inputs(context, facts["tables"], Metric(facts["metric"]))
        constraints = None if facts["constraints"] is None else run.artifacts.open(facts["constraints"])
        survival = None
        if facts["survival"] is not None:
            survival = Survival(np.asarray(map_array(run.results.open("prepare") / SURVIVAL)), facts["survival"])
        shards = None if facts["shards"] is None else ItemShards.from_dict(facts["shards"])
        return PreparedInputs(ingested, inputs, constraints, survival, shards)

    return context.keep("prepared", open_all)


def open_plan(context: TaskContext) -> JoinPlan:
    """Return the plan of the join. Its index stays in place for the next task."""

    def open_all() -> JoinPlan:
        run, prepared, facts = context.run, open_prepared(context), context.read_facts("plan")
        if run.engine.persists_index and prepared.shards is None and joins_in_full(context):
            run.artifacts.open(facts["index"])
        return JoinPlan(
            make_run_request(run, prepared),
            facts["index"],
            facts["params"],
            facts["calibration"],
            facts["is_exact"],
            tuple(facts["shard_params"]),
        )

    return context.keep("plan", open_all)


def _joined_dim(context: TaskContext, report: Report) -> int:
    """Return the dimension of the joined vectors: score terms may add a component."""
    return report.queries.dim + (1 if context.run.spec.score.add is not None else 0)


def ingested_names(context: TaskContext) -> tuple[str, str]:
    """Return the names of the artifacts of the ingested items and queries."""
    items, queries = context.read_facts("ingest")["tables"]
    return items, queries


def open_ingested(context: TaskContext) -> Inputs:
    """Open the tables without score terms."""
    return _open_inputs(context, list(ingested_names(context)), context.run.spec.metric)


def _open_inputs(context: TaskContext, names: list[str], metric: Metric) -> Inputs:
    def open_table(name: str) -> IngestedTable:
        return open_ingested_table(context.run.artifacts.open(name), context.run.artifacts.open)

    items = open_table(names[0])
    return Inputs(items, items if names[0] == names[1] else open_table(names[1]), metric)
