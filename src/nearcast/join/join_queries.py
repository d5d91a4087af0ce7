"""The join of a range of the queries with the items, and the folder of its lists.

Knows nothing of the later use of the results.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from nearcast.join.context import RunContext
from nearcast.join.open_index import open_run_index
from nearcast.join.plan_join import JoinPlan
from nearcast.join.prepare_inputs import PreparedInputs
from nearcast.join.rank import make_rank_settings, rank_neighbors
from nearcast.sources.ids import shared_positions
from nearcast.types import Neighbors

__all__ = ["join_queries", "write_lists"]

PAIRS_SHARE = 4  # pairs of one call of a ranking model take so much of the memory, 1/n
PAIR_VALUE_BYTES = 16  # of a component of both vectors of a pair, twice


def join_queries(run: RunContext, prepared: PreparedInputs, plan: JoinPlan, rows: tuple[int, int]) -> Neighbors:
    """Find the neighbors of the queries at positions start..stop-1. rows: (start, stop)."""
    start, stop = rows
    queries = prepared.inputs.queries
    index, items = open_run_index(run, prepared.inputs.items, plan.index, plan.request.metric)
    exclude = shared_positions(queries.ids[start:stop], items.ids) if plan.request.exclude_self else None
    constraints = plan.request.constraints.of_queries(slice(start, stop))
    request = replace(plan.request, exclude=exclude, constraints=constraints)

    def report(stage: str, done: int, total: int) -> None:
        run.listener.progress(stage, start + done, queries.vectors.n if total else 0)

    return index.join(queries.vectors.read(start, stop), request, plan.params, run.resources, report)


def write_lists(run: RunContext, prepared: PreparedInputs, start: int, lists: Neighbors, folder: Path) -> None:
    """Write the lists of the queries from `start` on into `folder`; a ranking model, if there is one, orders them."""
    rank = make_rank_settings(run.spec, run.workspace.model_base)
    if rank is not None:
        items = prepared.inputs.items
        fitting = run.resources.memory_bytes // PAIRS_SHARE // (PAIR_VALUE_BYTES * items.vectors.dim)
        rank = replace(rank, batch=min(rank.batch, fitting))
        lists = rank_neighbors(rank, lists, prepared.inputs.queries, items, start, folder)
    np.save(folder / "positions.npy", lists.positions)
    np.save(folder / "scores.npy", lists.scores)
