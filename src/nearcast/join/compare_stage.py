"""The stage `compare` of an incremental run: one task that finds what changed since the last snapshot, or why all
queries are joined again.

It reads the tables that the last snapshot was made of, and the record of its reserves. Costs are pairs of an exact
join, so that the decision is the same on every machine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nearcast.artifact_files import map_array
from nearcast.eligibility import collect_columns
from nearcast.engines.base import JoinShape
from nearcast.errors import DamagedError, NotFoundError
from nearcast.join.compile_constraints import parse_rules
from nearcast.join.earlier_index import move_index
from nearcast.join.reserves import decide_lists, open_request, open_shape
from nearcast.join.run_mode import COMPARE
from nearcast.join.run_plan import describe_changes
from nearcast.join.run_tasks import open_prepared
from nearcast.join.shard_plan import has_near_duplicate_caps
from nearcast.join.task_context import TaskContext
from nearcast.runners.base import TaskCall
from nearcast.sources.ingest import IngestedTable, Inputs, list_attributes, open_ingested_table, read_attributes
from nearcast.sources.unchanged_rows import RowChanges, match_rows
from nearcast.table.snapshot import Snapshot, list_snapshots
from nearcast.times import parse_utc

__all__ = ["do_compare", "list_compare_calls"]

DAY_SECONDS = 86_400.0
EARLY_DAYS = 0.5  # a run of every night starts a little earlier or later
MOST_COST = (
    0.7  # of a full join: comparing tables and writing reserves takes a tenth of one beside (packages, recall 0.95)
)


def list_compare_calls(context: TaskContext) -> list[TaskCall]:
    """Return the call of an incremental run."""
    return [TaskCall(COMPARE, COMPARE, {})] if context.run.spec.run.incremental else []


def do_compare(context: TaskContext, _args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Find the changes of both tables since the last snapshot; write the positions of the rows that are the same.

    Returns the record of the last reserves, counts, and the reason if all queries are joined with all items.
    """
    with context.run.meter.stage("join"):
        snapshots = list_snapshots(context.run.workspace.out, context.run.spec.name)
        reason = _refuse_snapshot(context, snapshots[-1] if snapshots else None)
        if reason is not None:
            return {"reason": reason, "base": None, "changes": None}
        base = dict(snapshots[-1].manifest.run.reserves or {})
        try:
            changes, reason = _find_changes(context, base, folder)
        except (NotFoundError, DamagedError) as error:
            changes, reason = None, f"tables of the last snapshot cannot be read: {error}"
    found = None if changes is None else {table: asdict(rows) for table, rows in changes.items()}
    return {"reason": reason, "base": base, "changes": found}


def _refuse_snapshot(context: TaskContext, last: Snapshot | None) -> str | None:
    """Return why the lists of a snapshot cannot be updated, None if they can."""
    run = context.run
    if last is None:
        return "there is no earlier snapshot"
    base = last.manifest.run.reserves
    if base is None:
        return f"snapshot {last.name} was made without run.incremental, and has no reserves"
    if not last.manifest.target.met:
        return f"snapshot {last.name} is below its recall target"
    if has_near_duplicate_caps(run.spec):
        return "a cap with near_duplicate_cosine groups all items anew"
    changes = list(describe_changes(base["decided_by"], decide_lists(context.plan)))
    if changes:
        return f"settings changed: {'; '.join(change.replace('decided_by.', '') for change in changes)}"
    age = (time.time() - parse_utc(base["full"])) / DAY_SECONDS
    if age + EARLY_DAYS < 0:
        return f"the last full join is dated {base['full']}, which is in the future"
    if age + EARLY_DAYS >= run.spec.run.full_every:
        return f"the last full join was at {base['full']}, and run.full_every is {run.spec.run.full_every} days"
    return None


