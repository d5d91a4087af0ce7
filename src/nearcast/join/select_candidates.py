"""Between the join and the table: which of the candidates found are stored, under an exposure cap and planned surplus.

Also what that changes about the rest of a run: what counts as short, and what the truth of a list is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.errors import BudgetError
from nearcast.files import finish, fresh_folder
from nearcast.join.context import RunContext
from nearcast.join.full_items import write_full_items
from nearcast.join.plan_overfetch import Survival, plan_surplus
from nearcast.join.short_lists import CODES
from nearcast.join.task import JoinTask, read_result, result_lengths
from nearcast.knn.exposure import AdmissionThresholds, CappedLists, cap_exposure, find_admitted
from nearcast.knn.topk import cut_lists
from nearcast.overfetch.candidates_needed import OverfetchPlan
from nearcast.sources.ingest import Inputs
from nearcast.table.candidate_schema import Reason
from nearcast.types import EMPTY_POSITION, IntArray, Neighbors

__all__ = ["Chosen", "choose_lists", "stop_if_exposure_is_too_large"]

CAPPED_BYTES = 48  # of a candidate while exposure is capped: found, ordered, picked and chosen

CodeArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The lists that are stored, and what they are chosen from."""

    found: list[JoinTask]
    stored: list[JoinTask]  # k wide; they are cut to `lengths`
    plan: OverfetchPlan | None = None
    bars: AdmissionThresholds | None = None
    measures: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def full(self) -> AdmissionThresholds:
        """What an exposure cap leaves a query to beat."""
        assert self.bars is not None
        return self.bars

    @property
    def lengths(self) -> IntArray | None:
        """(queries,) how many candidates each query stores; None for all."""
        return None if self.plan is None else self.plan.lengths

    def reasons(self, codes: CodeArray, k: int) -> CodeArray:
        """Reasons of the lists that are stored, from those of the lists found; one that is as planned is not short."""
        if self.bars is not None:
            found, stored = (result_lengths(tasks, len(codes)) for tasks in (self.found, self.stored))
            codes = np.where(stored < np.minimum(found, k), CODES.index(Reason.CAPPED), codes).astype(np.uint8)
        if self.plan is not None:
            stored = result_lengths(self.stored, len(codes))
            needy = (self.plan.shortage != None) & (self.plan.lengths == stored)  # noqa: E711  (element by element)
            codes = np.where(needy, codes, 0).astype(np.uint8)
        return codes

    def measures_of(self, codes: CodeArray, n_rows: int, k: int) -> dict[str, float]:
        """What choosing has cost, and fill by what was wanted: as planned, or k where that was not to be had."""
        if self.plan is None:
            return self.measures
        wanted = np.where(codes > 0, k, self.plan.lengths)
        listed = (n_rows - len(codes)) * k  # rows of queries without a vector
        filled = int(self.plan.lengths.sum())
        short = int(np.count_nonzero(codes)) + n_rows - len(codes)
        return self.measures | {"fill_rate": filled / max(1, int(wanted.sum()) + listed), "short_lists": short}

    def truth(self, truth: Neighbors, rows: IntArray, k: int) -> Neighbors:
        """What the stored lists of these queries should be, from their exact neighbors among all items.

        Under an exposure cap: the best k that would have the query, by the bars. With surplus: as many as are planned.
        """
        if self.bars is not None:
            truth = _first(truth, find_admitted(truth.positions, truth.scores, rows, self.bars), k)
        return truth if self.plan is None else cut_lists(truth, self.plan.lengths[rows])


def choose_lists(
    run: RunContext, tasks: list[JoinTask], inputs: Inputs, survival: Survival | None, folder: Path
) -> Chosen:
    """Choose from what the tasks have found; the queries that cannot be helped are listed in the snapshot's folder."""
    if run.spec.exposure is None and run.spec.overfetch is None:
        return Chosen(tasks, tasks)
    with run.meter.stage("choose"):
        chosen = Chosen(tasks, tasks)
        if run.spec.exposure is not None:
            chosen = _capped(run, tasks, inputs, run.spec.exposure.max_lists_per_item)
            write_full_items(chosen.full, inputs, folder)
        if survival is not None:
            planned = plan_surplus(run, chosen.stored, inputs, survival, folder)
            measures = chosen.measures | planned.measures
            chosen = replace(chosen, plan=planned.plan, measures=measures, facts=chosen.facts | planned.facts)
    return chosen


def stop_if_exposure_is_too_large(run: RunContext, n_queries: int) -> None:
    """Raise BudgetError where the candidates of all queries, which an exposure cap looks at, do not fit in memory."""
    if run.spec.exposure is None:
        return
    pairs = n_queries * run.spec.join_k
    needed, given = pairs * CAPPED_BYTES / 1e9, run.resources.memory_bytes / 1e9
    if needed > given:
        raise BudgetError(
            f"an exposure cap looks at all {pairs:,} candidates at once, which takes about {needed:.1f} GB; the budget "
            f"leaves {given:.1f} GB: raise `memory`, or lower exposure.candidates_per_query"
        )


def _capped(run: RunContext, tasks: list[JoinTask], inputs: Inputs, most: int) -> Chosen:
    stop_if_exposure_is_too_large(run, inputs.queries.vectors.n)
    found = [read_result(task.folder) for task in tasks]
    whole = Neighbors.empty(0, run.spec.join_k)
    if found:
        whole = Neighbors(*(np.concatenate([getattr(f, name) for f in found]) for name in ("positions", "scores")))
    capped = cap_exposure(whole, run.spec.k, most, n_items=inputs.items.vectors.n)
    stored = _as_tasks(tasks, capped, run.workspace.work / "lists")
    measures = {
        "exposure_score_lost": capped.score_lost,
        "exposure_fill_lost": capped.fill_lost,
        "exposure_full": capped.full_items,
    }
    return Chosen(
        tasks, stored, bars=capped.thresholds, measures=measures, facts={"exposure": {"rounds": capped.rounds}}
    )


def _as_tasks(tasks: list[JoinTask], capped: CappedLists, home: Path) -> list[JoinTask]:
    """The chosen lists, kept as the tasks keep theirs."""
    stored = []
    for task in tasks:
        folder = fresh_folder(home / f"{task.number:06d}")
        np.save(folder / "positions.npy", capped.lists.positions[task.start : task.stop])
        np.save(folder / "scores.npy", capped.lists.scores[task.start : task.stop])
        finish(folder, {"start": task.start, "stop": task.stop})
        stored.append(replace(task, folder=folder))
    return stored


def _first(neighbors: Neighbors, kept: npt.NDArray[np.bool_], k: int) -> Neighbors:
    """The first k of each query's slots that are kept."""
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    there = np.take_along_axis(kept, order, 1)
    positions = np.where(there, np.take_along_axis(neighbors.positions, order, 1), EMPTY_POSITION)
    return Neighbors(positions, np.where(there, np.take_along_axis(neighbors.scores, order, 1), np.float32(-np.inf)))
