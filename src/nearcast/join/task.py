"""The tasks of a join: each joins a range of the queries with the items, a pure function from files to files.

Knows nothing of the later use of the results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.artifact_files import map_array
from nearcast.engines import ENGINES
from nearcast.engines.base import Index, IndexSpec, JoinRequest, Resources
from nearcast.files import finish, fresh_folder, is_done, verify
from nearcast.join.compile_constraints import open_constraints
from nearcast.join.context import RunContext
from nearcast.join.rank import RankSettings, rank_neighbors
from nearcast.join.run_plan import cut_queries
from nearcast.runners.local import LocalRunner
from nearcast.sources.ids import shared_positions
from nearcast.sources.ingest import IngestedTable, Inputs, open_ingested_table
from nearcast.types import IntArray, Metric, Neighbors, Progress

__all__ = [
    "JoinSettings",
    "JoinTask",
    "TaskResults",
    "do_task",
    "open_index",
    "open_shared_index",
    "read_lengths",
    "read_result",
    "run_tasks",
]


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """Settings that all tasks of a join share: plain values and paths, so that they can be sent to any worker."""

    items: Path
    queries: Path
    index: Path
    engine: str
    engine_settings: tuple[tuple[str, Any], ...]
    request: JoinRequest  # without constraints: a task opens them from their folder
    constraints: Path | None  # folder, see join.compile_constraints
    params: tuple[tuple[str, int], ...]  # search parameters
    rank: RankSettings | None
    resources: Resources


@dataclass(frozen=True, slots=True)
class JoinTask:
    """Queries start..stop-1 of a join, and the folder of their neighbors."""

    number: int
    start: int
    stop: int
    folder: Path
    settings: JoinSettings


@dataclass(frozen=True, slots=True)
class TaskResults:
    """All tasks of a join, done."""

    tasks: list[JoinTask]
    continued: int  # tasks that an earlier, interrupted run had done


def run_tasks(run: RunContext, settings: JoinSettings, inputs: Inputs, runner: LocalRunner) -> TaskResults:
    """Cut the queries into tasks, and run the tasks that are not done yet."""
    n = inputs.queries.vectors.n
    tasks = [
        JoinTask(number, start, stop, run.workspace.work / "tasks" / f"{number:06d}", settings)
        for number, (start, stop) in enumerate(cut_queries(n, inputs.queries.vectors.dim, run.spec.join_k))
    ]
    left = [task for task in tasks if not is_done(task.folder)]
    if len(left) < len(tasks):
        run.listener.note(f"{len(tasks) - len(left)} of {len(tasks)} tasks were done before: continuing")
    with run.meter.stage("join"):
        runner.run(
            lambda task: do_task(task, run.listener.progress),
            left,
            lambda task: run.listener.progress("join", task.stop, n),
        )
    open_index.cache_clear()  # the index may be large, and is not used after the join
    return TaskResults(tasks, len(tasks) - len(left))


def do_task(task: JoinTask, progress: Progress) -> None:
    """Find the neighbors of the task's queries; write them, then a manifest that marks the task as done."""
    common = task.settings
    queries = open_ingested_table(common.queries)
    index, items = open_shared_index(common)
    exclude = shared_positions(queries.ids[task.start : task.stop], items.ids) if common.request.exclude_self else None
    constraints = open_constraints(common.constraints).of_queries(slice(task.start, task.stop))
    request = replace(common.request, exclude=exclude, constraints=constraints)

    def report(stage: str, done: int, total: int) -> None:
        progress(stage, task.start + done, queries.vectors.n if total else 0)

    vectors = queries.vectors.read(task.start, task.stop)
    lists = index.join(vectors, request, dict(common.params), common.resources, report)
    fresh_folder(task.folder)
    if common.rank is not None:
        lists = rank_neighbors(common.rank, lists, queries, items, task.start, task.folder)
    np.save(task.folder / "positions.npy", lists.positions)
    np.save(task.folder / "scores.npy", lists.scores)
    finish(task.folder, {"start": task.start, "stop": task.stop})


@lru_cache(maxsize=1)
def open_index(
    items: Path, index: Path, engine: str, engine_settings: tuple[tuple[str, Any], ...], metric: Metric
) -> tuple[Index, IngestedTable]:
    """Open the index and its items, once per process rather than once per task."""
    table = open_ingested_table(items)
    if is_done(index):
        verify(index, contents=False)
    chosen = ENGINES[engine]
    settings = chosen.settings.model_validate(dict(engine_settings))
    return chosen.open(index, table.vectors, IndexSpec(metric, settings)), table


def open_shared_index(settings: JoinSettings) -> tuple[Index, IngestedTable]:
    """Open the index and the items of a join, once per process."""
    return open_index(
        settings.items, settings.index, settings.engine, settings.engine_settings, settings.request.metric
    )


def read_result(folder: Path) -> Neighbors:
    """Map the lists that `do_task` wrote."""
    return Neighbors(map_array(folder / "positions.npy"), map_array(folder / "scores.npy"))


def read_lengths(tasks: Sequence[JoinTask], n: int) -> IntArray:
    """Return (n,) the lengths of the lists of all queries, from the results of the tasks."""
    lengths = np.zeros(n, np.int64)
    for task in tasks:
        lengths[task.start : task.stop] = read_result(task.folder).lengths
    return lengths


def as_pairs(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return a mapping as a value that can be hashed and compared."""
    return tuple(sorted(values.items()))
