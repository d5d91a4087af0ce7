"""How far the vectors of a side have moved since the last snapshot, told from a sketch: the vectors of some ids.

Arrays in, figures out. A sketch keeps to the same ids from night to night, so that what differs is the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.types import FloatArray, IntArray

__all__ = ["VectorDrift", "compare_sketches", "measure_repeats", "sample_sketch_rows"]

SKETCHED = 1024
FEWEST_SHARED = 32  # ids of both sketches; with fewer, nothing is said of single vectors
CHANGED = 0.9  # a cosine below that: another vector, not the same one a little later


@dataclass(frozen=True, slots=True)
class VectorDrift:
    """What two sketches differ in."""

    drift: float  # median of 1 - cosine between an id's vectors then and now; NaN with too few shared ids
    shift: float  # of the mean vector, in units of the vectors' distance from it
    changed: IntArray  # rows of the old sketch whose ids are still there, with another vector


def sample_sketch_rows(n: int, kept: IntArray, seed: int) -> IntArray:
    """Sorted positions (0..n-1) to sketch: the ones of the last sketch that are still there, and random ones."""
    shuffled = np.random.default_rng([seed, 5]).permutation(n)
    fresh = shuffled[~np.isin(shuffled, kept)]
    rows: IntArray = np.sort(np.concatenate([kept, fresh[: max(0, SKETCHED - len(kept))]]))
    return rows


def compare_sketches(then: FloatArray, now: FloatArray, places: IntArray) -> VectorDrift | None:
    """Compare two sketches (s, dim); None where they are of different dimension, or one is empty.

    places: (len(then),) the row of `now` with the same id, -1 for ids that are gone.
    """
    if not len(then) or not len(now) or then.shape[1] != now.shape[1]:
        return None
    old, new = then.astype(np.float64), now.astype(np.float64)
    distance = float(np.sqrt(((old - old.mean(axis=0)) ** 2).sum(axis=1).mean()))
    moved = float(np.linalg.norm(new.mean(axis=0) - old.mean(axis=0)))
    both = np.flatnonzero(places >= 0)
    alike = _cosines(old[both], new[places[both]])
    return VectorDrift(
        float(np.median(1 - alike)) if len(both) >= FEWEST_SHARED else float("nan"),
        moved / distance if distance > 0 else float(moved > 0),
        both[alike < CHANGED],
    )


def measure_repeats(positions: IntArray, scores: FloatArray, vectors: FloatArray, rows: IntArray) -> float:
    """The share of filled slots (n, k) whose vector is also that of the candidate before, best first.

    rows: (items seen,) sorted positions of `vectors`. Copies of an item score alike, so they stand side by side.
    """
    filled = int(np.count_nonzero(positions >= 0))
    order = np.argsort(-scores, axis=1, kind="stable")
    listed = np.take_along_axis(positions, order, 1)
    scored = np.take_along_axis(scores, order, 1)
    alike = (scored[:, 1:] == scored[:, :-1]) & (listed[:, 1:] >= 0) & (listed[:, :-1] >= 0)
    first, second = listed[:, :-1][alike], listed[:, 1:][alike]
    same = (vectors[np.searchsorted(rows, first)] == vectors[np.searchsorted(rows, second)]).all(axis=1)
    return float(np.count_nonzero(same)) / max(1, filled)


def _cosines(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n,) cosine of each pair of rows; two zero vectors are alike, a zero vector and another are not."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    cosines = np.divide((one * other).sum(axis=1), lengths, out=np.zeros(len(one)), where=lengths > 0)
    found: npt.NDArray[np.float64] = np.where(both_zero, 1.0, cosines)
    return found
