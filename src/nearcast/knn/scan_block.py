"""Blocks of vectors for a float32 matrix product, and a bound on the error of its scores.

A pair whose scan score plus the bound is below a threshold is below it by its true score. Knows nothing of ids or
files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.types import AnyArray, FloatArray, IntArray, Metric

__all__ = ["ScanBlock", "error_bound", "prepare_block", "round_down", "scan_scores"]

FLOAT32_UNIT = 2.0**-24

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScanBlock:
    """One block of vectors, prepared for the matrix product."""

    matrix: FloatArray  # (rows, dim) as the product wants it
    squares: FloatArray  # (rows,) squared Euclidean lengths of the matrix's rows
    lengths: FloatArray  # (rows,) their lengths, rounded up


def prepare_block(vectors: AnyArray, metric: Metric) -> ScanBlock:
    """Convert vectors to float32, of unit length under cosine, and measure them."""
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.dtype == np.float16 and metric is Metric.COSINE:
        return _prepare_halves(matrix)
    wide = matrix.astype(np.float64)
    squares = np.einsum("ij,ij->i", wide, wide)
    if metric is Metric.COSINE:
        lengths = np.sqrt(squares)
        wide *= np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)[:, None]
        matrix, squares = wide.astype(np.float32), (lengths > 0).astype(np.float64)
    return ScanBlock(matrix, squares.astype(np.float32), (np.sqrt(squares) * (1 + 1e-6)).astype(np.float32))


def _prepare_halves(matrix: FloatArray) -> ScanBlock:
    """Scale vectors that were float16 to unit length, in place. Their squares neither overflow nor vanish."""
    lengths = np.sqrt(np.einsum("ij,ij->i", matrix, matrix))
    matrix *= np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)[:, None]
    units = (lengths > 0).astype(np.float32)
    slack = np.float32(1 + matrix.shape[1] * FLOAT32_UNIT + 1e-6)
    return ScanBlock(matrix, units, units * slack)


def scan_scores(
    left: ScanBlock, right: ScanBlock, metric: Metric, excluded: tuple[IntArray, IntArray] | None
) -> FloatArray:
    """Return (left rows, right rows) scores, each within `error_bound` of the true one; -inf for excluded pairs."""
    scan = left.matrix @ right.matrix.T
    if metric is Metric.L2:
        scan *= 2
        scan -= right.squares[None, :]
        scan -= left.squares[:, None]
    if excluded is not None:
        scan[excluded] = -np.inf
    return scan


def error_bound(left: ScanBlock, right: ScanBlock, metric: Metric) -> Float64Array:
    """Return (rows of left,) the largest difference of a scan score of this block from the reported score.

    A float32 sum of d products, added in any order, is off by at most g * |q| * |x| with
    g = d * u / (1 - d * u), u = 2**-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
    section 3.1, with Cauchy-Schwarz). A few more units cover the other roundings: the
    normalization under cosine (three roundings a component), the norms and the sums under L2, and the
    final rounding of the reported score. A factor of 2 is left on top: of float16 under cosine, the lengths of both
    vectors take it, each the root of a float32 sum, and so off by at most d * u / 2.
    """
    dim = left.matrix.shape[1]
    units = (dim + 8) * FLOAT32_UNIT
    g = 2 * units / (1 - units)
    q: Float64Array = left.lengths.astype(np.float64)
    x = float(right.lengths.max(initial=0))
    scale = (q + x) ** 2 if metric is Metric.L2 else q * x
    bound: Float64Array = g * scale + 1e-37  # the constant covers values that float32 flushes to zero
    return bound


def round_down(values: Float64Array) -> FloatArray:
    """Round to float32 numbers that are smaller."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    return np.nextafter(rounded, np.float32(-np.inf))
