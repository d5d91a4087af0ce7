"""The effect of every probe radius on some queries, from one scan of their initial probes.

A query probes a cell if the value of the cell's centre reaches a threshold that falls linearly with the radius, and the
k-th score of the initial probes does not depend on the radius. So the values of the centres tell at which radius each
cell is probed, and each true neighbour found, without another scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nearcast.kernels import isa as _isa
from nearcast.kernels import quantize
from nearcast.kernels.join import SLOPE, CellIndex
from nearcast.kernels.quantize import TILE_ITEMS, PackedItems
from nearcast.knn.join_request import JoinRequest, Resources

QUERIES_AT_ONCE = 512
NO_CELL = -1


@dataclass(frozen=True, slots=True)
class ProbeCurve:
    """Queries, and the thresholds of the centres whose cells they probe."""

    index: CellIndex
    codes: quantize.Codes  # of the queries, on the levels of every instruction set
    initial: np.ndarray  # (n,) float32 least value of the centres probed first
    middle: np.ndarray  # (n,) float64 threshold at radius 0
    spreads: np.ndarray  # (n,) float64 fall of the threshold per radius
    threads: int

    def count_found(self, positions: np.ndarray, radii: np.ndarray) -> np.ndarray:
        """Return (radii, n): how many of these items (n, k), -1 for none, lie in cells probed at each radius."""
        cells = np.where(positions >= 0, _cells_of_items(self.index)[positions], NO_CELL)
        found = np.empty((len(radii), len(positions)), np.int64)
        for start, values in self._centre_values():
            rows = slice(start, start + len(values))
            held = np.take_along_axis(values, np.maximum(cells[rows], 0), 1)
            held[cells[rows] == NO_CELL] = -np.inf
            held.sort(axis=1)
            for row, thresholds in enumerate(self._thresholds(rows, radii)):
                below = np.searchsorted(held[row], thresholds)
                missing = np.count_nonzero(held[row] == -np.inf)
                found[:, start + row] = held.shape[1] - np.maximum(below, missing)
        return found

    def count_tiles(self, radius: float) -> np.ndarray:
        """Return (n,) the tiles of items scanned at a radius, if no constraint excludes a cell."""
        assert self.index.packed is not None
        tiles = np.diff(self.index.packed.block_tiles.astype(np.int64)).astype(np.float64)
        counts = np.empty(len(self.initial))
        for start, values in self._centre_values():
            rows = slice(start, start + len(values))
            counts[rows] = (values >= self._thresholds(rows, np.array([radius]))) @ tiles
        return counts

    def _thresholds(self, rows: slice, radii: np.ndarray) -> np.ndarray:
        """Return (rows, radii) float32: the least value of a centre whose cell is probed."""
        least = self.middle[rows, None] - radii * self.spreads[rows, None]
        least = np.where(np.isnan(least), -np.inf, least).astype(np.float32)
        return np.minimum(least, self.initial[rows, None])

    def _centre_values(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row of some queries, and their (rows, cells) values of the centres."""
        assert self.index.centres is not None
        return _values_at_once(self.codes, self.index.centres, self.threads)


def trace_probes(index: CellIndex, queries: np.ndarray, request: JoinRequest, resources: Resources) -> ProbeCurve:
    """Scan the initial probes of the queries, and derive the thresholds of their further probes."""
    assert index.sample is not None
    isa = _isa.isa_info().taken
    slots = min(request.k, len(index.items))
    first = index.join(queries, request, radius=-np.inf, resources=resources)
    kth = first.scores[:, slots - 1].astype(np.float64)
    codes = quantize.round_vectors(queries, index.rotation, quantize.COMMON_LEVELS, isa, resources.threads)
    initial_rank, baseline_rank = index.probe_ranks(request.k)
    ranked = np.empty((2, len(queries)), np.float32)
    for start, values in _values_at_once(codes, index.sample, resources.threads):
        for number, rank in enumerate((initial_rank, baseline_rank)):
            place = values.shape[1] - rank
            ranked[number, start : start + len(values)] = np.partition(values, place, axis=1)[:, place]
    scales = np.where(codes.scales > 0, codes.scales, 1.0)
    if index.metric == "l2":
        kth = (kth + codes.norms**2) / 2
    baseline = ranked[1] * scales
    middle = (baseline + SLOPE * (kth - baseline)) / scales
    return ProbeCurve(index, codes, ranked[0], middle, index.probe_spreads(codes) / scales, resources.threads)


def _values_at_once(codes: quantize.Codes, centres: PackedItems, threads: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first row of some queries, and their (rows, centres) float32 values."""
    real = np.count_nonzero(centres.order != quantize.NO_ITEM)
    isa = _isa.isa_info().taken
    for start in range(0, len(codes.codes), QUERIES_AT_ONCE):
        some = quantize.native_queries(codes.take(slice(start, start + QUERIES_AT_ONCE)))
        yield start, _isa.native().centre_values(isa, some, centres.native, threads)[:, :real]


def _cells_of_items(index: CellIndex) -> np.ndarray:
    """Return (m,) int64 the cell of every item."""
    assert index.packed is not None
    first_tiles = index.packed.block_tiles.astype(np.int64)
    sizes = (first_tiles[1:] - first_tiles[:-1]) * TILE_ITEMS
    cells = np.repeat(np.arange(len(sizes)), sizes)
    real = index.packed.order != quantize.NO_ITEM
    found = np.empty(len(index.items), np.int64)
    found[index.packed.order[real]] = cells[real]
    return found