def _find_changes(
    context: TaskContext, base: Mapping[str, Any], folder: Path
) -> tuple[dict[str, RowChanges] | None, str | None]:
    """Compare the tables with those of the last snapshot. Return the changes, and why all is joined again."""
    inputs, shape = open_prepared(context).inputs, open_shape(context)
    if json.loads(json.dumps(asdict(shape))) != base["shape"]:
        return None, "reserves have another width"
    artifacts = context.run.artifacts

    def open_table(name: str) -> IngestedTable:
        return open_ingested_table(artifacts.open(name), artifacts.open)

    names = base["tables"]
    items = open_table(names[0])
    old = Inputs(items, items if names[0] == names[1] else open_table(names[1]), inputs.metric)
    columns = _list_columns(context)
    pairs = {"items": (old.items, inputs.items), "queries": (old.queries, inputs.queries)}
    changes = {}
    for table, (before, now) in pairs.items():
        reason = _refuse_table(table, before, now, columns[table])
        if reason is not None:
            return None, reason
        (folder / table).mkdir()
        changes[table] = match_rows(before, now, columns[table], folder / table)
    reason = _refuse_cost(context, base, changes, old.items.vectors.n)
    if reason is None:
        move_index(context, base, map_array(folder / "items" / "now.npy"))
    return changes, reason


def _list_columns(context: TaskContext) -> dict[str, list[str]]:
    """Return the attributes of each table that the rules and caps read. Score terms are in the vectors."""
    spec = context.run.spec
    item_columns, query_columns, _ = collect_columns(parse_rules(spec))
    caps = [cap.by for cap in spec.caps if cap.by is not None]
    return {"items": list(dict.fromkeys([*item_columns, *caps])), "queries": list(query_columns)}


def _refuse_table(table: str, old: IngestedTable, new: IngestedTable, columns: Sequence[str]) -> str | None:
    """Return why two tables cannot be compared, None if they can."""
    if old.vectors.n == 0 or new.vectors.n == 0:
        return f"{table} are empty"
    kinds = [f"{each.vectors.dtype} vectors of {each.vectors.dim} and {each.ids.type} ids" for each in (old, new)]
    if kinds[0] != kinds[1]:
        return f"{table} had {kinds[0]}, and have {kinds[1]}"
    missing = [name for name in columns if name not in list_attributes(old)]
    if missing:
        return f"{table} had no attribute {missing[0]}"
    if not columns:
        return None
    before, now = (read_attributes(each, columns, 0, 1).schema.remove_metadata() for each in (old, new))
    if before != now:
        return f"attributes of {table} have other types"
    return None


def _refuse_cost(
    context: TaskContext, base: Mapping[str, Any], changes: Mapping[str, RowChanges], n_old_items: int
) -> str | None:
    """Return why a full join costs less, None if it costs more. A pruned join stays pruned (see `fresh_items`)."""
    shape = open_shape(context)
    run, inputs, request = context.run, open_prepared(context).inputs, open_request(context)
    items, queries = changes["items"], changes["queries"]
    vectors = inputs.items.vectors
    join_shape = JoinShape(request, vectors.n, queries.rows, vectors.dim, vectors.dtype.itemsize)
    work = run.engine.count_pairs(join_shape)
    full, scanned = sum(work.values()), 1.0  # share of the pairs that a join of few queries with all items scans
    lost = shape.width * (items.gone + items.changed) / n_old_items
    unchanged = queries.rows - queries.fresh
    short = unchanged * _normal_tail((shape.width - shape.k - lost) / math.sqrt(max(lost, 1e-9)))
    fresh = float(items.fresh) * unchanged
    if not base["is_exact"] and run.engine.exact:
        fresh = sum(run.engine.count_pairs(replace(join_shape, n_items=items.fresh)).values())
        if base.get("index") is not None:
            scanned = work["join"] / (float(queries.rows) * vectors.n)
    cost = fresh + (queries.fresh + short) * scanned * vectors.n
    if cost <= MOST_COST * full:
        return None
    return (
        f"too much changed: {items.fresh + items.gone:,} of {items.rows:,} items and {queries.fresh:,} of "
        f"{queries.rows:,} queries, which costs about {cost / full:.0%} of a full join"
    )


def _normal_tail(deviations: float) -> float:
    """Return the probability that a normal variable exceeds its mean by so many standard deviations."""
    return 0.5 * math.erfc(deviations / math.sqrt(2))
