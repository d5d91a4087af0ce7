"""Measure the lists of a run by the labels of its spec, before they are committed, and check what the spec promises.

Reads the files of the table where the tasks wrote them. Knows nothing of how metrics are computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq

from nearcast.errors import TargetError
from nearcast.evaluation.evaluation_report import Evaluation
from nearcast.evaluation.judge_snapshot import (
    JudgedLists,
    LabelSettings,
    describe_evaluation,
    judge_lists,
    judge_snapshot,
    open_labels,
)
from nearcast.evaluation.ranked_lists import SnapshotFiles, SnapshotLists
from nearcast.join.context import RunContext
from nearcast.storage.artifacts import ArtifactFile
from nearcast.storage.object_files import open_object
from nearcast.storage.open_storage import open_storage
from nearcast.table.snapshot import Snapshot
from nearcast.table.write_table import file_name

__all__ = ["measure_labels", "raise_broken_promise"]

BYTES_PER_LABEL = 512  # twice as many rows are held while they are read


def measure_labels(run: RunContext, files: Mapping[str, ArtifactFile], version: int) -> dict[str, Any]:
    """Return facts for the manifest: the key `labels` if the spec has labels. files: of the snapshot, by name."""
    spec = run.spec.labels
    if spec is None:
        return {}

    @contextlib.contextmanager
    def open_file(part: str, number: int) -> Iterator[pq.ParquetFile]:
        file = files[f"{part}/{file_name(number)}"]
        opened = open_object(open_storage(file.root), file.name, file.size) if file.path is None else file.path
        with pq.ParquetFile(opened) as parquet:
            yield parquet

    with run.meter.stage("measure"):
        fitting = max(1000, min(spec.max_rows, run.resources.memory_bytes // BYTES_PER_LABEL))
        settings = LabelSettings(spec.model_copy(update={"max_rows": fitting}), run.spec.promise, run.workspace.base)
        table = open_labels(spec, run.workspace.base)
        lists = SnapshotLists(SnapshotFiles(list(files), open_file), "the snapshot")
        judged = JudgedLists(lists, run.spec.name, version, run.spec.k, run.spec.exclude_self)
        found = judge_lists(judged, settings, table, seed=run.spec.seed)
    first = next(iter(found.metrics))
    figure = found.metrics[first]
    run.listener.note(
        f"by the labels of {table.name}, {first} is {figure.value:.4f} (95% interval {figure.low:.4f} to "
        f"{figure.high:.4f}) over {found.queries:,} queries"
    )
    for text in (*table.notes, *found.notes):
        run.listener.note(text)
    return {"labels": describe_evaluation(found)}


def raise_broken_promise(run: RunContext, snapshot: Snapshot) -> None:
    """Raise TargetError if a metric by the labels is below its promise. Measures a reused snapshot by newer labels."""
    if not run.spec.promise:
        return
    found = judge_snapshot(snapshot, LabelSettings(run.spec.labels, run.spec.promise, run.workspace.base))
    if found is not None and found.broken:
        raise TargetError(_describe_broken(found, snapshot), snapshot)


def _describe_broken(found: Evaluation, snapshot: Snapshot) -> str:
    """Return which promises are broken, and the way out."""
    broken = "; ".join(check.describe() for check in found.broken)
    return (
        f"snapshot {snapshot.name} breaks a promise by the labels of {found.labels['path']}: {broken}; it is kept at "
        f"{snapshot.url}, and is not published: `nearcast evaluate` shows slices and differences"
    )
