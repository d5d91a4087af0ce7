"""The stage `measure`: one task that adds up the tallies of the table's files, and measures the table on samples.

Reads row groups, ranges of items and samples, never a whole table. The files of the table stay in their results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.artifact_files import open_dataset
from nearcast.join.choose_stage import open_lists
from nearcast.join.measure_snapshot import measure_snapshot
from nearcast.join.plan_join import index_names
from nearcast.join.profile_inputs import profile_inputs
from nearcast.join.reserves import name_reserves
from nearcast.join.run_mode import joins_in_full, read_base
from nearcast.join.run_tasks import open_plan, open_prepared, read_report
from nearcast.join.table_stage import describe_groups, list_table_calls, table_shape
from nearcast.join.task_context import TaskContext
from nearcast.join.updated_overlap import measure_updated_overlap
from nearcast.measure.table_parts import measure_table
from nearcast.measure.tally import PartSums
from nearcast.storage.artifacts import Artifacts
from nearcast.storage.locations import Location
from nearcast.storage.object_files import open_object
from nearcast.storage.open_storage import open_storage
from nearcast.table.bucket_parts import SMALL_PART
from nearcast.table.manifest import Manifest
from nearcast.table.snapshot import Snapshot, find_snapshot
from nearcast.table.write_table import file_name

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

__all__ = ["TableResults", "do_measure"]


def do_measure(context: TaskContext, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Measure the table; write sketches of both tables.

    args: `earlier`, the version of the snapshot that the measures of change compare with, or None.
    """
    run = context.run
    prepared, plan, report, lists = (
        open_prepared(context),
        open_plan(context),
        read_report(context),
        open_lists(context),
    )
    inputs, shape, calls = prepared.inputs, table_shape(context), list_table_calls(context)
    with run.meter.stage("table"):
        sums, parts = PartSums(), []
        for call in calls:
            sums += PartSums(**context.read_facts(call.name)["sums"])
            parts.append(run.results.open(call.name, ["tally"]) / "tally")
        measures = measure_table(shape, report.queries.rows, sums, parts) | lists.measures
    facts = {"k": run.spec.k, "rows": shape.n_rows, "spec": context.spec.as_recorded()}
    draft = Manifest({**facts, **describe_groups(shape)})
    table = Snapshot(folder, draft, TableResults(run.results, folder, run.workspace.out))
    version = args["earlier"]
    earlier = None if version is None else find_snapshot(run.workspace.out, run.spec.name, version)
    with run.meter.stage("overlap"):
        overlap = measure_updated_overlap(context, lists, earlier)
    quality = measure_snapshot(run, plan, inputs, lists, table, earlier, overlap)
    with run.meter.stage("profile"):
        profile = profile_inputs(run.spec, inputs, report)
    return {
        "rows": shape.n_rows,
        **describe_groups(shape),
        "artifacts": sorted(prepared.artifacts | _list_joined_artifacts(context)),
        "facts": {**quality.facts, **lists.facts, "profile": profile},
        "measures": measures | quality.measures,
    }


def _list_joined_artifacts(context: TaskContext) -> set[str]:
    """Return the names of the artifacts of the join: its indexes or that of the last full join, and reserves."""
    in_full = joins_in_full(context)
    names = set(index_names(context.run, open_prepared(context), open_plan(context))) if in_full else set()
    if context.run.spec.run.incremental:
        names.add(name_reserves(context, None if in_full else read_base(context)["name"]))
    if not in_full and read_base(context).get("index") is not None:
        names.add(read_base(context)["index"]["name"])
    return names


class TableResults:
    """The files of a table that is no snapshot yet, as `SnapshotParts`: each is in the result of its task."""

    def __init__(self, results: Artifacts, folder: Path, out: Location) -> None:
        """folder: holds the other parts."""
        self._results = results
        self._folder = folder
        self.out: Location = out
        self.url = results.url

    def has(self, part: str) -> bool:
        """Return whether the folder holds the part."""
        return part == "candidates" or (self._folder / part).is_dir()

    def fetch(self, part: str) -> Path:
        """Return the folder of a part, but for the candidates: they are in several."""
        assert part != "candidates"
        return self._folder / part

    def dataset(self, part: str, near: pa.Scalar | None = None) -> Dataset:  # noqa: ARG002
        """Open the first file of the candidates, for the schema; or another part."""
        return open_dataset(self._find_file(0) if part == "candidates" else self.fetch(part))

    @contextlib.contextmanager
    def open_file(self, part: str, number: int) -> Iterator[pq.ParquetFile]:
        """Open a file of the candidates. Of a large one in a bucket, ranges are read."""
        assert part == "candidates"
        found = self._results.list_files(_task_of(number))[f"{part}/{file_name(number)}"]
        is_ranged = found.path is None and found.size > SMALL_PART
        opened = open_object(open_storage(found.root), found.name, found.size) if is_ranged else self._find_file(number)
        with pq.ParquetFile(opened, pre_buffer=is_ranged) as file:
            yield file

    def verify(self) -> None:
        """Do nothing: results are verified when they are opened."""

    def _find_file(self, number: int) -> Path:
        name = f"candidates/{file_name(number)}"
        return self._results.open(_task_of(number), [name]) / name


def _task_of(number: int) -> str:
    return f"table/{number:06d}"
