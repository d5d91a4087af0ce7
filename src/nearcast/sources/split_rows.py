"""The first stage of ingestion: read a unit of a source once, check its rows, and write them by id range.

Every row gets a state. The facts of a unit are counts with the first examples; they add up over units. Knows nothing of
policies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.sources.column_roles import one_array
from nearcast.sources.ids import are_distinct, argsort_ids, lower_bound, repeats
from nearcast.sources.matrix import RowState, common_dtype, compute_lengths, list_lengths, to_matrix
from nearcast.sources.pieces import PieceSink, make_piece
from nearcast.sources.row_source import RowBatch, RowSource
from nearcast.sources.row_units import RowUnit
from nearcast.types import IntArray

__all__ = ["CHECK_OF_STATE", "EXAMPLES", "SplitSettings", "find_common_length", "split_unit", "vector_dtype"]

EXAMPLES = 3
# the spec's check that decides over rows of each state
CHECK_OF_STATE = {
    RowState.NULL_VECTOR: "null_vector",
    RowState.WRONG_DIMENSION: "wrong_dimension",
    RowState.NOT_FINITE: "not_finite",
    RowState.ZERO_VECTOR: "zero_vector",
}


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """The settings of a split."""

    bounds: pa.Array  # (ranges - 1,) the lower bound of every id range but the first
    memory_bytes: int
    dim: int | None = None  # of good vectors; None: of the unit's first vector
    with_vectors: bool = True  # False: only states and lengths of the vectors are kept
    read_ahead: bool = False  # decode the next batch in a thread of its own


def vector_dtype(source: RowSource) -> np.dtype[Any]:
    """Return the dtype that the vectors of a source are ingested in."""
    return common_dtype({part.vector_type.value_type for part in source.parts})


def find_common_length(lengths: Counter[int]) -> int:
    """Return the length of most vectors, the smallest of equally frequent ones; 0 if there is none."""
    return min(lengths, key=lambda length: (-lengths[length], length), default=0)


def split_unit(
    source: RowSource,
    unit: RowUnit,
    settings: SplitSettings,
    sink: PieceSink,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Read a unit, and write its rows into `sink` by id range. Return the facts of the unit.

    progress: called with the number of rows read since the last call.
    Raises InputError if a file that is read was changed since the source was opened.
    """
    splitter = _Splitter(source, settings, sink)
    batch_bytes = settings.memory_bytes // (8 if settings.read_ahead else 4)
    batches = source.batches(vectors=True, attributes=True, memory_bytes=batch_bytes, spans=unit.spans)
    for batch in _read_ahead(batches) if settings.read_ahead else batches:
        splitter.add(batch)
        progress(len(batch.ids))
    splitter.flush()
    return splitter.facts()


