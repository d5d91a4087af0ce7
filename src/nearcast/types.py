"""Types that all packages share: metric, neighbors, and vectors that are read in blocks.

Frozen values over NumPy arrays. Knows nothing of ids and specs; the only files are `.npy` files of vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nearcast.artifact_files import map_array
from nearcast.errors import DamagedError

__all__ = [
    "EMPTY_POSITION",
    "VECTOR_DTYPES",
    "ArrayVectors",
    "FileVectors",
    "FloatArray",
    "IntArray",
    "Metric",
    "Neighbors",
    "PartOfVectors",
    "Progress",
    "RangeOfVectors",
    "Vectors",
    "as_score",
    "flat",
    "no_progress",
]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
AnyArray = npt.NDArray[Any]

EMPTY_POSITION = -1

VECTOR_DTYPES = ("float16", "float32", "int8", "uint8")
"""Types of stored vectors. float64 input is rounded to float32."""

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total) when `done` of `total` units of a stage are complete."""


def as_score(value: float) -> np.float32:
    """Convert a bound to float32, the type of scores. Values beyond float32 become infinite."""
    with np.errstate(over="ignore"):
        return np.float32(value)


def flat(starts: IntArray, ends: IntArray) -> IntArray:
    """Return all positions of these ranges (start, end), one range after the other."""
    lengths = ends - starts
    last = np.cumsum(lengths)
    if len(last) == 0:
        return last
    positions: IntArray = np.arange(last[-1]) + np.repeat(starts - (last - lengths), lengths)
    return positions


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """Ignore progress."""


class Metric(StrEnum):
    """Metric of two vectors. Scores are larger-is-better for every metric."""

    INNER_PRODUCT = "inner_product"
    COSINE = "cosine"
    L2 = "l2"  # the score is minus the squared distance


@dataclass(frozen=True, slots=True)
class Neighbors:
    """k slots per query, best first. An empty slot has position -1 and score -inf; empty slots come last."""

    positions: IntArray  # (n, k) int64
    scores: FloatArray  # (n, k) float32, larger is better

    @property
    def lengths(self) -> IntArray:
        """(n,) filled slots per query."""
        return np.asarray(np.count_nonzero(self.positions != EMPTY_POSITION, axis=1), np.int64)

    @classmethod
    def empty(cls, n: int, k: int) -> Neighbors:
        """Create n queries with k empty slots each."""
        return cls(np.full((n, k), EMPTY_POSITION, np.int64), np.full((n, k), -np.inf, np.float32))


class Vectors(Protocol):
    """A set of vectors, read in blocks: it may be larger than memory."""

    @property
    def n(self) -> int:
        """Number of vectors."""
        ...

    @property
    def dim(self) -> int:
        """Components per vector."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """One of VECTOR_DTYPES."""
        ...

    def read(self, start: int, stop: int) -> AnyArray:
        """Read (stop - start, dim) vectors, positions start..stop-1, in their own dtype."""
        ...

    def take(self, positions: IntArray) -> AnyArray:
        """Read (len(positions), dim) vectors in the order of `positions`."""
        ...

    def whole(self) -> AnyArray:
        """Return all vectors as one (n, dim) array; a file is mapped, not read."""
        ...


@dataclass(frozen=True, slots=True)
class ArrayVectors:
    """Vectors in memory."""

    array: AnyArray  # (n, dim)

    @property
    def n(self) -> int:
        """Number of vectors."""
        return int(self.array.shape[0])

    @property
    def dim(self) -> int:
        """Components per vector."""
        return int(self.array.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of the array."""
        return self.array.dtype

    def read(self, start: int, stop: int) -> AnyArray:
        """Return a view of rows start..stop-1."""
        return self.array[start:stop]

    def take(self, positions: IntArray) -> AnyArray:
        """Return a copy of these rows."""
        return self.array[positions]

    def whole(self) -> AnyArray:
        """Return the array."""
        return self.array


@dataclass(frozen=True, slots=True)
class FileVectors:
    """Vectors in a C-ordered `.npy` file.

    Every read maps the file again and copies the rows, so that the resident memory does not grow with the pages read.
    """

    path: Path
    n: int
    dim: int
    dtype: np.dtype[Any]

    @classmethod
    def open(cls, path: Path) -> FileVectors:
        """Open a file: read its header, not its vectors. Raises DamagedError if it holds no matrix."""
        mapped = map_array(path)
        if mapped.ndim != 2:
            raise DamagedError(
                f"{path} has shape {mapped.shape} and holds no vectors; remove {path.parent} and run again"
            )
        return cls(path, int(mapped.shape[0]), int(mapped.shape[1]), mapped.dtype)

    def read(self, start: int, stop: int) -> AnyArray:
        """Return a copy of rows start..stop-1."""
        return np.array(self._map_file()[start:stop])

    def take(self, positions: IntArray) -> AnyArray:
        """Return a copy of these rows. Reads them in file order, which is faster on disks."""
        order = np.argsort(positions, kind="stable")
        rows = np.empty((len(positions), self.dim), self.dtype)
        rows[order] = self._map_file()[positions[order]]
        return rows

    def whole(self) -> AnyArray:
        """Map the file; it stays mapped as long as the array is held."""
        return self._map_file()

    def _map_file(self) -> AnyArray:
        mapped = map_array(self.path)
        if mapped.shape != (self.n, self.dim) or mapped.dtype != self.dtype:
            raise DamagedError(f"{self.path} was replaced while it was read; run again")
        return mapped


@dataclass(frozen=True, slots=True)
class PartOfVectors:
    """A subset of a set of vectors."""

    vectors: Vectors
    positions: IntArray  # (n,) in the set

    @property
    def n(self) -> int:
        """Number of vectors."""
        return len(self.positions)

    @property
    def dim(self) -> int:
        """Components per vector."""
        return self.vectors.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of the set."""
        return self.vectors.dtype

    def read(self, start: int, stop: int) -> AnyArray:
        """Return a copy of rows start..stop-1 of the subset."""
        return self.vectors.take(self.positions[start:stop])

    def take(self, positions: IntArray) -> AnyArray:
        """Return a copy of these rows of the subset."""
        return self.vectors.take(self.positions[positions])

    def whole(self) -> AnyArray:
        """Return a copy of the subset."""
        return self.vectors.take(self.positions)


@dataclass(frozen=True, slots=True)
class RangeOfVectors:
    """The vectors start..stop-1 of a set, without a copy where the set needs none."""

    vectors: Vectors
    start: int
    stop: int

    @property
    def n(self) -> int:
        """Number of vectors."""
        return self.stop - self.start

    @property
    def dim(self) -> int:
        """Components per vector."""
        return self.vectors.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of the set."""
        return self.vectors.dtype

    def read(self, start: int, stop: int) -> AnyArray:
        """Read rows start..stop-1 of the range."""
        return self.vectors.read(self.start + start, min(self.start + stop, self.stop))

    def take(self, positions: IntArray) -> AnyArray:
        """Return a copy of these rows of the range."""
        return self.vectors.take(self.start + positions)

    def whole(self) -> AnyArray:
        """Return the range as a contiguous view of the whole set."""
        return self.vectors.whole()[self.start : self.stop]
