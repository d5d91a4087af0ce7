"""The lists of a join, read by query position from the results of its tasks. A result is opened when it is needed.

A result may hold reserves, which begin with the lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nearcast.artifact_files import map_array
from nearcast.join.rank import is_ranked, read_rank_scores
from nearcast.types import FloatArray, IntArray, Neighbors

__all__ = ["JoinedLists", "ListRange", "read_result"]


@dataclass(frozen=True, slots=True)
class ListRange:
    """The lists of queries start..stop-1."""

    start: int
    stop: int
    open_folder: Callable[[], Path]  # a local folder with positions.npy and scores.npy


@dataclass(frozen=True, slots=True)
class JoinedLists:
    """The lists of all queries, in ranges that follow each other."""

    ranges: tuple[ListRange, ...]
    width: int  # slots per query

    @property
    def is_ranked(self) -> bool:
        """Whether a ranking model has ordered the lists."""
        return bool(self.ranges) and is_ranked(self.ranges[0].open_folder())

    def read(self, positions: IntArray) -> Neighbors:
        """Read the lists of these query positions, ascending."""
        parts = []
        for folder, rows in self._find_ranges(positions):
            result = read_result(folder)
            slots = np.asarray(result.positions)[:, : self.width][rows].astype(np.int64, copy=False)
            parts.append(Neighbors(slots, np.asarray(result.scores)[:, : self.width][rows]))
        if not parts:
            return Neighbors.empty(0, self.width)
        return Neighbors(np.concatenate([p.positions for p in parts]), np.concatenate([p.scores for p in parts]))

    def read_rank_scores(self, positions: IntArray) -> FloatArray:
        """Read (len(positions), width) a model's scores of these lists, positions ascending; -inf for empty slots."""
        parts = [read_rank_scores(folder)[rows] for folder, rows in self._find_ranges(positions)]
        return np.concatenate([np.empty((0, self.width), np.float32), *parts])

    def _find_ranges(self, positions: IntArray) -> Iterator[tuple[Path, IntArray]]:
        """Yield the folder of each range that holds some of the positions, and their rows in it."""
        for part in self.ranges:
            first, last = np.searchsorted(positions, (part.start, part.stop))
            if first < last:
                yield part.open_folder(), positions[first:last] - part.start


def read_result(folder: Path) -> Neighbors:
    """Map the lists that a task of the join wrote, with the types that are stored."""
    return Neighbors(map_array(folder / "positions.npy"), map_array(folder / "scores.npy"))
