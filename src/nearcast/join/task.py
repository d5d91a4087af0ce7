"""The results of the join tasks: folders of lists, one per range of the queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nearcast.artifact_files import map_array
from nearcast.types import IntArray, Neighbors

__all__ = ["JoinTask", "read_lengths", "read_result"]


@dataclass(frozen=True, slots=True)
class JoinTask:
    """Queries start..stop-1 of a join that are done: their lists are in the folder."""

    number: int
    start: int
    stop: int
    folder: Path


def read_result(folder: Path) -> Neighbors:
    """Map the lists that `join_queries` wrote."""
    return Neighbors(map_array(folder / "positions.npy"), map_array(folder / "scores.npy"))


def read_lengths(tasks: Sequence[JoinTask], n: int) -> IntArray:
    """Return (n,) the lengths of the lists of all queries, from the results of the tasks."""
    lengths = np.zeros(n, np.int64)
    for task in tasks:
        lengths[task.start : task.stop] = read_result(task.folder).lengths
    return lengths
