"""The stage `accept` of an incremental run: one task that accepts the updated lists, or has everything joined again.

Below a recall of 1 it measures them on the sample of the report, as the snapshot is measured later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.artifact_files import map_array
from nearcast.errors import BusyError
from nearcast.join.plan_join import draw_samples, find_sample_truth, hold_truth_lock
from nearcast.join.reserve_folders import read_reserve_folder
from nearcast.join.reserves import name_reserves, open_request, open_shape
from nearcast.join.run_mode import ACCEPT, COMPARE, begins_incremental, read_base
from nearcast.join.run_tasks import list_splits, open_prepared
from nearcast.join.task_context import TaskContext
from nearcast.knn.reserve_lists import cut_reserve
from nearcast.measure.recall import estimate_recall, recall_per_query
from nearcast.measure.truth_folders import update_state
from nearcast.runners.base import TaskCall

__all__ = ["do_accept", "list_accept_calls"]


def list_accept_calls(context: TaskContext) -> list[TaskCall]:
    """Return the call, if the run has updated lists."""
    return [TaskCall(ACCEPT, ACCEPT, {})] if begins_incremental(context) else []


def do_accept(context: TaskContext, _args: Mapping[str, Any], _folder: Path) -> dict[str, Any]:
    """Decide whether the updated lists are stored. Returns the reason if not, and how many were updated and joined."""
    ranges = [context.read_facts(f"stale/{number:06d}") for number in range(len(list_splits(context)))]
    damaged = [facts["damaged"] for facts in ranges if facts["damaged"]]
    if damaged:
        return {"reason": f"reserves of the last snapshot cannot be read: {damaged[0]}", "lists": None}
    joined = sum(facts["missing"] for facts in ranges)
    rows = sum(facts["stop"] - facts["start"] for facts in ranges)
    with context.run.meter.stage("measure"):
        _update_truth_state(context)
        reason = None if read_base(context)["is_exact"] else _refuse_recall(context)
    if reason is not None:
        context.run.listener.note(f"updated lists are refused, and all queries are joined again: {reason}")
    return {"reason": reason, "lists": {"updated": rows - joined, "joined": joined}}


def _update_truth_state(context: TaskContext) -> None:
    """Let the cache of exact neighbors know the items by the rows that have not changed: it need not hash them all."""
    run, items = context.run, open_prepared(context).inputs.items
    before = map_array(run.results.open(COMPARE) / "items" / "before.npy")
    if items.ranges is None:
        with contextlib.suppress(BusyError), hold_truth_lock(run.workspace.truths):
            update_state(run.workspace.truths, read_base(context)["tables"][0], items, before, run.listener.note)


def _refuse_recall(context: TaskContext) -> str | None:
    """Return how far the updated lists are below the recall target, None if they reach it."""
    run, inputs = context.run, open_prepared(context).inputs
    rows = draw_samples(run, inputs).report
    truth = find_sample_truth(run, open_request(context), inputs, rows, run.workspace.truths)
    name, scores = name_reserves(context, read_base(context)["name"]), []
    for number, (start, stop) in enumerate(list_splits(context)):
        first, last = np.searchsorted(rows, (start, stop))
        if first < last:
            reserve = read_reserve_folder(run.artifacts.open(f"{name}/{number:06d}"), rows[first:last] - start)
            scores.append(cut_reserve(reserve, open_shape(context)).scores)
    if not scores:
        return None
    recall = estimate_recall(recall_per_query(np.concatenate(scores), truth), inputs.queries.vectors.n)
    if recall.low >= run.spec.recall:
        return None
    return (
        f"recall of the updated lists is {recall.value:.4f} with a 95% interval from {recall.low:.4f}, and "
        f"{run.spec.recall:g} is promised"
    )
