"""One task of a join: a slice of the queries against the index. A pure function from files to files.

Knows nothing of runners, or of where the result goes next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.engines import ENGINES
from nearcast.engines.base import Effort, Index, Resources
from nearcast.files import finish, fresh_folder, is_done, verify
from nearcast.join.compile_constraints import open_constraints
from nearcast.join.rank import RankSettings, rank_neighbors
from nearcast.mapped import map_array
from nearcast.sources.ids import shared_positions
from nearcast.sources.ingest import IngestedTable, open_ingested_table
from nearcast.types import IntArray, Metric, Neighbors, Progress

__all__ = ["JoinSettings", "JoinTask", "do_task", "open_index", "read_result", "result_lengths"]


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """What all tasks of a join share. Plain values and paths, so that it can be sent anywhere."""

    items: Path
    queries: Path
    index: Path
    engine: str
    engine_settings: tuple[tuple[str, Any], ...]
    metric: Metric
    k: int
    effort: tuple[tuple[str, int], ...]
    exclude_self: bool
    constraints: Path | None  # folder, see join.constraints
    rank: RankSettings | None
    resources: Resources


@dataclass(frozen=True, slots=True)
class JoinTask:
    """Queries start..stop-1 of a join, and the folder where their neighbors go."""

    number: int
    start: int
    stop: int
    folder: Path
    settings: JoinSettings


def do_task(task: JoinTask, progress: Progress) -> None:
    """Find the neighbors of the task's queries, and write them with a manifest that says they are done."""
    common = task.settings
    queries = open_ingested_table(common.queries)
    index, items = open_index(common.items, common.index, common.engine, common.engine_settings, common.metric)
    exclude = shared_positions(queries.ids[task.start : task.stop], items.ids) if common.exclude_self else None

    def passed_on(stage: str, done: int, total: int) -> None:
        progress(stage, task.start + done, queries.vectors.n if total else 0)

    found = index.join(
        queries.vectors.read(task.start, task.stop),
        common.k,
        effort=dict(common.effort),
        exclude=exclude,
        constraints=open_constraints(common.constraints).of_queries(slice(task.start, task.stop)),
        resources=common.resources,
        progress=passed_on,
    )
    fresh_folder(task.folder)
    found = (
        found if common.rank is None else rank_neighbors(common.rank, found, queries, items, task.start, task.folder)
    )
    np.save(task.folder / "positions.npy", found.positions)
    np.save(task.folder / "scores.npy", found.scores)
    finish(task.folder, {"start": task.start, "stop": task.stop})


@lru_cache(maxsize=1)
def open_index(
    items: Path, index: Path, engine: str, engine_settings: tuple[tuple[str, Any], ...], metric: Metric
) -> tuple[Index, IngestedTable]:
    """The index and the items, opened once per process and not once per task."""
    side = open_ingested_table(items)
    if is_done(index):
        verify(index, contents=False)
    chosen = ENGINES[engine]
    settings = chosen.settings.model_validate(dict(engine_settings))
    return chosen.open(index, side.vectors, metric, settings), side


def read_result(folder: Path) -> Neighbors:
    """What `do_task` has written, mapped rather than read."""
    return Neighbors(map_array(folder / "positions.npy"), map_array(folder / "scores.npy"))


def result_lengths(tasks: Sequence[JoinTask], n: int) -> IntArray:
    """(n,) how long the lists of all queries are, from what the tasks have written."""
    lengths = np.zeros(n, np.int64)
    for task in tasks:
        lengths[task.start : task.stop] = read_result(task.folder).lengths
    return lengths


def as_pairs(values: Mapping[str, Any] | Effort) -> tuple[tuple[str, Any], ...]:
    """A mapping as a value that can be hashed and compared."""
    return tuple(sorted(values.items()))
