"""How often each item appears in a candidate table: counted part by part, added up by ranges of items.

A part of a table writes its counts sparsely, cut by item range, so that a later step adds up any number of parts with
one range in memory. What remains is small: a histogram of the counts. Knows nothing of ids.

    <part>/appearances/items.npy   counts.npy   starts.npy     items of range r: items[starts[r]:starts[r + 1]]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nearcast.artifact_files import map_array
from nearcast.files import fresh_folder
from nearcast.measure.tally import CountHistogram
from nearcast.types import IntArray

__all__ = ["RANGE_ITEMS", "AppearanceCounter", "add_up_appearances"]

RANGE_ITEMS = 1 << 20  # counted at once: 8 MB
DENSE_ITEMS = 1 << 24  # up to so many items, their counts are in memory: 64 MB


class AppearanceCounter:
    """Counts the items of one part of a table.

    Memory: 4 bytes an item up to DENSE_ITEMS. Of more items, one call of `add` or a range, whichever is larger: each
    call writes a run, the sorted items with their counts, and `save` adds up the runs.
    """

    def __init__(self, folder: Path, n_items: int, range_items: int = RANGE_ITEMS) -> None:
        self._folder = folder / "appearances"
        self._bounds = np.append(np.arange(0, n_items, range_items), n_items)
        self._totals = np.zeros(n_items, np.uint32) if n_items <= DENSE_ITEMS else None
        self._runs: list[IntArray] = []  # starts of the ranges in each run

    def add(self, positions: IntArray) -> None:
        """Count item positions (m,), in any order."""
        if self._totals is not None:
            np.add.at(self._totals, positions, np.uint32(1))
            return
        if not self._runs:
            fresh_folder(self._folder)
        values = np.unique(positions, return_counts=True)
        for path, array in zip(self._run_files(len(self._runs)), values, strict=True):
            np.save(path, array)
        self._runs.append(np.searchsorted(values[0], self._bounds))

    def save(self) -> None:
        """Write the counts of all calls of `add`, and delete the scratch files."""
        if not self._runs:
            fresh_folder(self._folder)
        starts = [0]
        items_file, counts_file = self._folder / "items.npy", self._folder / "counts.npy"
        with _GrowingArray(items_file, np.int64) as items, _GrowingArray(counts_file, np.uint32) as counts:
            for number, first in enumerate(self._bounds[:-1]):
                totals = self._add_up_runs(number)
                found = np.flatnonzero(totals)
                items.append(found + first)
                counts.append(totals[found])
                starts.append(starts[-1] + len(found))
        for number in range(len(self._runs)):
            for path in self._run_files(number):
                path.unlink()
        np.save(self._folder / "starts.npy", np.array(starts))

    def _run_files(self, number: int) -> tuple[Path, Path]:
        return self._folder / f"run-{number:05d}-items.npy", self._folder / f"run-{number:05d}-counts.npy"

    def _add_up_runs(self, number: int) -> npt.NDArray[np.integer[Any]]:
        """Return (items of the range,) the counts of one range of items."""
        first, last = self._bounds[number], self._bounds[number + 1]
        if self._totals is not None:
            return self._totals[first:last]
        totals = np.zeros(last - first, np.int64)
        for run, starts in enumerate(self._runs):
            part = slice(starts[number], starts[number + 1])
            items, counts = (map_array(path)[part] for path in self._run_files(run))
            totals[items - first] += counts
        return totals


class _GrowingArray:
    """A one-dimensional `.npy` file that is written piece by piece."""

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self._file = path.open("wb")
        self._dtype = np.dtype(dtype)
        self._n = 0

    def __enter__(self) -> Self:
        self._write_header()
        return self

    def append(self, values: npt.NDArray[Any]) -> None:
        values.astype(self._dtype).tofile(self._file)
        self._n += len(values)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()
        self._file.seek(0)
        self._write_header()  # as long as the first: NumPy leaves room for the digits of the first axis
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._n,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def add_up_appearances(parts: Sequence[Path], n_items: int, range_items: int = RANGE_ITEMS) -> CountHistogram:
    """Return the histogram of the counts of all parts of a table. range_items: as the parts were counted."""
    totals: Counter[int] = Counter()
    for number, first in enumerate(range(0, n_items, range_items)):
        counts = np.zeros(min(n_items, first + range_items) - first, np.int64)
        for part in parts:
            folder = part / "appearances"
            start, stop = map_array(folder / "starts.npy")[number : number + 2]
            items = map_array(folder / "items.npy")[start:stop]
            counts[items - first] += map_array(folder / "counts.npy")[start:stop]
        histogram = CountHistogram.of_counts(counts)
        totals.update(dict(zip(histogram.counts.tolist(), histogram.items.tolist(), strict=True)))
    pairs = np.array(sorted(totals.items()), np.int64).reshape(-1, 2)
    return CountHistogram(pairs[:, 0], pairs[:, 1])
