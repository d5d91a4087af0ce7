"""The inputs of a run: open the sources, validate their rows, and ingest them, or reuse an earlier ingestion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.errors import InputError
from nearcast.evaluation.judge_snapshot import open_labels, refuse_learning_from
from nearcast.files import fingerprint
from nearcast.join.listener import Listener
from nearcast.sources.freed_memory import return_freed_memory
from nearcast.sources.ingest import IngestedTable, Inputs, open_ingested_table
from nearcast.sources.ingest_rows import estimate_ingest_disk, estimate_ingest_memory, ingest_staged
from nearcast.sources.matrix import RowState, compute_lengths, to_matrix
from nearcast.sources.memory_tables import table_source
from nearcast.sources.open_source import open_source
from nearcast.sources.open_table import pin_version
from nearcast.sources.parquet_files import ParquetFiles
from nearcast.sources.row_source import RowSource
from nearcast.sources.stage_rows import StagedTable, StageSettings, stage_table
from nearcast.sources.validate_rows import (
    Report,
    TableReport,
    raise_on_errors,
    report_inputs,
    report_table,
    require_same_id_types,
)
from nearcast.spec import GeneratorSpec, SourceSpec
from nearcast.storage.artifacts import Artifacts
from nearcast.storage.locations import resolve_location
from nearcast.types import ArrayVectors, Progress

__all__ = [
    "Checked",
    "InMemoryTables",
    "Sources",
    "check_inputs",
    "describe_inputs",
    "ingest_inputs",
    "ingested_names",
    "keep_labels_apart",
    "open_sources",
    "open_unhashed",
    "pin_versions",
    "read_trial_vectors",
]

TRIAL_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class InMemoryTables:
    """Tables in memory that replace the files of a spec: Arrow, pandas, polars, or pairs (ids, vectors)."""

    items: object | None = None  # None: the spec's files
    queries: object | None = None

    @property
    def any(self) -> bool:
        """Return whether a table is in memory."""
        return self.items is not None or self.queries is not None


@dataclass(frozen=True, slots=True)
class Sources:
    """Items and queries, unread, with the hashes of their contents. `queries is items` for a self-join."""

    items: RowSource
    queries: RowSource
    item_digests: list[dict[str, Any]]
    query_digests: list[dict[str, Any]]
    lookup_log: ParquetFiles | None = None  # that survival is learned from

    @property
    def lookup_digests(self) -> list[dict[str, str]] | None:
        """Names and hashes of the look-up log's files; None without a log."""
        if self.lookup_log is None:
            return None
        return [{"name": digest["name"], "blake2b": digest["blake2b"]} for digest in self.lookup_log.digests()]


@dataclass(frozen=True, slots=True)
class Checked:
    """Items and queries, validated. A staged table is None if an earlier run ingested the same rows."""

    sources: Sources
    report: Report
    staged_items: StagedTable | None
    staged_queries: StagedTable | None
    item_name: str  # of the artifact
    query_name: str
    disk_bytes: int  # estimated for the ingestion
    memory_bytes: int  # estimated peak of the ingestion


def open_sources(spec: GeneratorSpec, base: Path, listener: Listener, tables: InMemoryTables | None = None) -> Sources:
    """Open items and queries, in files or in memory, and hash their contents. Notes skipped files to the listener.

    Raises InputError if a file changes meanwhile.
    """
    item_source, query_source = open_unhashed(spec, base, listener, tables)
    with ThreadPoolExecutor(1) as pool:
        queries = None if query_source is item_source else pool.submit(query_source.digests)
        item_digests = item_source.digests()
        listener.progress("hash inputs", 1, 2)
        query_digests = item_digests if queries is None else queries.result()
        listener.progress("hash inputs", 2, 2)
    keep_labels_apart(spec, base, {"items": item_digests, "queries": query_digests})
    return Sources(item_source, query_source, item_digests, query_digests)


def keep_labels_apart(spec: GeneratorSpec, base: Path, inputs: Mapping[str, list[dict[str, Any]]]) -> None:
    """Raise SpecError if a file of the labels is also one of these inputs (digests by place), by its contents."""
    if spec.labels is None or not inputs:
        return
    try:
        digests = open_labels(spec.labels, base).digests()
    except InputError:
        return  # nothing can have learned from labels that cannot be read; a run refuses them
    refuse_learning_from(digests, inputs)


def pin_versions(spec: GeneratorSpec, base: Path, tables: InMemoryTables | None = None) -> GeneratorSpec:
    """Return the spec with the versions that its tables have now, so that every reader of a run reads the same rows."""
    given = tables or InMemoryTables()
    items = spec.items if given.items is not None else pin_version(spec.items, base)
    queries = spec.queries if spec.queries is None or given.queries is not None else pin_version(spec.queries, base)
    return spec.model_copy(update={"items": items, "queries": queries})


def open_unhashed(
    spec: GeneratorSpec, base: Path, listener: Listener, tables: InMemoryTables | None = None
) -> tuple[RowSource, RowSource]:
    """Open items and queries, and read their schemas alone. Both are one source for a join of a table with itself."""
    tables = tables or InMemoryTables()
    out = resolve_location(base, spec.out)
    item_source = _open(spec.items, base, tables.items, "items", out)
    own_queries = spec.queries is not None or tables.queries is not None
    query_source = _open(spec.query_source, base, tables.queries, "queries", out) if own_queries else item_source
    require_same_id_types(item_source, query_source, exclude_self=spec.exclude_self)
    for text in dict.fromkeys((*item_source.notes, *query_source.notes)):
        listener.note(text)
    return item_source, query_source


