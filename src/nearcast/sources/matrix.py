"""Conversion of Arrow lists to a NumPy matrix, with a state for every row. Knows nothing of ids, files or policies."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.kernels import compute_norms
from nearcast.types import VECTOR_DTYPES, AnyArray, FloatArray

__all__ = ["RowState", "common_dtype", "compute_lengths", "list_lengths", "refuse_masked", "to_matrix"]

LONGEST = 1e18  # largest Euclidean length whose square fits float32


class RowState(IntEnum):
    """State of a row's vector: good, or the fault."""

    GOOD = 0
    NULL_VECTOR = 1
    WRONG_DIMENSION = 2
    NOT_FINITE = 3
    ZERO_VECTOR = 4


States = npt.NDArray[np.uint8]


def list_lengths(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return (rows,) the number of components of each list, -1 for a null."""
    if pa.types.is_fixed_size_list(column.type):
        lengths = np.full(len(column), column.type.list_size, np.int64)
        lengths[column.is_null().to_numpy(zero_copy_only=False)] = -1
        return lengths
    sizes: npt.NDArray[np.int64] = (
        pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    )
    return sizes


def to_matrix(column: pa.Array, dim: int) -> tuple[AnyArray, States]:
    """Return a (rows, dim) matrix and (rows,) states. Null rows, and rows of another length, are zeros."""
    lengths = list_lengths(column)
    states = np.zeros(len(column), np.uint8)
    states[lengths < 0] = RowState.NULL_VECTOR
    states[(lengths >= 0) & (lengths != dim)] = RowState.WRONG_DIMENSION
    good = states == RowState.GOOD
    kept = column if good.all() else column.filter(pa.array(good))
    flat = _to_floats(kept.flatten())
    if good.all():
        return flat.reshape(-1, dim), states
    matrix = np.zeros((len(column), dim), flat.dtype)
    matrix[good] = flat.reshape(-1, dim)
    return matrix, states


def compute_lengths(matrix: AnyArray, states: States) -> tuple[FloatArray, States]:
    """Return (rows,) Euclidean lengths, and the states with not-finite and zero vectors added."""
    with np.errstate(over="ignore", invalid="ignore"):
        stored = matrix if matrix.dtype.name in VECTOR_DTYPES else matrix.astype(np.float32)
        lengths = compute_norms(np.ascontiguousarray(stored)).astype(np.float32)
    states = states.copy()
    good = states == RowState.GOOD
    states[good & ~(lengths <= LONGEST)] = RowState.NOT_FINITE
    short = np.flatnonzero(good & (lengths == 0))
    states[short[~stored[short].any(axis=1)]] = RowState.ZERO_VECTOR
    return lengths, states


def common_dtype(kinds: set[pa.DataType]) -> np.dtype[Any]:
    """Return the dtype that vectors of these element types are stored in: their own if there is one, else float32."""
    names = {np.dtype(kind.to_pandas_dtype()).name for kind in kinds}
    only = names.pop() if len(names) == 1 else ""
    return np.dtype(only if only in VECTOR_DTYPES else "float32")


def refuse_masked(data: object, what: str) -> None:
    """Raise InputError for a masked array, alone or in a list: Arrow and NumPy ignore the mask."""
    is_masked = isinstance(data, np.ma.MaskedArray)
    if is_masked or (isinstance(data, list | tuple) and any(isinstance(row, np.ma.MaskedArray) for row in data)):
        raise InputError(f"{what} are a masked array, whose mask would be ignored; leave those rows out, or fill them")


def _to_floats(values: pa.Array) -> AnyArray:
    """Return flat components; a null becomes NaN."""
    if values.null_count:
        values = values.cast(pa.float32())
        filled: AnyArray = pc.fill_null(values, float("nan")).to_numpy(zero_copy_only=False)
        return filled
    flat: AnyArray = values.to_numpy(zero_copy_only=False)
    return flat