def _read_ahead(batches: Iterator[RowBatch]) -> Iterator[RowBatch]:
    """Yield the batches; a thread reads the next one meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = pool.submit(next, batches, None)
            yield batch


class _Splitter:
    """Buffers the rows of a unit by range; writes them when the buffers are full."""

    def __init__(self, source: RowSource, settings: SplitSettings, sink: PieceSink) -> None:
        self._settings = settings
        self._sink = sink
        self._dtype = vector_dtype(source)
        self._schema = pa.schema(list(source.attribute_types.items()))
        self._dim = settings.dim
        self._lengths: Counter[int] = Counter()
        self._rows = 0
        self._faults: dict[str, tuple[int, list[list[Any]]]] = {}
        self._range_rows: Counter[int] = Counter()
        self._buffers: dict[int, list[pa.Table]] = {}
        self._buffered = 0

    def add(self, batch: RowBatch) -> None:
        """Check the rows of a batch and buffer them."""
        assert batch.vectors is not None
        self._count_lengths(batch.vectors)
        matrix, states = to_matrix(batch.vectors, self._dim or 1)
        lengths, states = compute_lengths(matrix, states)
        for state, kind in CHECK_OF_STATE.items():
            self._note(kind, batch.ids, states == state)
        has_id = batch.ids.is_valid().to_numpy(zero_copy_only=False)
        self._note("null_id", batch.ids, ~has_id)
        rows = np.arange(self._rows, self._rows + len(states))
        self._rows += len(states)
        with np.errstate(over="ignore", invalid="ignore"):  # of vectors that are not finite, which are not stored
            stored = matrix.astype(self._dtype, copy=False) if self._settings.with_vectors else None
        attributes = batch.attributes.cast(self._schema)
        columns = {name: attributes.column(name) for name in attributes.column_names}
        piece = make_piece(batch.ids, rows, states, lengths, stored, columns)
        self._buffer(piece if has_id.all() else piece.filter(pa.array(has_id)))

    def flush(self) -> None:
        """Write the buffered rows of every range; of rows with one id, the first, unless the range is the whole table.

        There, repeated ids are found when the range is sorted, and a hash table of them here would save nothing.
        """
        for number, tables in sorted(self._buffers.items()):
            piece = pa.concat_tables(tables)
            if len(self._settings.bounds):
                piece = self._drop_repeats(piece)
            self._range_rows[number] += len(piece)
            self._sink.append(number, piece)
        self._buffers, self._buffered = {}, 0

    def facts(self) -> dict[str, Any]:
        """Return what was counted, as plain data."""
        return {
            "rows": self._rows,
            "dim": self._dim or 0,
            "lengths": {str(length): count for length, count in sorted(self._lengths.items())},
            "faults": {kind: {"count": n, "examples": examples} for kind, (n, examples) in self._faults.items()},
            "ranges": {str(number): count for number, count in sorted(self._range_rows.items())},
        }

    def _count_lengths(self, vectors: pa.Array) -> None:
        sizes = list_lengths(vectors)
        sizes = sizes[sizes > 0]
        lengths, counts = np.unique(sizes, return_counts=True)
        self._lengths.update(dict(zip(lengths.tolist(), counts.tolist(), strict=True)))
        if self._dim is None and len(sizes):
            self.flush()  # rows without a vector, which have no width yet
            self._dim = int(sizes[0])

    def _note(self, kind: str, ids: pa.Array, is_bad: npt.NDArray[np.bool_]) -> None:
        """Count the bad rows of a batch, and keep the first ones as examples: number and id."""
        count, examples = self._faults.get(kind, (0, []))
        bad = np.flatnonzero(is_bad)
        more = [[self._rows + int(row), ids[int(row)].as_py()] for row in bad[: EXAMPLES - len(examples)]]
        if len(bad):
            self._faults[kind] = (count + len(bad), examples + more)

    def _buffer(self, piece: pa.Table) -> None:
        bounds = self._settings.bounds
        if not len(piece):
            return
        if not len(bounds):
            self._buffers.setdefault(0, []).append(piece)
        else:
            numbers = find_ranges(one_array(piece.column("id")), bounds)
            order = np.argsort(numbers, kind="stable")
            piece = piece.take(pa.array(order))
            cuts = np.searchsorted(numbers[order], np.arange(len(bounds) + 2))
            for number in np.flatnonzero(np.diff(cuts)):
                part = piece.slice(int(cuts[number]), int(cuts[number + 1] - cuts[number]))
                self._buffers.setdefault(int(number), []).append(part)
        self._buffered += piece.nbytes
        if self._buffered > self._settings.memory_bytes // 2:
            self.flush()

    def _drop_repeats(self, piece: pa.Table) -> pa.Table:
        """Drop rows whose id occurs before in the piece, and count them."""
        ids = one_array(piece.column("id"))
        if are_distinct(ids):
            return piece
        repeated = repeats(ids, argsort_ids(ids))
        count, examples = self._faults.get("duplicate_id", (0, []))
        found = piece.filter(pa.array(repeated)).select(["row", "id"]).slice(0, EXAMPLES).to_pylist()
        examples = sorted([*examples, *([one["row"], one["id"]] for one in found)])[:EXAMPLES]
        self._faults["duplicate_id"] = (count + int(np.count_nonzero(repeated)), examples)
        return piece.filter(pa.array(~repeated))


def find_ranges(ids: pa.Array, bounds: pa.Array) -> IntArray:
    """Return (n,) the number of the range of each id. ids: without nulls; bounds: sorted."""
    if pa.types.is_integer(ids.type):
        values, edges = (part.to_numpy(zero_copy_only=False) for part in (ids, bounds))
        numbers: IntArray = np.searchsorted(edges, values, "right")
        return numbers
    order = argsort_ids(ids)
    ordered = ids.take(pa.array(order))
    cuts, start = [0], 0
    for bound in bounds.to_pylist():
        start = lower_bound(ordered, bound, start, len(ordered))
        cuts.append(start)
    found = np.empty(len(ids), np.int64)
    found[order] = np.repeat(np.arange(len(bounds) + 1), np.diff([*cuts, len(ids)]))
    return found
