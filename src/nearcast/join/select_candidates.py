"""The lists that are stored, selected from the lists of the join: exposure cap, planned over-fetch.

Also the effects on later stages: which lists count as short, and the true list of a query. The items that an
exposure cap has filled up are stored with the snapshot, for `explain`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.errors import BudgetError
from nearcast.files import fresh_folder
from nearcast.join.context import RunContext
from nearcast.join.plan_overfetch import Survival, plan_overfetch
from nearcast.join.short_lists import CODES
from nearcast.join.task import JoinTask, read_lengths, read_result
from nearcast.knn.exposure import AdmissionThresholds, CappedLists, cap_exposure, find_admitted
from nearcast.knn.topk import cut_lists
from nearcast.overfetch.candidates_needed import OverfetchPlan
from nearcast.sources.ids import find_positions
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.table.candidate_schema import Reason
from nearcast.table.snapshot import Snapshot
from nearcast.types import EMPTY_POSITION, IntArray, Neighbors

__all__ = [
    "FULL_FILE",
    "SCRATCH",
    "CodeArray",
    "SelectedLists",
    "read_full_items",
    "require_exposure_memory",
    "select_lists",
    "write_full_items",
]

EXPOSURE = "exposure"  # the part of a snapshot with an exposure cap
FULL_FILE = "full.parquet"
SCRATCH = "selected-lists"  # folder that the caller removes after the last use of the lists
CAP_BYTES = 48  # memory per candidate while exposure is capped: read, sorted, selected

CodeArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SelectedLists:
    """The lists that are stored, and the lists of the join that they are selected from."""

    joined: list[JoinTask]
    stored: list[JoinTask]  # k wide; rows are cut to `lengths`
    plan: OverfetchPlan | None = None  # of the over-fetch
    thresholds: AdmissionThresholds | None = None  # of the exposure cap
    measures: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> IntArray | None:
        """(queries,) number of candidates to store per query; None for all."""
        return None if self.plan is None else self.plan.lengths

    def reason_codes(self, codes: CodeArray, k: int) -> CodeArray:
        """Derive the reason codes of stored lists from those of joined lists. A list as long as planned has none."""
        if self.thresholds is not None:
            joined, stored = (read_lengths(tasks, len(codes)) for tasks in (self.joined, self.stored))
            codes = np.where(stored < np.minimum(joined, k), CODES.index(Reason.CAPPED), codes).astype(np.uint8)
        if self.plan is not None:
            stored = read_lengths(self.stored, len(codes))
            is_short = (self.plan.shortage != None) & (self.plan.lengths == stored)  # noqa: E711  (element by element)
            codes = np.where(is_short, codes, 0).astype(np.uint8)
        return codes

    def measure(self, codes: CodeArray, n_rows: int, k: int) -> dict[str, float]:
        """Return the measures of the selection. Fill counts against planned lengths, or k where a plan falls short."""
        if self.plan is None:
            return self.measures
        targets = np.where(codes > 0, k, self.plan.lengths)
        without_vector = n_rows - len(codes)
        filled = int(self.plan.lengths.sum())
        short = int(np.count_nonzero(codes)) + without_vector
        fill_rate = filled / max(1, int(targets.sum()) + without_vector * k)
        return self.measures | {"fill_rate": fill_rate, "short_lists": short}

    def derive_truth(self, truth: Neighbors, rows: IntArray, k: int) -> Neighbors:
        """Return the lists that these queries should store, from their exact neighbors among all items.

        Under an exposure cap: the best k items whose threshold the score reaches. With over-fetch: as many as planned.
        """
        if self.thresholds is not None:
            truth = _take_first(truth, find_admitted(truth.positions, truth.scores, rows, self.thresholds), k)
        return truth if self.plan is None else cut_lists(truth, self.plan.lengths[rows])


def select_lists(
    run: RunContext, tasks: list[JoinTask], inputs: Inputs, survival: Survival | None, folder: Path
) -> SelectedLists:
    """Apply the exposure cap and the over-fetch plan to the lists of the tasks.

    Writes the filled-up items, and the queries without enough survivors, into the snapshot's folder; and the lists of
    an exposure cap into its folder SCRATCH, which the caller removes.
    """
    if run.spec.exposure is None and survival is None:
        return SelectedLists(tasks, tasks)
    with run.meter.stage("choose"):
        lists = SelectedLists(tasks, tasks)
        if run.spec.exposure is not None:
            lists, thresholds = _apply_exposure_cap(run, tasks, inputs, folder)
            write_full_items(thresholds, inputs, folder)
        if survival is not None:
            planned = plan_overfetch(run, lists.stored, inputs, survival, folder)
            measures = lists.measures | planned.measures
            lists = replace(lists, plan=planned.plan, measures=measures, facts=lists.facts | planned.facts)
    return lists


def require_exposure_memory(run: RunContext, n_queries: int) -> None:
    """Raise BudgetError if the candidates of all queries, which an exposure cap holds at once, do not fit in memory."""
    if run.spec.exposure is None:
        return
    pairs = n_queries * run.spec.join_k
    needed, available = pairs * CAP_BYTES / 1e9, run.resources.memory_bytes / 1e9
    if needed > available:
        raise BudgetError(
            f"an exposure cap looks at all {pairs:,} candidates at once, which takes about {needed:.1f} GB; the budget "
            f"leaves {available:.1f} GB: raise `memory`, or lower exposure.candidates_per_query"
        )


def write_full_items(thresholds: AdmissionThresholds, inputs: Inputs, folder: Path) -> None:
    """Write a row per filled-up item, by id: the last query that it was given to, and the score of the pair."""
    path = folder / EXPOSURE / FULL_FILE
    path.parent.mkdir(parents=True)
    rows = np.flatnonzero(np.isfinite(thresholds.scores))
    columns = {
        "item_id": inputs.items.ids.take(pa.array(rows)),
        "last_query": inputs.queries.ids.take(pa.array(thresholds.queries[rows])),
        "last_score": thresholds.scores[rows],
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_full_items(snapshot: Snapshot, items: IngestedTable, queries: IngestedTable) -> AdmissionThresholds | None:
    """Read the filled-up items of a snapshot as positions; None for a snapshot without an exposure cap."""
    path = snapshot.fetch(EXPOSURE) / FULL_FILE
    if not path.is_file():
        return None
    table = pq.read_table(path)
    thresholds = AdmissionThresholds.free(items.vectors.n)
    rows = find_positions(table.column("item_id").combine_chunks().cast(items.ids.type), items.ids)
    last_queries = table.column("last_query").combine_chunks().cast(queries.ids.type)
    thresholds.scores[rows] = table.column("last_score").to_numpy()
    thresholds.queries[rows] = find_positions(last_queries, queries.ids)
    return thresholds


def _apply_exposure_cap(
    run: RunContext, tasks: list[JoinTask], inputs: Inputs, folder: Path
) -> tuple[SelectedLists, AdmissionThresholds]:
    assert run.spec.exposure is not None
    max_lists = run.spec.exposure.max_lists_per_item
    require_exposure_memory(run, inputs.queries.vectors.n)
    results = [read_result(task.folder) for task in tasks]
    joined = Neighbors.empty(0, run.spec.join_k)
    if results:
        joined = Neighbors(*(np.concatenate([getattr(r, name) for r in results]) for name in ("positions", "scores")))
    capped = cap_exposure(joined, run.spec.k, max_lists, n_items=inputs.items.vectors.n)
    stored = _write_as_tasks(tasks, capped, folder / SCRATCH)
    measures = {
        "exposure_score_lost": capped.score_lost,
        "exposure_fill_lost": capped.fill_lost,
        "exposure_full": capped.full_items,
    }
    facts = {"exposure": {"rounds": capped.rounds}}
    return SelectedLists(tasks, stored, thresholds=capped.thresholds, measures=measures, facts=facts), capped.thresholds


def _write_as_tasks(tasks: list[JoinTask], capped: CappedLists, home: Path) -> list[JoinTask]:
    """Write the capped lists in the format of task results."""
    stored = []
    for task in tasks:
        folder = fresh_folder(home / f"{task.number:06d}")
        np.save(folder / "positions.npy", capped.lists.positions[task.start : task.stop])
        np.save(folder / "scores.npy", capped.lists.scores[task.start : task.stop])
        stored.append(replace(task, folder=folder))
    return stored


def _take_first(neighbors: Neighbors, is_kept: npt.NDArray[np.bool_], k: int) -> Neighbors:
    """Return the first k kept slots of each query."""
    order = np.argsort(~is_kept, axis=1, kind="stable")[:, :k]
    filled = np.take_along_axis(is_kept, order, 1)
    positions = np.where(filled, np.take_along_axis(neighbors.positions, order, 1), EMPTY_POSITION)
    return Neighbors(positions, np.where(filled, np.take_along_axis(neighbors.scores, order, 1), np.float32(-np.inf)))
