"""Tables of an incremental run in a table format, narrowed: only what changed since the last snapshot is read.

The survey of the run decides, so that every worker reads the same units. Whatever stands in the way, from a version
that was removed to a row with a fault, means that the whole version is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.errors import NearcastError
from nearcast.join.inputs import Sources, ingested_names
from nearcast.join.task_context import TaskContext
from nearcast.sources.ingest import IngestedTable, open_ingested_table
from nearcast.sources.narrowed_table import NarrowedRows, narrow_source, narrow_table
from nearcast.sources.open_table import open_table
from nearcast.sources.pinned_table import PinnedReader
from nearcast.sources.row_source import RowSource
from nearcast.table.snapshot import Snapshot, list_snapshots

__all__ = ["apply_narrowing", "plan_narrowing"]


def plan_narrowing(context: TaskContext, sources: Sources, folder: Path) -> dict[str, dict[str, Any]]:
    """Return by table how it is narrowed, and write the removed rows into `folder`. No entry: it is read whole."""
    run = context.run
    snapshots = list_snapshots(run.workspace.out, run.spec.name) if run.spec.run.incremental else []
    if not snapshots:
        return {}
    found = {}
    for table, name in zip(("items", "queries"), ingested_names(run.spec, sources), strict=True):
        source = getattr(sources, table)
        if (table == "queries" and source is sources.items) or run.artifacts.facts(name) is not None:
            continue
        try:
            facts = _plan_table(context, sources, table, snapshots[-1], folder)
        except NearcastError as error:
            run.listener.note(f"all of {source.name} is read: {error}")
            continue
        if facts is not None:
            found[table] = facts
    return found


def apply_narrowing(
    context: TaskContext, sources: Sources, tables: Mapping[str, Mapping[str, Any]], survey: Callable[[], Path]
) -> Sources:
    """Return the sources as the survey has narrowed them. survey: opens its folder."""
    if not tables:
        return sources

    def narrow(table: str, source: RowSource) -> RowSource:
        if table not in tables:
            return source
        facts = tables[table]
        rows = NarrowedRows(np.load(survey() / _removed_file(table)), tuple(facts["added"]))
        return narrow_source(source, _open_ingested(context, facts["artifact"]), rows)

    items = narrow("items", sources.items)
    queries = items if sources.queries is sources.items else narrow("queries", sources.queries)
    return replace(sources, items=items, queries=queries)


def _plan_table(
    context: TaskContext, sources: Sources, table: str, last: Snapshot, folder: Path
) -> dict[str, Any] | None:
    run, source = context.run, getattr(sources, table)
    reader, recorded = source.parts[0].reader, last.manifest.facts["inputs"].get(table, {}).get("files", [])
    if not isinstance(reader, PinnedReader) or source.only is not None or len(recorded) != 1:
        return None
    earlier = recorded[0]
    if earlier["name"] != reader.table.name or earlier.get("version") in (None, reader.table.version):
        return None
    digests = {"item_digests" if table == "items" else "query_digests": recorded}
    names = dict(zip(("items", "queries"), ingested_names(run.spec, replace(sources, **digests)), strict=True))
    facts = run.artifacts.facts(names[table])
    if facts is None:
        return None  # the columns or the checks are others, or the artifact was removed
    before = open_table(reader.table.name, earlier["version"], run.workspace.base)
    if PinnedReader(before).digest()["blake2b"] != earlier["blake2b"]:
        return None  # the table was made again
    old = _open_ingested(context, names[table])
    rows = narrow_table(source, before, old, facts["side"], run.spec, run.stage_settings)
    if rows is None:
        return None
    np.save(folder / _removed_file(table), rows.removed)
    files = len(reader.table.pieces)
    run.listener.note(
        f"{len(rows.added):,} of {files:,} files of {source.name} are read, the others as {last.name} has them"
    )
    return {"artifact": names[table], "added": list(rows.added)}


def _open_ingested(context: TaskContext, name: str) -> IngestedTable:
    artifacts = context.run.artifacts
    return open_ingested_table(artifacts.open(name), artifacts.open)


def _removed_file(table: str) -> str:
    return f"{table}-removed.npy"
