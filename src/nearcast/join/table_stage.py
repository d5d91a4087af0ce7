"""The stage `table`: write the candidate table, a task per file. Positions become ids, and short lists get a reason.

A task reads the lists and ids of its own rows, a row group at a time: its memory does not grow with the table. It
writes the file, and its part of the tally.

    <task>/candidates/part-00003.parquet   tally/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.join.choose_stage import open_lists
from nearcast.join.run_tasks import open_plan, open_prepared, read_report
from nearcast.join.select_candidates import SelectedLists
from nearcast.join.short_lists import CODES, find_reasons
from nearcast.join.task_context import TaskContext
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.measure.table_parts import PartTally
from nearcast.measure.tally import TableShape
from nearcast.runners.base import TaskCall
from nearcast.sources.ids import find_positions
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.table.candidate_schema import Reason, candidate_schema, candidate_table, rows_per_group
from nearcast.table.write_table import GROUPS_PER_FILE, cut_files, file_name, write_file
from nearcast.types import FloatArray, IntArray, Neighbors, Progress

__all__ = [
    "TableSource",
    "describe_groups",
    "do_table",
    "find_queries",
    "list_table_calls",
    "table_shape",
    "write_table_part",
]


@dataclass(frozen=True, slots=True)
class TableSource:
    """The inputs of a candidate table, equal for all of its files."""

    inputs: Inputs
    lists: SelectedLists
    request: JoinRequest  # of all queries, for k candidates, with constraints
    exact: bool  # the join scanned every item
    shape: TableShape


def list_table_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per file of the table."""
    shape = table_shape(context)
    files = cut_files(shape.n_rows, shape.group_rows)
    return [TaskCall(f"table/{number:06d}", "table", {"number": number}) for number in range(len(files))]


def do_table(context: TaskContext, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write one file of the table."""
    run, plan = context.run, open_plan(context)
    request = replace(plan.request, k=run.spec.k)
    inputs = open_prepared(context).inputs
    source = TableSource(inputs, open_lists(context), request, plan.is_exact, table_shape(context))
    with run.meter.stage("table"):
        return write_table_part(source, int(args["number"]), folder, run.resources, run.listener.progress)


def table_shape(context: TaskContext) -> TableShape:
    """Return the size of the table."""
    report, spec = read_report(context), context.run.spec
    group_rows = rows_per_group(spec.k, report.items.id_bytes, report.queries.id_bytes)
    return TableShape(report.queries.listed, report.items.vectors, spec.k, group_rows, spec.measure.fill_at)


def describe_groups(shape: TableShape) -> dict[str, int]:
    """Return the rows of a row group for the manifest, where long ids make them fewer than k does."""
    return {} if shape.group_rows == rows_per_group(shape.k) else {"group_rows": shape.group_rows}


def write_table_part(
    source: TableSource, number: int, folder: Path, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Write one file of the table, and its tally, into `folder`. Return the sums of its rows."""
    queries, shape = source.inputs.queries, source.shape
    start, stop = cut_files(shape.n_rows, shape.group_rows)[number]
    ranked = source.lists.stored.is_ranked
    schema = candidate_schema(queries.listed_ids.type, source.inputs.items.ids.type, ranked=ranked)
    tally = PartTally(folder / "tally", shape, number * GROUPS_PER_FILE)

    def write_groups() -> Iterator[pa.Table]:
        for first in range(start, stop, shape.group_rows):
            last = min(stop, first + shape.group_rows)
            yield _make_group(source, first, last, tally, resources, ranked=ranked)
            progress("table", last, shape.n_rows)

    (folder / "candidates").mkdir(parents=True)
    write_file(folder / "candidates" / file_name(number), schema, shape.group_rows, write_groups())
    return {"sums": asdict(tally.save())}


def _make_group(
    source: TableSource, first: int, last: int, tally: PartTally, resources: Resources, *, ranked: bool
) -> pa.Table:
    """Return the rows first..last-1 of the table, and add them to the tally."""
    inputs, lists, k = source.inputs, source.lists, source.shape.k
    ids, positions = find_queries(inputs.queries, first, last)
    found = positions[positions >= 0]
    joined = lists.joined.read(found)
    chosen = joined if lists.stored is lists.joined else lists.stored.read(found)
    codes = find_reasons(source.request, resources, inputs, found, joined.lengths, exact=source.exact)
    codes = lists.reason_codes(codes, found, joined.lengths, chosen.lengths, k)
    stored = lists.cut(chosen, found)
    tally.add(stored.positions, stored.scores, len(ids), lists.target_lengths(codes, found, k))
    rows = np.flatnonzero(positions >= 0)
    ranks = _add_empty_scores(lists.stored.read_rank_scores(found), rows, len(ids)) if ranked else None
    texts = np.full(len(ids), str(Reason.NO_VECTOR), dtype=object)
    texts[rows] = np.array([None if reason is None else str(reason) for reason in CODES], dtype=object)[codes]
    return candidate_table(ids, _add_empty_lists(stored, rows, len(ids)), inputs.items.ids, texts.tolist(), ranks)


def find_queries(queries: IngestedTable, first: int, last: int) -> tuple[pa.Array, IntArray]:
    """Return the ids of these rows of the table, and their positions; -1 for a query without a vector."""
    ids = queries.listed_ids[first:last]
    if len(queries.listed_ids) == queries.vectors.n:
        return ids, np.arange(first, last)
    return ids, find_positions(ids, queries.ids)


def _add_empty_lists(lists: Neighbors, rows: IntArray, n: int) -> Neighbors:
    """Return n lists: these at `rows`, and empty ones of queries without a vector."""
    if len(rows) == n:
        return lists
    whole = Neighbors.empty(n, lists.positions.shape[1])
    whole.positions[rows], whole.scores[rows] = lists.positions, lists.scores
    return whole


def _add_empty_scores(scores: FloatArray, rows: IntArray, n: int) -> FloatArray:
    whole = np.full((n, scores.shape[1]), -np.inf, np.float32)
    whole[rows] = scores
    return whole
