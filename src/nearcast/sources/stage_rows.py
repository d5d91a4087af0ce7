"""A table between the two stages of its ingestion, in one process: read once, checked, cut by id range.

Units are read by several threads. Pieces stay in memory as long as they fit a quarter of the budget; others go to a
scratch folder that is removed with the table.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.sources.freed_memory import return_freed_memory
from nearcast.sources.id_splitters import RANGE_ROWS, choose_splitters, sample_ids
from nearcast.sources.ids import id_sizes
from nearcast.sources.norms import measure_lengths, summarize_norms
from nearcast.sources.pieces import MemoryPieces, PieceFolder, PieceSink
from nearcast.sources.range_rows import KeptStates, RangeRows, find_duplicates, keep_states, select_range
from nearcast.sources.row_source import RowSource
from nearcast.sources.row_units import UNIT_ROWS, RowUnit, cut_units
from nearcast.sources.split_rows import SplitSettings, split_unit, vector_dtype
from nearcast.sources.table_facts import TableFacts, count_lengths, find_lost_units, merge_facts
from nearcast.spec import GeneratorSpec
from nearcast.types import Progress, no_progress

__all__ = [
    "ROW_BYTES",
    "RowCounter",
    "StageSettings",
    "StagedTable",
    "count_range_workers",
    "map_in_threads",
    "stage_table",
]

ROW_BYTES = 96  # of a row while its range is sorted and written, without its vector
SMALLEST_UNIT = 1 << 14  # rows
UNITS_PER_THREAD = 4
ORDERS_SHARE = 16  # of the memory: for the order of the rows, so that they are not sorted again to be written


@dataclass(frozen=True, slots=True)
class StageSettings:
    """Limits of staging a table in this process."""

    memory_bytes: int
    threads: int = 1
    scratch: Path | None = None  # where pieces go that do not fit the memory; None: the system's folder
    range_rows: int = RANGE_ROWS
    unit_rows: int = UNIT_ROWS
    with_vectors: bool = True  # False for a check, which needs ids and attributes alone


@dataclass(frozen=True, slots=True)
class StagedTable:
    """The rows of a source by id range, and the facts of the whole table."""

    source: RowSource
    facts: TableFacts
    kept: KeptStates
    bounds: pa.Array  # (ranges - 1,) the lower bound of every range but the first
    ranges: tuple[Mapping[str, Any], ...]  # facts of each range
    units: tuple[Mapping[str, Any], ...]  # facts of each unit
    sinks: tuple[PieceSink, ...]  # the pieces of each unit
    orders: Mapping[int, npt.NDArray[Any]]  # by range: its rows in the order of ids; empty if memory is short
    threads: int  # ranges that are written at a time

    def open_range(self, number: int) -> RangeRows:
        """Sort and select the rows of a range."""
        pieces = [(unit, piece) for unit, sink in enumerate(self.sinks) for piece in sink.read(number)]
        return select_range(pieces, self.source.id_type, self.kept, self.orders.get(number))


def stage_table(
    source: RowSource, spec: GeneratorSpec, settings: StageSettings, table: str, progress: Progress = no_progress
) -> StagedTable:
    """Read a source once, and return its rows by id range. table: "items" or "queries", for progress.

    The dimension is that of most vectors: each unit assumes that of its first vector, and units that assumed another
    one are read again. Ids are read twice if the table has several ranges.
    Raises InputError if a file was changed since the source was opened.
    """
    small = max(SMALLEST_UNIT, source.n_rows // (UNITS_PER_THREAD * settings.threads))  # so that threads end together
    units = cut_units(source, settings.unit_rows if settings.threads == 1 else min(settings.unit_rows, small))
    workers = max(1, min(settings.threads, len(units)))
    share = settings.memory_bytes // workers
    bounds = pa.array([], source.id_type)
    if source.n_rows > settings.range_rows:
        looked = RowCounter(partial(progress, f"sample {table}"), source.n_rows)

        def sample(unit: RowUnit) -> tuple[int, pa.Array]:
            found = sample_ids(source, unit, share, settings.range_rows)
            looked(found[0])
            return found

        sampled = map_in_threads(workers, sample, units)
        bounds = choose_splitters(sum(rows for rows, _ in sampled), [ids for _, ids in sampled], settings.range_rows)
    ahead = settings.threads > len(units)
    split = SplitSettings(bounds, share // 2, with_vectors=settings.with_vectors, read_ahead=ahead)
    store = _PieceStore(settings.memory_bytes // 4, settings.scratch)
    count = RowCounter(partial(progress, f"check {table}"), source.n_rows)

    def split_again(unit: RowUnit, dim: int | None) -> tuple[Mapping[str, Any], PieceSink]:
        sink = _SpillingPieces(store)
        return split_unit(source, unit, replace(split, dim=dim), sink, count), sink

    done = map_in_threads(workers, partial(split_again, dim=None), units)
    facts = [one for one, _ in done]
    dim = count_lengths(facts)
    lost = find_lost_units(facts, dim)
    for number, again in zip(
        lost, map_in_threads(workers, lambda number: split_again(units[number], dim), lost), strict=True
    ):
        done[number] = again
    return_freed_memory()  # of the threads that read
    return _merge(source, keep_states(spec), bounds, done, settings)


def _merge(
    source: RowSource,
    kept: KeptStates,
    bounds: pa.Array,
    done: Sequence[tuple[Mapping[str, Any], PieceSink]],
    settings: StageSettings,
) -> StagedTable:
    units, sinks = tuple(facts for facts, _ in done), tuple(sink for _, sink in done)
    dtype, rows = vector_dtype(source), sum(facts["rows"] for facts in units)
    nothing = TableFacts(rows, 0, 0, 0, dtype.name, {}, ())
    orders: dict[int, npt.NDArray[Any]] = {}
    staged = StagedTable(source, nothing, kept, bounds, (), units, sinks, orders, settings.threads)
    dropped = dropped_duplicates(units)
    norms = None
    n_ranges = len(bounds) + 1
    keep_orders = 4 * rows < settings.memory_bytes // ORDERS_SHARE

    def measure(number: int) -> dict[str, Any]:
        nonlocal norms
        opened = staged.open_range(number)
        if keep_orders:
            orders[number] = opened.order.astype(np.uint32)
        if n_ranges == 1:
            norms = summarize_norms(opened.lengths)
        return measure_range(opened, dropped, None if n_ranges == 1 else rows)

    workers = count_range_workers(settings.threads, n_ranges, -(-rows // n_ranges), settings.memory_bytes)
    ranges = map_in_threads(workers, measure, range(n_ranges))
    facts = merge_facts(units, ranges, dtype, norms)
    return replace(staged, facts=facts, ranges=tuple(ranges))


def dropped_duplicates(units: Sequence[Mapping[str, Any]]) -> dict[int, list[list[Any]]]:
    """Return by unit the examples of duplicates that the split dropped: row and id."""
    faults = ((number, unit["faults"].get("duplicate_id")) for number, unit in enumerate(units))
    return {number: fault["examples"] for number, fault in faults if fault}


def measure_range(rows: RangeRows, dropped: Mapping[int, Any], table_rows: int | None) -> dict[str, Any]:
    """Return the facts of a range as plain data.

    table_rows: rows of the whole table; None if the range is the whole table, whose lengths need no sample.
    """
    facts = {
        "rows": len(rows.ids),
        "id_bytes": int(rows.ids.nbytes),
        "vectors": len(rows.vector_rows),
        "listed": len(rows.listed_rows),
        "listed_id_bytes": int(id_sizes(rows.ids)[rows.listed_rows].sum()),
        "duplicates": find_duplicates(rows, dropped),
    }
    if table_rows is None:
        return facts
    return facts | {"lengths": measure_lengths(rows.ids.take(pa.array(rows.vector_rows)), rows.lengths, table_rows)}


class _PieceStore:
    """A memory budget that the pieces of all units share, and the scratch folder for the others."""

    def __init__(self, memory_bytes: int, scratch: Path | None) -> None:
        self._left = memory_bytes
        self._scratch = scratch
        self._home: str | None = None
        self._lock = threading.Lock()

    def reserve(self, size: int) -> bool:
        """Take memory from the budget. Return whether there was enough."""
        with self._lock:
            is_enough = size <= self._left
            self._left -= size if is_enough else 0
            return is_enough

    def make_folder(self) -> PieceFolder:
        """Create a folder for the pieces of a unit."""
        with self._lock:
            if self._home is None:
                if self._scratch is not None:
                    self._scratch.mkdir(parents=True, exist_ok=True)
                self._home = tempfile.mkdtemp(prefix=".attempt-pieces-", dir=self._scratch)
                weakref.finalize(self, shutil.rmtree, self._home, ignore_errors=True)
            return PieceFolder(Path(tempfile.mkdtemp(dir=self._home)))


class _SpillingPieces:
    """The pieces of one unit: in memory as long as the budget lasts, then in a folder."""

    def __init__(self, store: _PieceStore) -> None:
        self._store = store
        self._memory = MemoryPieces()
        self._folder: PieceFolder | None = None

    def append(self, number: int, piece: pa.Table) -> None:
        """Keep or write the rows."""
        if self._folder is None and self._store.reserve(piece.nbytes):
            self._memory.append(number, piece)
            return
        self._folder = self._folder or self._store.make_folder()
        self._folder.append(number, piece)

    def read(self, number: int) -> list[pa.Table]:
        """Return the rows, in the order in which they came."""
        return self._memory.read(number) + ([] if self._folder is None else self._folder.read(number))


class RowCounter:
    """Adds up the rows that several threads have read, and reports them."""

    def __init__(self, report: Callable[[int, int], None], total: int) -> None:
        self._report = report
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, rows: int) -> None:
        """Count rows that were read."""
        with self._lock:
            self._done += rows
            self._report(self._done, max(self._done, self._total))


def count_range_workers(threads: int, ranges: int, rows: int, memory_bytes: int) -> int:
    """Return how many ranges of so many rows are sorted and written at a time, within half of the memory."""
    return max(1, min(threads, ranges, memory_bytes // 2 // max(1, ROW_BYTES * rows)))


def map_in_threads(workers: int, function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
    """Return the function's results, in order; with one worker, computed in this thread."""
    if workers == 1:
        return [function(value) for value in values]
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(function, value) for value in values]
        try:
            return [future.result() for future in running]
        finally:
            for future in running:
                future.cancel()