def ingested_names(spec: GeneratorSpec, sources: Sources) -> tuple[str, str]:
    """Return the artifact names of the ingested items and queries: fingerprints of their contents."""
    items = f"items-{_fingerprint_table(spec, spec.items, sources.item_digests)}"
    if sources.queries is sources.items:
        return items, items
    return items, f"queries-{_fingerprint_table(spec, spec.query_source, sources.query_digests)}"


def check_inputs(
    spec: GeneratorSpec,
    sources: Sources,
    artifacts: Artifacts,
    *,
    settings: StageSettings,
    progress: Progress,
    checked: Callable[[Report], None],
) -> Checked:
    """Read the tables that were not ingested before, and report both.

    Raises InputError for a problem whose policy is "error".
    checked: called with the report before the error is raised.
    """
    item_name, query_name = ingested_names(spec, sources)

    def stage(table: str, source: RowSource, name: str) -> tuple[StagedTable | None, TableReport]:
        facts = artifacts.facts(name)
        if facts is not None:
            return None, TableReport.from_dict(facts["side"])
        staged = stage_table(source, spec, settings, table, progress)
        return staged, report_table(table, staged.facts, source, spec)

    staged_items, items = stage("items", sources.items, item_name)
    staged_queries, queries = staged_items, items
    if sources.queries is not sources.items:
        staged_queries, queries = stage("queries", sources.queries, query_name)
    report = report_inputs(items, queries, spec)
    checked(report)
    raise_on_errors(report)
    both = {id(staged): staged for staged in (staged_items, staged_queries) if staged is not None}
    disk_bytes = sum(estimate_ingest_disk(staged) for staged in both.values())
    memory = estimate_ingest_memory(both.values(), settings.memory_bytes)
    return Checked(sources, report, staged_items, staged_queries, item_name, query_name, disk_bytes, memory)


def ingest_inputs(
    spec: GeneratorSpec, checked: Checked, artifacts: Artifacts, *, memory_bytes: int, progress: Progress
) -> Inputs:
    """Ingest items and queries into artifacts, or open them if they are ingested already."""

    def ingest_table(table: str, staged: StagedTable | None, name: str, report: TableReport) -> IngestedTable:
        if staged is None:
            return open_ingested_table(artifacts.open(name), artifacts.open)
        side = asdict(report)
        return ingest_staged(staged, name, artifacts, side, memory_bytes=memory_bytes, table=table, progress=progress)

    items = ingest_table("items", checked.staged_items, checked.item_name, checked.report.items)
    if checked.query_name == checked.item_name:
        return Inputs(items, items, spec.metric)
    return_freed_memory()
    queries = ingest_table("queries", checked.staged_queries, checked.query_name, checked.report.queries)
    return Inputs(items, queries, spec.metric)


def describe_inputs(sources: Sources, report: Report, spec: GeneratorSpec) -> dict[str, Any]:
    """Return files, checks and figures of both tables, for the manifest."""

    def table_facts(source: Any, digests: Any, table_report: Any) -> dict[str, Any]:
        return {"embedding": source.embedding, "files": digests, **asdict(table_report)}

    facts = {"items": table_facts(spec.items, sources.item_digests, report.items)}
    if sources.queries is not sources.items:
        facts["queries"] = table_facts(spec.query_source, sources.query_digests, report.queries)
    return facts


def read_trial_vectors(checked: Checked, artifacts: Artifacts, memory_bytes: int) -> ArrayVectors:
    """Read the first good items into memory, at most TRIAL_ROWS, for an engine's cost estimate."""
    report = checked.report.items
    n = max(1, min(TRIAL_ROWS, report.vectors, memory_bytes // 4 // (report.dim * 8)))
    if checked.staged_items is None:
        items = open_ingested_table(artifacts.open(checked.item_name), artifacts.open)
        return ArrayVectors(np.array(items.vectors.read(0, n)))
    pieces: list[np.ndarray[Any, Any]] = []
    batches = checked.sources.items.batches(vectors=True, attributes=False, memory_bytes=memory_bytes // 4)
    for batch in batches:
        matrix, states = to_matrix(batch.vectors, report.dim)
        usable = np.isin(compute_lengths(matrix, states)[1], (RowState.GOOD, RowState.ZERO_VECTOR))
        pieces.append(matrix[usable].astype(report.dtype, copy=False))
        if sum(len(piece) for piece in pieces) >= n:
            break
    return ArrayVectors(np.concatenate(pieces)[:n])


def _open(spec: SourceSpec, base: Path, data: object | None, name: str, out: Path | str) -> RowSource:
    return open_source(spec, base, leave_out=out) if data is None else table_source(spec, data, name)


def _fingerprint_table(spec: GeneratorSpec, source: SourceSpec, digests: list[dict[str, Any]]) -> str:
    policies = {kind: spec.checks.policy(kind, spec.metric) for kind in type(spec.checks).model_fields}
    columns = {"id": source.id, "vector": source.vector, "columns": source.columns}
    return fingerprint([columns, policies, [[d["name"], d["blake2b"]] for d in digests]])[:16]
