"""Drift of a table's vectors since an earlier snapshot, measured on sketches: the vectors of a sample of ids.

Arrays in, figures out. A sketch keeps its ids from run to run, so that a difference is one of vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.measure.recall import draw_rows
from nearcast.types import FloatArray, IntArray, Vectors

__all__ = ["VectorDrift", "compare_sketches", "find_repeats", "sample_sketch_rows"]

SKETCHED = 1024
FEWEST_SHARED = 32  # ids in both sketches; with fewer, the drift is not measured
COMPARED_BYTES = 8 << 20  # of vectors
CHANGED = 0.9  # least cosine of a vector with its later self


@dataclass(frozen=True, slots=True)
class VectorDrift:
    """The difference of two sketches."""

    drift: float  # median of 1 - cosine of an id's old and new vector; NaN with too few shared ids
    shift: float  # of the mean vector, relative to the vectors' root mean square distance from it
    changed: IntArray  # rows of the old sketch whose ids now have another vector


def sample_sketch_rows(n: int, kept: IntArray, seed: int) -> IntArray:
    """Return sorted positions (of 0..n-1) to sketch: the kept ones of the last sketch, and random ones."""
    drawn = draw_rows(n, SKETCHED, [seed, 5])
    fresh = drawn[~np.isin(drawn, kept)]
    rows: IntArray = np.sort(np.concatenate([kept, fresh[: max(0, SKETCHED - len(kept))]]))
    return rows


def compare_sketches(then: FloatArray, now: FloatArray, matches: IntArray) -> VectorDrift | None:
    """Compare two sketches, (s, dim) each. Returns None if their dimensions differ, or one is empty.

    matches: (len(then),) the row of `now` with the same id, -1 for a removed id.
    """
    if not len(then) or not len(now) or then.shape[1] != now.shape[1]:
        return None
    old, new = then.astype(np.float64), now.astype(np.float64)
    distance = float(np.sqrt(((old - old.mean(axis=0)) ** 2).sum(axis=1).mean()))
    moved = float(np.linalg.norm(new.mean(axis=0) - old.mean(axis=0)))
    both = np.flatnonzero(matches >= 0)
    cosines = _compute_cosines(old[both], new[matches[both]])
    return VectorDrift(
        float(np.median(1 - cosines)) if len(both) >= FEWEST_SHARED else float("nan"),
        moved / distance if distance > 0 else float(moved > 0),
        both[cosines < CHANGED],
    )


def find_repeats(positions: IntArray, scores: FloatArray, items: Vectors) -> tuple[IntArray, IntArray]:
    """Return (n,) the filled slots of each list, (n, k), and (n,) those whose vector equals the one before them.

    Copies of an item have equal scores, so they are adjacent. Reads the vectors of adjacent slots of equal score alone.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    listed = np.take_along_axis(positions, order, 1)
    scored = np.take_along_axis(scores, order, 1)
    is_tied = (scored[:, 1:] == scored[:, :-1]) & (listed[:, 1:] >= 0) & (listed[:, :-1] >= 0)
    rows, slots = np.nonzero(is_tied)
    repeated = np.zeros(len(positions), np.int64)
    step = max(1, COMPARED_BYTES // (items.dim * items.dtype.itemsize))
    for start in range(0, len(rows), step):
        some, at = rows[start : start + step], slots[start : start + step]
        same = (items.take(listed[some, at]) == items.take(listed[some, at + 1])).all(axis=1)
        repeated += np.bincount(some[same], minlength=len(repeated))
    return np.count_nonzero(positions >= 0, axis=1), repeated


def _compute_cosines(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return (n,) the cosine of each pair of rows: 1 for two zero vectors, 0 for a zero vector and another."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    cosines = np.divide((one * other).sum(axis=1), lengths, out=np.zeros(len(one)), where=lengths > 0)
    result: npt.NDArray[np.float64] = np.where(both_zero, 1.0, cosines)
    return result
