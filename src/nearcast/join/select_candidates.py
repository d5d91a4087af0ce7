"""The lists that are stored, selected from the lists of the join: exposure cap, planned over-fetch.

Also the effects on later stages: which lists count as short, and the true list of a query. The items that an
exposure cap has filled up are stored with the snapshot, for `explain`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.errors import BudgetError
from nearcast.files import fresh_folder
from nearcast.join.context import RunContext
from nearcast.join.joined_lists import JoinedLists, ListRange
from nearcast.join.plan_overfetch import Survival, plan_overfetch
from nearcast.join.short_lists import CODES, CodeArray
from nearcast.join.task import JoinTask
from nearcast.knn.exposure import AdmissionThresholds, cap_exposure, find_admitted
from nearcast.knn.topk import cut_lists
from nearcast.sources.ids import find_positions
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.table.candidate_schema import Reason
from nearcast.table.snapshot import Snapshot
from nearcast.types import EMPTY_POSITION, IntArray, Neighbors

__all__ = [
    "FULL_FILE",
<<<<<<< HEAD
    "SCRATCH",
    "CodeArray",
=======
>>>>>>> 09b7b59 (A candidate table is written and tallied file by file, each in bounded memory; the tallies of any files add up to the same measures)
    "SelectedLists",
    "StoredLengths",
    "read_full_items",
    "require_exposure_memory",
    "select_lists",
    "write_full_items",
]

EXPOSURE = "exposure"  # the part of a snapshot with an exposure cap
FULL_FILE = "full.parquet"
SCRATCH = "selected-lists"  # folder that the caller removes after the last use of the lists
CAP_BYTES = 48  # memory per candidate while exposure is capped: read, sorted, selected


@dataclass(frozen=True, slots=True, eq=False)
class StoredLengths:
    """The number of candidates that an over-fetch plan stores for each query."""

    lengths: IntArray  # (queries,)
    is_short: npt.NDArray[np.bool_]  # (queries,) below the wanted probability


@dataclass(frozen=True, slots=True)
class SelectedLists:
    """The lists that are stored, and the lists of the join that they are selected from."""

    joined: JoinedLists
    stored: JoinedLists  # k wide; rows are cut to the planned lengths
    plan: StoredLengths | None = None  # of the over-fetch
    thresholds: AdmissionThresholds | None = None  # of the exposure cap
    measures: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def cut(self, stored: Neighbors, positions: IntArray) -> Neighbors:
        """Cut stored lists of these queries to their planned lengths."""
        return stored if self.plan is None else cut_lists(stored, self.plan.lengths[positions])

    def reason_codes(
        self, codes: CodeArray, positions: IntArray, joined: IntArray, stored: IntArray, k: int
    ) -> CodeArray:
        """Derive the reason codes of stored lists from those of joined lists. A list as long as planned has none.

        positions: (n,) of the queries. joined, stored: (n,) lengths of their lists, before these are cut.
        """
        if self.thresholds is not None:
            codes = np.where(stored < np.minimum(joined, k), CODES.index(Reason.CAPPED), codes).astype(np.uint8)
        if self.plan is not None:
            is_short = self.plan.is_short[positions] & (self.plan.lengths[positions] == stored)
            codes = np.where(is_short, codes, 0).astype(np.uint8)
        return codes

    def target_lengths(self, codes: CodeArray, positions: IntArray, k: int) -> IntArray | None:
        """Return the candidates that these lists should have: the planned number, or k where the plan falls short.

        None: k each. codes: of their stored lists.
        """
        return None if self.plan is None else np.where(codes > 0, k, self.plan.lengths[positions])

    def derive_truth(self, truth: Neighbors, rows: IntArray, k: int) -> Neighbors:
        """Return the lists that these queries should store, from their exact neighbors among all items.

        Under an exposure cap: the best k items whose threshold the score reaches. With over-fetch: as many as planned.
        """
        if self.thresholds is not None:
            truth = _take_first(truth, find_admitted(truth.positions, truth.scores, rows, self.thresholds), k)
        return self.cut(truth, rows)


def select_lists(
    run: RunContext, tasks: list[JoinTask], inputs: Inputs, survival: Survival | None, folder: Path
) -> SelectedLists:
    """Apply the exposure cap and the over-fetch plan to the lists of the tasks.

    Writes the filled-up items, and the queries without enough survivors, into the snapshot's folder; and the lists of
    an exposure cap into its folder SCRATCH, which the caller removes.
    """
    joined = JoinedLists.of_tasks(tasks, run.spec.k if run.spec.rank is not None else run.spec.join_k)
    if run.spec.exposure is None and survival is None:
        return SelectedLists(joined, joined)
    with run.meter.stage("choose"):
        lists = SelectedLists(joined, joined)
        if run.spec.exposure is not None:
<<<<<<< HEAD
            lists, thresholds = _apply_exposure_cap(run, tasks, inputs, folder)
            write_full_items(thresholds, inputs, folder)
=======
            lists = _apply_exposure_cap(run, lists, inputs, run.spec.exposure.max_lists_per_item)
            assert lists.thresholds is not None
            write_full_items(lists.thresholds, inputs, folder)
>>>>>>> 09b7b59 (A candidate table is written and tallied file by file, each in bounded memory; the tallies of any files add up to the same measures)
        if survival is not None:
            planned = plan_overfetch(run, lists.stored, inputs, survival, folder)
            measures = lists.measures | planned.measures
            plan = StoredLengths(planned.plan.lengths, planned.plan.is_short)
            lists = replace(lists, plan=plan, measures=measures, facts=lists.facts | planned.facts)
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


<<<<<<< HEAD
def _apply_exposure_cap(
    run: RunContext, tasks: list[JoinTask], inputs: Inputs, folder: Path
) -> tuple[SelectedLists, AdmissionThresholds]:
    assert run.spec.exposure is not None
    max_lists = run.spec.exposure.max_lists_per_item
=======
def _apply_exposure_cap(run: RunContext, lists: SelectedLists, inputs: Inputs, max_lists: int) -> SelectedLists:
>>>>>>> 09b7b59 (A candidate table is written and tallied file by file, each in bounded memory; the tallies of any files add up to the same measures)
    require_exposure_memory(run, inputs.queries.vectors.n)
    joined = lists.joined.read(np.arange(inputs.queries.vectors.n))
    capped = cap_exposure(joined, run.spec.k, max_lists, n_items=inputs.items.vectors.n)
<<<<<<< HEAD
    stored = _write_as_tasks(tasks, capped, folder / SCRATCH)
=======
    stored = _write_ranges(lists.joined, capped.lists, run.workspace.work / "lists")
>>>>>>> 09b7b59 (A candidate table is written and tallied file by file, each in bounded memory; the tallies of any files add up to the same measures)
    measures = {
        "exposure_score_lost": capped.score_lost,
        "exposure_fill_lost": capped.fill_lost,
        "exposure_full": capped.full_items,
    }
    facts = {"exposure": {"rounds": capped.rounds}}
    return SelectedLists(lists.joined, stored, thresholds=capped.thresholds, measures=measures, facts=facts)


def _write_ranges(joined: JoinedLists, capped: Neighbors, home: Path) -> JoinedLists:
    """Write the capped lists in the ranges of the joined lists, in the format of task results."""
    stored = []
<<<<<<< HEAD
    for task in tasks:
        folder = fresh_folder(home / f"{task.number:06d}")
        np.save(folder / "positions.npy", capped.lists.positions[task.start : task.stop])
        np.save(folder / "scores.npy", capped.lists.scores[task.start : task.stop])
        stored.append(replace(task, folder=folder))
    return stored
=======
    for number, part in enumerate(joined.ranges):
        folder = fresh_folder(home / f"{number:06d}")
        np.save(folder / "positions.npy", capped.positions[part.start : part.stop])
        np.save(folder / "scores.npy", capped.scores[part.start : part.stop])
        finish(folder, {"start": part.start, "stop": part.stop})
        stored.append(ListRange(part.start, part.stop, partial(Path, folder)))
    return JoinedLists(tuple(stored), capped.positions.shape[1])
>>>>>>> 09b7b59 (A candidate table is written and tallied file by file, each in bounded memory; the tallies of any files add up to the same measures)


def _take_first(neighbors: Neighbors, is_kept: npt.NDArray[np.bool_], k: int) -> Neighbors:
    """Return the first k kept slots of each query."""
    order = np.argsort(~is_kept, axis=1, kind="stable")[:, :k]
    filled = np.take_along_axis(is_kept, order, 1)
    positions = np.where(filled, np.take_along_axis(neighbors.positions, order, 1), EMPTY_POSITION)
    return Neighbors(positions, np.where(filled, np.take_along_axis(neighbors.scores, order, 1), np.float32(-np.inf)))
