"""From sources to two ingested sides: open, scan, judge, ingest; or open again what an earlier run has ingested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.files import fingerprint, is_done, read_manifest
from nearcast.join.listener import Listener
from nearcast.sources.ingest import IngestedTable, Inputs, ingest, ingest_bytes, ingest_memory, open_ingested_table
from nearcast.sources.matrix import RowState, lengths_and_states, to_matrix
from nearcast.sources.memory_tables import table_source
from nearcast.sources.open_source import open_source
from nearcast.sources.parquet_files import ParquetFiles
from nearcast.sources.row_source import RowSource
from nearcast.sources.validate_rows import (
    Report,
    Scan,
    TableReport,
    check_id_types,
    judge,
    judge_side,
    kept_rows,
    scan,
    stop_on_errors,
)
from nearcast.spec import GeneratorSpec, SourceSpec
from nearcast.types import ArrayVectors, Progress

__all__ = [
    "Checked",
    "InMemoryTables",
    "Sources",
    "check_inputs",
    "ingest_inputs",
    "ingested_folders",
    "open_sources",
    "trial_vectors",
]

TRIAL_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class InMemoryTables:
    """Tables in memory that replace the files of a spec: Arrow, pandas, polars, or pairs (ids, vectors)."""

    items: object | None = None  # None: the spec's files
    queries: object | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """Both sides, unread, with the hashes of their contents. `queries is items` for a join of a set with itself."""

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
    """Both sides, judged. A scan is None where an earlier run has ingested the same rows already."""

    sources: Sources
    report: Report
    item_scan: Scan | None
    query_scan: Scan | None
    item_folder: Path
    query_folder: Path
    disk_bytes: int  # that ingesting will take
    memory_bytes: int  # the same, at its peak


def open_sources(spec: GeneratorSpec, base: Path, listener: Listener, tables: InMemoryTables | None = None) -> Sources:
    """Open items and queries, in files or in memory, and hash their contents. Notes skipped files to the listener.

    Raises InputError if a file changes meanwhile.
    """
    tables = tables or InMemoryTables()
    out = base / spec.out
    item_source = _open(spec.items, base, tables.items, "items", out)
    own_queries = spec.queries is not None or tables.queries is not None
    query_source = _open(spec.query_source, base, tables.queries, "queries", out) if own_queries else item_source
    check_id_types(item_source, query_source, exclude_self=spec.exclude_self)
    for text in dict.fromkeys((*item_source.notes, *query_source.notes)):
        listener.note(text)
    item_digests = item_source.digests()
    listener.progress("hash inputs", 1, 2)
    query_digests = query_source.digests() if own_queries else item_digests
    listener.progress("hash inputs", 2, 2)
    return Sources(item_source, query_source, item_digests, query_digests)


def ingested_folders(spec: GeneratorSpec, sources: Sources, artifacts: Path) -> tuple[Path, Path]:
    """Where items and queries are ingested to: folders named by what decides their contents."""
    items = artifacts / f"items-{_side_fingerprint(spec, spec.items, sources.item_digests)}"
    if sources.queries is sources.items:
        return items, items
    return items, artifacts / f"queries-{_side_fingerprint(spec, spec.query_source, sources.query_digests)}"


def check_inputs(
    spec: GeneratorSpec,
    sources: Sources,
    artifacts: Path,
    *,
    memory_bytes: int,
    progress: Progress,
    checked: Callable[[Report], None],
) -> Checked:
    """Scan what was not ingested before, judge both sides, and raise InputError where a policy says so."""
    item_folder, query_folder = ingested_folders(spec, sources, artifacts)
    item_scan, items = _scan_or_recall("items", sources.items, item_folder, spec, memory_bytes, progress)
    query_scan, queries = item_scan, items
    if sources.queries is not sources.items:
        query_scan, queries = _scan_or_recall("queries", sources.queries, query_folder, spec, memory_bytes, progress)
    report = judge(items, queries, spec)
    checked(report)
    stop_on_errors(report)
    scans = [s for s in {id(item_scan): item_scan, id(query_scan): query_scan}.values() if s is not None]
    disk_bytes = sum(ingest_bytes(seen, kept_rows(seen, spec)) for seen in scans)
    memory = max((ingest_memory(seen, memory_bytes) for seen in scans), default=0)
    return Checked(sources, report, item_scan, query_scan, item_folder, query_folder, disk_bytes, memory)


def ingest_inputs(spec: GeneratorSpec, checked: Checked, *, memory_bytes: int, progress: Progress) -> Inputs:
    """Write both sides in id order, or open them where that is done."""

    def side(name: str, seen: Scan | None, folder: Path, report: TableReport) -> IngestedTable:
        if seen is None:
            return open_ingested_table(folder)
        manifest = {"side": asdict(report)}
        kept = kept_rows(seen, spec)
        return ingest(seen, kept, folder, manifest, memory_bytes=memory_bytes, side=name, progress=progress)

    items = side("items", checked.item_scan, checked.item_folder, checked.report.items)
    if checked.query_folder == checked.item_folder:
        return Inputs(items, items)
    return Inputs(items, side("queries", checked.query_scan, checked.query_folder, checked.report.queries))


def trial_vectors(checked: Checked, memory_bytes: int) -> ArrayVectors:
    """A first block of good items, in memory, for an engine to time itself on."""
    report = checked.report.items
    wanted = max(1, min(TRIAL_ROWS, report.vectors, memory_bytes // 4 // (report.dim * 8)))
    if checked.item_scan is None:
        return ArrayVectors(np.array(open_ingested_table(checked.item_folder).vectors.read(0, wanted)))
    pieces: list[np.ndarray[Any, Any]] = []
    batches = checked.sources.items.batches(vectors=True, attributes=False, memory_bytes=memory_bytes // 4)
    for batch in batches:
        matrix, states = to_matrix(batch.vectors, report.dim)
        usable = np.isin(lengths_and_states(matrix, states)[1], (RowState.GOOD, RowState.ZERO_VECTOR))
        pieces.append(matrix[usable].astype(report.dtype, copy=False))
        if sum(len(piece) for piece in pieces) >= wanted:
            break
    return ArrayVectors(np.concatenate(pieces)[:wanted])


def _open(spec: SourceSpec, base: Path, data: object | None, name: str, out: Path) -> RowSource:
    return open_source(spec, base, leave_out=out) if data is None else table_source(spec, data, name)


def _scan_or_recall(
    side: str, source: RowSource, folder: Path, spec: GeneratorSpec, memory_bytes: int, progress: Progress
) -> tuple[Scan | None, TableReport]:
    if is_done(folder):
        return None, TableReport.from_dict(read_manifest(folder)["side"])
    seen = scan(source, memory_bytes=memory_bytes, side=side, progress=progress)
    return seen, judge_side(side, seen, spec)


def _side_fingerprint(spec: GeneratorSpec, source: SourceSpec, digests: list[dict[str, Any]]) -> str:
    policies = {kind: spec.checks.policy(kind, spec.metric) for kind in type(spec.checks).model_fields}
    columns = {"id": source.id, "vector": source.vector, "columns": source.columns}
    return fingerprint([columns, policies, [[d["name"], d["blake2b"]] for d in digests]])[:16]
