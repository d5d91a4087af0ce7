"""Write the candidate table from the results of the tasks: positions become ids, short lists get a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nearcast.files import link_file
from nearcast.join.context import RunContext
from nearcast.join.plan_join import JoinPlan
from nearcast.join.rank import is_ranked, read_rank_scores
from nearcast.join.select_candidates import CodeArray, SelectedLists
from nearcast.join.short_lists import CODES, find_reasons
from nearcast.join.task import JoinTask, read_result
from nearcast.knn.topk import cut_lists
from nearcast.measure.tally import Tally
from nearcast.sources.ids import find_positions
from nearcast.sources.ingest import Inputs
from nearcast.sources.validate_rows import Report
from nearcast.table.candidate_schema import Reason, candidate_schema, candidate_table
from nearcast.table.write_table import TableWriter
from nearcast.types import FloatArray, IntArray, Neighbors, Progress

__all__ = ["WrittenTable", "write_candidates", "write_table"]


@dataclass(frozen=True, slots=True)
class WrittenTable:
    """The files of a candidate table, and the measures of all its rows."""

    folder: Path  # of the unfinished snapshot
    rows: int
    measures: dict[str, float]


def write_table(
    run: RunContext, plan: JoinPlan, inputs: Inputs, report: Report, lists: SelectedLists, folder: Path
) -> WrittenTable:
    """Write the candidate table into `folder`, and link the attributes of both tables beside it."""
    k = run.spec.k
    tally = Tally(inputs.items.vectors.n, k, report.queries.rows, run.spec.measure.fill_at)
    with run.meter.stage("table"):
        request = replace(plan.request, k=k)
        reasons = find_reasons(request, run.resources, lists.joined, inputs, exact=plan.is_exact)
        codes = lists.reason_codes(reasons, k)
        rows = write_candidates(folder / "candidates", lists, inputs, codes, k, tally, run.listener.progress)
        _link_files(inputs.items.attribute_files, folder / "items")
        if inputs.queries is not inputs.items:
            _link_files(inputs.queries.attribute_files, folder / "queries")
    return WrittenTable(folder, rows, tally.measures() | lists.measure(codes, rows, k))


def write_candidates(
    folder: Path,
    lists: SelectedLists,
    inputs: Inputs,
    codes: CodeArray,
    k: int,
    tally: Tally,
    progress: Progress,
) -> int:
    """Write all rows, sorted by query id, and add them to the tally. Returns the number of rows.

    codes: (queries,) indexes into CODES.
    """
    items, queries, tasks = inputs.items, inputs.queries, lists.stored
    total = len(queries.listed_ids)
    ranked = bool(tasks) and is_ranked(tasks[0].folder)
    schema = candidate_schema(queries.listed_ids.type, items.ids.type, ranked=ranked)
    with TableWriter(folder, schema, k) as writer:
        for start in range(0, total, writer.group_rows):
            ids = queries.listed_ids[start : start + writer.group_rows]
            all_have_vectors = total == queries.vectors.n
            positions = np.arange(start, start + len(ids)) if all_have_vectors else find_positions(ids, queries.ids)
            found = positions[positions >= 0]
            joined = _read_lists(tasks, found, k)
            joined = joined if lists.lengths is None else cut_lists(joined, lists.lengths[found])
            neighbors = _add_empty_lists(joined, positions, k)
            ranks = _read_rank_scores(tasks, positions, k) if ranked else None
            writer.write(candidate_table(ids, neighbors, items.ids, _reason_texts(codes, positions), ranks))
            tally.add(joined.positions, joined.scores, len(ids), total)
            progress("table", start + len(ids), total)
    return total


def _read_lists(tasks: Sequence[JoinTask], positions: IntArray, k: int) -> Neighbors:
    """Read the lists of these query positions (ascending) from the results of the tasks."""
    parts = list(_read_parts(tasks, positions))
    if not parts:
        return Neighbors.empty(0, k)
    return Neighbors(np.concatenate([p.positions for p in parts]), np.concatenate([p.scores for p in parts]))


def _read_parts(tasks: Sequence[JoinTask], positions: IntArray) -> Iterator[Neighbors]:
    for task in tasks:
        first, last = np.searchsorted(positions, (task.start, task.stop))
        if first < last:
            rows = positions[first:last] - task.start
            result = read_result(task.folder)
            yield Neighbors(result.positions[rows], result.scores[rows])


def _read_rank_scores(tasks: Sequence[JoinTask], positions: IntArray, k: int) -> FloatArray:
    """Read (len(positions), k) a model's scores, in the slots of the candidates; -inf for position -1."""
    scores = np.full((len(positions), k), -np.inf, np.float32)
    slots = np.flatnonzero(positions >= 0)
    found = positions[slots]
    for task in tasks:
        first, last = np.searchsorted(found, (task.start, task.stop))
        if first < last:
            scores[slots[first:last]] = read_rank_scores(task.folder)[found[first:last] - task.start]
    return scores


def _add_empty_lists(joined: Neighbors, positions: IntArray, k: int) -> Neighbors:
    """Add an empty list for every position -1, a query without a vector."""
    if len(joined.positions) == len(positions):
        return joined
    lists = Neighbors.empty(len(positions), k)
    lists.positions[positions >= 0] = joined.positions
    lists.scores[positions >= 0] = joined.scores
    return lists


def _reason_texts(codes: CodeArray, positions: IntArray) -> list[str | None]:
    """Return the reason of each list, None for a full one. Position -1 is a query without a vector."""
    words = np.array([None if reason is None else str(reason) for reason in CODES], dtype=object)
    texts: list[str | None] = np.where(positions < 0, str(Reason.NO_VECTOR), words[codes[positions]]).tolist()
    return texts


def _link_files(files: Sequence[Path], target: Path) -> None:
    target.mkdir()
    for number, path in enumerate(files):
        link_file(path, target / f"part-{number:05d}.parquet")
