"""The stage `choose`: one task that applies an exposure cap and an over-fetch plan to the lists of the whole join.

It needs the lists, or some numbers, of all queries: what does not fit the memory is in files. Runs without a cap and a
plan have no such task.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nearcast.join.join_tasks import list_join_calls
from nearcast.join.joined_lists import JoinedLists, ListRange
from nearcast.join.renew_tasks import list_renew_calls
from nearcast.join.run_mode import joins_in_full
from nearcast.join.run_tasks import open_prepared
from nearcast.join.select_candidates import SelectedLists, open_selected, select_lists
from nearcast.join.shard_tasks import list_merge_calls
from nearcast.join.task_context import TaskContext
from nearcast.runners.base import TaskCall

__all__ = ["do_choose", "list_choose_calls", "open_lists"]


def list_choose_calls(context: TaskContext) -> list[TaskCall]:
    """Return the call, if the run selects from its lists."""
    spec = context.run.spec
    return [] if spec.exposure is None and spec.overfetch is None else [TaskCall("choose", "choose", {})]


def do_choose(context: TaskContext, _args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Select the lists to store."""
    prepared = open_prepared(context)
    with context.run.meter.stage("choose"):
        return select_lists(context.run, _find_joined(context), prepared.inputs, prepared.survival, folder)


def open_lists(context: TaskContext) -> SelectedLists:
    """Open the lists to store, and those of the join."""

    def open_all() -> SelectedLists:
        if not list_choose_calls(context):
            return open_selected(_find_joined(context), None, {}, context.run.spec.k)
        folder, facts = context.run.results.open("choose"), context.read_facts("choose")
        return open_selected(_find_joined(context), folder, facts, context.run.spec.k)

    return context.keep("lists", open_all)


def _find_joined(context: TaskContext) -> JoinedLists:
    """Return the lists of the join, which its results hold; none is opened."""
    spec, results = context.run.spec, context.run.results
    in_full = joins_in_full(context)
    calls = list_merge_calls(context) or list_join_calls(context) if in_full else list_renew_calls(context)
    ranges = [ListRange(call.args["start"], call.args["stop"], partial(results.open, call.name)) for call in calls]
    return JoinedLists(tuple(ranges), spec.k if spec.rank is not None else spec.join_k)
