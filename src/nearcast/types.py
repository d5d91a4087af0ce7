"""The nouns that every room shares: metric, neighbors, and vectors that are read in blocks.

Frozen values over NumPy arrays. Knows no files but the `.npy` that vectors are kept in, no ids, no specs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nearcast.errors import DamagedError
from nearcast.mapped import map_array

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
"""What vectors are kept as. float64 input is rounded to float32 on the way in."""

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total) whenever `done` of `total` units of a stage are complete."""


def as_score(value: float) -> np.float32:
    """A bound as the float32 that scores are compared with; what is beyond float32 is infinite."""
    with np.errstate(over="ignore"):
        return np.float32(value)


def flat(starts: IntArray, ends: IntArray) -> IntArray:
    """All places of these stretches, one stretch after the other."""
    lengths = ends - starts
    last = np.cumsum(lengths)
    if len(last) == 0:
        return last
    places: IntArray = np.arange(last[-1]) + np.repeat(starts - (last - lengths), lengths)
    return places


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """Report progress to nobody."""


class Metric(StrEnum):
    """How two vectors are compared. A score is larger-is-better for each of them."""

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
        """(n,) how many slots of each query are filled."""
        return np.asarray(np.count_nonzero(self.positions != EMPTY_POSITION, axis=1), np.int64)

    @classmethod
    def empty(cls, n: int, k: int) -> Neighbors:
        """n queries with k empty slots each."""
        return cls(np.full((n, k), EMPTY_POSITION, np.int64), np.full((n, k), -np.inf, np.float32))


class Vectors(Protocol):
    """Vectors of one set, read in blocks so that they may be larger than memory."""

    @property
    def n(self) -> int:
        """How many vectors there are."""
        ...

    @property
    def dim(self) -> int:
        """How many components a vector has."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """One of VECTOR_DTYPES."""
        ...

    def read(self, start: int, stop: int) -> AnyArray:
        """(stop - start, dim) the vectors at positions start..stop-1, in their own dtype."""
        ...

    def take(self, positions: IntArray) -> AnyArray:
        """(len(positions), dim) the vectors at these positions, in this order."""
        ...

    def whole(self) -> AnyArray:
        """(n, dim) all vectors as one array; mapped, not read, where they are in a file."""
        ...


@dataclass(frozen=True, slots=True)
class ArrayVectors:
    """Vectors that are in memory already."""

    array: AnyArray  # (n, dim)

    @property
    def n(self) -> int:
        """How many vectors there are."""
        return int(self.array.shape[0])

    @property
    def dim(self) -> int:
        """How many components a vector has."""
        return int(self.array.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's own dtype."""
        return self.array.dtype

    def read(self, start: int, stop: int) -> AnyArray:
        """A view of the rows start..stop-1."""
        return self.array[start:stop]

    def take(self, positions: IntArray) -> AnyArray:
        """A copy of these rows."""
        return self.array[positions]

    def whole(self) -> AnyArray:
        """The array itself."""
        return self.array


@dataclass(frozen=True, slots=True)
class FileVectors:
    """Vectors in a C-ordered `.npy` file.

    Every read maps the file anew and copies what was asked for, so that the pages of a large file do not
    pile up in the process and its memory stays what the caller reads.
    """

    path: Path
    n: int
    dim: int
    dtype: np.dtype[Any]

    @classmethod
    def open(cls, path: Path) -> FileVectors:
        """Read the header of the file; no vectors yet."""
        mapped = map_array(path)
        if mapped.ndim != 2:
            raise DamagedError(
                f"{path} has shape {mapped.shape} and holds no vectors; remove {path.parent} and run again"
            )
        return cls(path, int(mapped.shape[0]), int(mapped.shape[1]), mapped.dtype)

    def read(self, start: int, stop: int) -> AnyArray:
        """A copy of the rows start..stop-1."""
        return np.array(self._mapped()[start:stop])

    def take(self, positions: IntArray) -> AnyArray:
        """A copy of these rows, read in file order, which disks and read-ahead like better."""
        order = np.argsort(positions, kind="stable")
        rows = np.empty((len(positions), self.dim), self.dtype)
        rows[order] = self._mapped()[positions[order]]
        return rows

    def whole(self) -> AnyArray:
        """The file as an array that is mapped for as long as it is held."""
        return self._mapped()

    def _mapped(self) -> AnyArray:
        mapped = map_array(self.path)
        if mapped.shape != (self.n, self.dim) or mapped.dtype != self.dtype:
            raise DamagedError(f"{self.path} was replaced while it was read; run again")
        return mapped


@dataclass(frozen=True, slots=True)
class PartOfVectors:
    """Some vectors of a set."""

    vectors: Vectors
    positions: IntArray  # (n,) of them in the set

    @property
    def n(self) -> int:
        """How many vectors there are."""
        return len(self.positions)

    @property
    def dim(self) -> int:
        """How many components a vector has."""
        return self.vectors.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """The set's dtype."""
        return self.vectors.dtype

    def read(self, start: int, stop: int) -> AnyArray:
        """A copy of the rows start..stop-1 of the part."""
        return self.vectors.take(self.positions[start:stop])

    def take(self, positions: IntArray) -> AnyArray:
        """A copy of these rows of the part."""
        return self.vectors.take(self.positions[positions])

    def whole(self) -> AnyArray:
        """A copy of the part."""
        return self.vectors.take(self.positions)
