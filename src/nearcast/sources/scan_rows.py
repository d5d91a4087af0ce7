"""The scan of a source: one pass that reads ids and vectors, and gives every row a state. Selects the rows to keep.

Policies of the spec decide which rows are kept; `validate_rows` reports the others. Knows nothing of messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.sources.ids import argsort_ids, repeats
from nearcast.sources.matrix import RowState, common_dtype, compute_lengths, list_lengths, to_matrix
from nearcast.sources.row_source import RowSource
from nearcast.spec import GeneratorSpec
from nearcast.types import FloatArray, IntArray, Progress, no_progress

__all__ = ["CHECK_OF_STATE", "KeptRows", "Scan", "scan_rows", "select_rows"]

# the spec's check that decides over rows of each state
CHECK_OF_STATE = {
    RowState.NULL_VECTOR: "null_vector",
    RowState.WRONG_DIMENSION: "wrong_dimension",
    RowState.NOT_FINITE: "not_finite",
    RowState.ZERO_VECTOR: "zero_vector",
}


@dataclass(frozen=True, slots=True)
class Scan:
    """The result of a pass over a source. Row i is the i-th row of all its parts."""

    source: RowSource
    ids: pa.Array  # (n,) int64 or large_string
    states: npt.NDArray[np.uint8]  # (n,) RowState of each row's vector
    lengths: FloatArray  # (n,) Euclidean length of each row's vector
    order: IntArray  # (n,) row numbers in the order of ids
    repeated: npt.NDArray[np.bool_]  # (n,) True if an earlier row has the same id
    dim: int  # of most vectors
    dtype: np.dtype[Any]  # that the vectors are ingested in


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Numbers of the kept rows, in the order of their ids."""

    vector_rows: IntArray  # rows that take part in the join
    listed_rows: IntArray  # the same, and rows kept in the table without a usable vector


def scan_rows(source: RowSource, *, memory_bytes: int, table: str, progress: Progress = no_progress) -> Scan:
    """Read ids and vectors of a source in batches, and give every row a state.

    The dimension is that of most vectors: the first one's is assumed, and if it is not the most frequent, the source
    is read a second time. table: "items" or "queries", for progress.
    """
    lengths: Counter[int] = Counter()
    report = partial(progress, f"check {table}")
    scan = _scan_with_dimension(source, None, lengths, memory_bytes, report)
    common = max(lengths, key=lambda length: lengths[length], default=scan.dim)
    return scan if common == scan.dim else _scan_with_dimension(source, common, Counter(), memory_bytes, report)


def _scan_with_dimension(
    source: RowSource,
    dim: int | None,
    lengths: Counter[int],
    memory_bytes: int,
    progress: Callable[[int, int], None],
) -> Scan:
    """Scan once; vectors of `dim` components are good. Counts the vectors of each length into `lengths`."""
    ids: list[pa.Array] = []
    states: list[npt.NDArray[np.uint8]] = []
    norms: list[FloatArray] = []
    done = 0
    for batch in source.batches(vectors=True, attributes=False, memory_bytes=memory_bytes):
        sizes = list_lengths(batch.vectors)
        sizes = sizes[sizes > 0]
        lengths.update(dict(zip(*(part.tolist() for part in np.unique(sizes, return_counts=True)), strict=True)))
        dim = int(sizes[0]) if dim is None and len(sizes) else dim
        matrix, batch_states = to_matrix(batch.vectors, dim or 1)
        norm, batch_states = compute_lengths(matrix, batch_states)
        ids.append(batch.ids)
        states.append(batch_states)
        norms.append(norm)
        done += len(batch_states)
        progress(done, source.n_rows)
    all_ids = pa.concat_arrays(ids) if ids else pa.array([], source.id_type)
    order = argsort_ids(all_ids)
    return Scan(
        source,
        all_ids,
        np.concatenate(states) if states else np.empty(0, np.uint8),
        np.concatenate(norms) if norms else np.empty(0, np.float32),
        order,
        repeats(all_ids, order),
        dim or 0,
        common_dtype({part.vector_type.value_type for part in source.parts}),
    )


def select_rows(scan: Scan, spec: GeneratorSpec) -> KeptRows:
    """Apply the policies of the spec: select the rows that are joined, and the rows listed without a vector."""
    has_own_id = scan.ids.is_valid().to_numpy(zero_copy_only=False) & ~scan.repeated
    joined, listed = has_own_id.copy(), has_own_id.copy()
    for state, check in CHECK_OF_STATE.items():
        in_state = scan.states == state
        is_kept = spec.checks.policy(check, spec.metric) == "keep"
        if not is_kept:
            listed &= ~in_state
        if not (is_kept and state is RowState.ZERO_VECTOR):  # a kept zero vector is joined like any other
            joined &= ~in_state
    return KeptRows(scan.order[joined[scan.order]], scan.order[listed[scan.order]])
