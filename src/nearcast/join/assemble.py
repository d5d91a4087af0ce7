"""Write the candidate table of a run, file by file, and link the attributes of both tables beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nearcast.files import fresh_folder, link_file
from nearcast.join.context import RunContext
from nearcast.join.plan_join import JoinPlan
from nearcast.join.select_candidates import SelectedLists
from nearcast.join.table_stage import TableSource, write_table_part
from nearcast.measure.table_parts import measure_table
from nearcast.measure.tally import PartSums, TableShape
from nearcast.sources.ingest import Inputs
from nearcast.sources.validate_rows import Report
from nearcast.table.candidate_schema import rows_per_group
from nearcast.table.write_table import cut_files

__all__ = ["WrittenTable", "write_table"]


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
    n_rows, n_items = len(inputs.queries.listed_ids), inputs.items.vectors.n
    shape = TableShape(n_rows, n_items, k, rows_per_group(k), run.spec.measure.fill_at)
    source = TableSource(inputs, lists, replace(plan.request, k=k), plan.is_exact, shape)
    home = run.workspace.work / "table"
    parts, sums = [], PartSums()
    (folder / "candidates").mkdir()
    with run.meter.stage("table"):
        for number in range(len(cut_files(shape.n_rows, k))):
            part = fresh_folder(home / f"{number:06d}")
            facts = write_table_part(source, number, part, run.resources, run.listener.progress)
            sums += PartSums(**facts["sums"])
            parts.append(part / "tally")
            for path in (part / "candidates").iterdir():
                link_file(path, folder / "candidates" / path.name)
        measures = measure_table(shape, report.queries.rows, sums, parts)
        _link_files(inputs.items.attribute_files, folder / "items")
        if inputs.queries is not inputs.items:
            _link_files(inputs.queries.attribute_files, folder / "queries")
    return WrittenTable(folder, shape.n_rows, measures | lists.measures)


def _link_files(files: Sequence[Path], target: Path) -> None:
    target.mkdir()
    for number, path in enumerate(files):
        link_file(path, target / f"part-{number:05d}.parquet")
