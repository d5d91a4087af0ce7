"""From finished tasks to the candidate table: positions become ids, short lists get a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nearcast.join.rank import is_ranked, read_rank_scores
from nearcast.join.short_lists import CODES
from nearcast.join.task import JoinTask, read_result
from nearcast.knn.topk import cut_lists
from nearcast.measure.tally import Tally
from nearcast.sources.ids import positions_of
from nearcast.sources.ingest import IngestedTable
from nearcast.table.candidate_schema import Reason, candidate_schema, candidate_table
from nearcast.table.write_table import TableWriter
from nearcast.types import FloatArray, IntArray, Neighbors, Progress

__all__ = ["assemble"]


def assemble(
    tasks: Sequence[JoinTask],
    items: IngestedTable,
    queries: IngestedTable,
    folder: Path,
    k: int,
    reasons: npt.NDArray[np.uint8],
    tally: Tally,
    progress: Progress,
    lengths: IntArray | None = None,
) -> int:
    """Write all rows, sorted by query id, and count them into the tally. Returns the number of rows.

    `reasons` (queries,) are numbers of `reasons.CODES`. `lengths` (queries,): so many candidates are stored; all.
    """
    total = len(queries.listed_ids)
    ranked = bool(tasks) and is_ranked(tasks[0].folder)
    schema = candidate_schema(queries.listed_ids.type, items.ids.type, ranked=ranked)
    with TableWriter(folder, schema, k) as writer:
        for start in range(0, total, writer.group_rows):
            ids = queries.listed_ids[start : start + writer.group_rows]
            places = positions_of(ids, queries.ids) if total != queries.vectors.n else _run(start, len(ids))
            joined = _rows(tasks, places[places >= 0], k)
            joined = joined if lengths is None else cut_lists(joined, lengths[places[places >= 0]])
            neighbors = _spread(joined, places, k)
            ranks = _rank_scores(tasks, places, k) if ranked else None
            writer.write(candidate_table(ids, neighbors, items.ids, _reasons(reasons, places), ranks))
            tally.add(joined.positions, joined.scores, len(ids), total)
            progress("table", start + len(ids), total)
    return total


def _run(start: int, n: int) -> IntArray:
    return np.arange(start, start + n)


def _rows(tasks: Sequence[JoinTask], positions: IntArray, k: int) -> Neighbors:
    """The neighbors of these query positions (ascending), gathered from the tasks that hold them."""
    parts = list(_pieces(tasks, positions))
    if not parts:
        return Neighbors.empty(0, k)
    return Neighbors(np.concatenate([p.positions for p in parts]), np.concatenate([p.scores for p in parts]))


def _pieces(tasks: Sequence[JoinTask], positions: IntArray) -> Iterator[Neighbors]:
    for task in tasks:
        first, last = np.searchsorted(positions, (task.start, task.stop))
        if first < last:
            here = positions[first:last] - task.start
            result = read_result(task.folder)
            yield Neighbors(result.positions[here], result.scores[here])


def _rank_scores(tasks: Sequence[JoinTask], places: IntArray, k: int) -> FloatArray:
    """(len(places), k) the model's scores, in the slots of the candidates."""
    scores = np.full((len(places), k), -np.inf, np.float32)
    there = np.flatnonzero(places >= 0)
    positions = places[there]
    for task in tasks:
        first, last = np.searchsorted(positions, (task.start, task.stop))
        if first < last:
            scores[there[first:last]] = read_rank_scores(task.folder)[positions[first:last] - task.start]
    return scores


def _spread(joined: Neighbors, places: IntArray, k: int) -> Neighbors:
    """Give queries that had no vector their empty lists."""
    if len(joined.positions) == len(places):
        return joined
    spread = Neighbors.empty(len(places), k)
    spread.positions[places >= 0] = joined.positions
    spread.scores[places >= 0] = joined.scores
    return spread


def _reasons(reasons: npt.NDArray[np.uint8], places: IntArray) -> list[str | None]:
    """Words for the rows of queries at these places; -1 for a query without a vector."""
    words = np.array([None if reason is None else str(reason) for reason in CODES], dtype=object)
    listed: list[str | None] = np.where(places < 0, str(Reason.NO_VECTOR), words[reasons[places]]).tolist()
    return listed
