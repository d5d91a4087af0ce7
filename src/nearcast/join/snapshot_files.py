"""The files of a run's snapshot, found in the artifacts and results of its tasks. Opens none: it knows no rows."""

from __future__ import annotations

from pathlib import Path

from nearcast.files import MANIFEST
from nearcast.join.choose_stage import list_choose_calls
from nearcast.join.run_tasks import joined_tables
from nearcast.join.select_candidates import SNAPSHOT_FILES
from nearcast.join.table_stage import list_table_calls
from nearcast.join.task_context import TaskContext
from nearcast.sources.ingest import find_attribute_files
from nearcast.table.write_table import file_name

__all__ = ["list_snapshot_files"]


def list_snapshot_files(context: TaskContext) -> dict[str, Path]:
    """Return the files of the snapshot by their names in it. Downloads artifacts that are elsewhere."""
    run = context.run
    files: dict[str, Path] = {}
    for number, call in enumerate(list_table_calls(context)):
        name = f"candidates/{file_name(number)}"
        files[name] = run.results.open(call.name) / name
    for part, table in joined_tables(context).items():
        found = find_attribute_files(run.artifacts.open(table), run.artifacts.open)
        files |= {f"{part}/{file_name(number)}": path for number, path in enumerate(found)}
    others = [run.results.open(context.measure_name)]
    others += [run.results.open(call.name) / SNAPSHOT_FILES for call in list_choose_calls(context)]
    for folder in others:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
            files[path.relative_to(folder).as_posix()] = path
    return files
