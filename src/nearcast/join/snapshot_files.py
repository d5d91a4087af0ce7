"""The files of a run's snapshot, found in the artifacts and results of its tasks. Opens none: it knows no rows."""

from __future__ import annotations

from nearcast.join.choose_stage import list_choose_calls
from nearcast.join.run_tasks import joined_tables
from nearcast.join.select_candidates import SNAPSHOT_FILES
from nearcast.join.table_stage import list_table_calls
from nearcast.join.task_context import TaskContext
from nearcast.storage.artifacts import ArtifactFile
from nearcast.table.write_table import file_name

__all__ = ["list_snapshot_files"]


def list_snapshot_files(context: TaskContext) -> dict[str, ArtifactFile]:
    """Return the files of the snapshot by their names in it, where the storage has them. Downloads none."""
    run = context.run
    files: dict[str, ArtifactFile] = {}
    for number, call in enumerate(list_table_calls(context)):
        name = f"candidates/{file_name(number)}"
        files[name] = run.results.list_files(call.name)[name]
    for part, table in joined_tables(context).items():
        for number, file in enumerate(_list_attribute_files(context, table)):
            files[f"{part}/{file_name(number)}"] = file
    files |= run.results.list_files(context.measure_name)
    for call in list_choose_calls(context):
        for name, file in run.results.list_files(call.name).items():
            if name.startswith(f"{SNAPSHOT_FILES}/"):
                files[name.removeprefix(f"{SNAPSHOT_FILES}/")] = file
    return files


def _list_attribute_files(context: TaskContext, table: str) -> list[ArtifactFile]:
    """Return the Parquet files of a table's ids and attributes, in the order of ids."""
    artifacts = context.run.artifacts
    ranges = (artifacts.facts(table) or {}).get("ranges")
    found = []
    for name in [table] if ranges is None else ranges["names"]:
        files = artifacts.list_files(name)
        found += [files[file] for file in sorted(files) if file.startswith("attributes/") and file.endswith(".parquet")]
    return found
