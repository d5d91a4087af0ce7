"""The tally of a candidate table in parts: a folder per part with sampled scores and item appearances, and their sums.

A part is a number of row groups. Memory of a part: one row group and a sample; of the sum: a range of items.

    <part>/scores.npy   best.npy   appearances/
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nearcast.measure.appearances import AppearanceCounter, add_up_appearances
from nearcast.measure.tally import PartSums, TableShape, compute_measures
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray

__all__ = ["PartTally", "measure_table"]


class PartTally:
    """Adds up one part of a table and writes its tally into a folder. Memory: a sample, and one row group."""

    def __init__(self, folder: Path, shape: TableShape, first_group: int = 0) -> None:
        self.sums = PartSums()
        self._folder = folder
        self._shape = shape
        self._group = first_group
        self._appearances = AppearanceCounter(folder, shape.n_items)
        self._scores: list[FloatArray] = []
        self._best: list[FloatArray] = []

    def add(self, positions: IntArray, scores: FloatArray, n_rows: int, targets: IntArray | None = None) -> None:
        """Add a row group of `n_rows`, in order. positions, scores: (rows with a vector, k).

        targets: (rows with a vector,) candidates that each list should have. Default: k.
        """
        shape, filled = self._shape, positions != EMPTY_POSITION
        targets = np.full(len(positions), shape.k) if targets is None else targets
        self.sums += PartSums.of_lists(positions, n_rows, targets, shape)
        self._appearances.add(positions[filled])
        if self._group % shape.group_step == 0:
            step = shape.row_step
            self._scores.append(scores[::step][filled[::step]])
            self._best.append(scores[::step, 0][filled[::step, 0]])
        self._group += 1

    def save(self) -> PartSums:
        """Write the tally; return the sums."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._appearances.save()
        for name, parts in (("scores", self._scores), ("best", self._best)):
            np.save(self._folder / f"{name}.npy", np.concatenate([np.empty(0, np.float32), *parts]))
        return self.sums


def measure_table(shape: TableShape, n_input_queries: int, sums: PartSums, parts: Sequence[Path]) -> dict[str, float]:
    """Return the measures of a whole table from the tallies of its parts. sums: of all parts."""
    scores, best = (
        np.concatenate([np.empty(0, np.float32), *(np.load(part / f"{name}.npy") for part in parts)])
        for name in ("scores", "best")
    )
    counts = add_up_appearances(parts, shape.n_items)
    return compute_measures(shape, n_input_queries, sums, counts, scores, best)
