"""The cell index of a set of items, and the pruned join with it.

Arrays in, arrays out; saving and mapping the arrays is the caller's. With reach = infinity every cell is met and the
join is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearcast.kernels import cells as _cells
from nearcast.kernels import isa as _isa
from nearcast.kernels import join as _join
from nearcast.kernels import numpy_fallback, quantize
from nearcast.kernels.join import Joined, Progress
from nearcast.kernels.quantize import PackedItems, Rotation
from nearcast.knn.constraints import FREE, Constraints
from nearcast.knn.eligible import Eligibility

CELLS_PER_ROOT = 6.5  # cells = 6.5 * sqrt(items): then choosing cells costs a fifth of meeting them
ITEMS_PER_CELL = 24  # at least, on average: tiles of 16 are filled up with nothing
SAMPLED_CENTRES = 512  # from which a query's ranks are read
FIRST_SHARE = 0.01  # of all cells is met before the k-th score is taken
FLOOR_SHARE = 0.1
SLOPE = 0.5
QUERIES_PER_JOB = 4096
PACKED = ("packed", "centres", "sample")
PACKED_PARTS = ("codes", "scales", "offsets", "order", "block_tiles", "block_norms", "block_residuals", "block_offsets")


@dataclass(frozen=True, slots=True)
class DenseIndex:
    """Items in cells. Every field but `items` and `metric` is derived from them."""

    metric: str
    items: np.ndarray  # (m, d) as given
    item_norms: np.ndarray | None  # (m,) float64, cosine only
    rotation: Rotation
    packed: PackedItems | None  # one block per cell; None without native kernels, where every join is exact
    centres: PackedItems | None  # None where every join is exact
    sample: PackedItems | None
    spread: float  # of items about their centres, per dimension

    @property
    def n_cells(self) -> int:
        """Cells that hold items; 1 for an index that is only ever exact."""
        return 1 if self.packed is None or self.centres is None else len(self.packed.block_norms)

    def join(
        self,
        queries: np.ndarray,
        k: int,
        *,
        reach: float = np.inf,
        exclude: np.ndarray | None = None,
        constraints: Constraints = FREE,
        threads: int = 1,
        memory_bytes: int | None = None,
        per_job: int | None = None,
        progress: Progress | None = None,
    ) -> Joined:
        """The k best items among the cells within reach of every query.

        A query meets its best cells, and then those whose centre's score is not further than `reach` spreads below the
        middle between its k-th score so far and its floor (what a centre at the tenth of all ranks scores). More reach
        costs more and finds more; use calibrate() to choose it. Queries side by side should be near each other.
        per_job: how many of them a worker takes at a time, derived where not given. Answers do not depend on it; the
        counters do a little, since a worker fills up its last tile.
        """
        isa = _isa.isa_info().taken
        queries = _join.checked_vectors(queries, "queries")
        _join.check_pair(queries, self.items, k, self.metric)
        exclude = _join.checked_exclude(exclude, len(queries))
        if np.isnan(reach):
            raise ValueError("reach is NaN; needed is a number, or infinity for an exact join")
        if isa == _isa.TWINS or self.packed is None or len(queries) == 0:
            return Joined(*numpy_fallback.join_exact(queries, self.items, k, self.metric, exclude, constraints))
        codes = quantize.round_vectors(queries, self.rotation, quantize.ITEM_LEVELS, isa, threads)
        _join.check_lengths(codes, "queries")
        scanned = codes
        if _isa.query_levels(isa) != quantize.ITEM_LEVELS:
            scanned = quantize.round_vectors(queries, self.rotation, _isa.query_levels(isa), isa, threads)
        probes = None if np.isposinf(reach) else self._probes(quantize.coarser(codes), k, reach)
        slots = _join.slots_for(k, len(self.items))
        per_job = per_job or _join.queries_per_job(
            len(queries),
            slots,
            self.rotation.width,
            threads,
            memory_bytes,
            _join.QUERIES_PER_JOB if probes is None else QUERIES_PER_JOB,
        )
        return _join.widened(
            _isa.native().join(
                isa,
                _join.METRIC_NUMBERS[self.metric],
                queries,
                self.items,
                quantize.native_queries(scanned),
                self.packed.native,
                self.item_norms,
                exclude,
                slots,
                threads,
                per_job,
                False,
                probes,
                *_join.native_constraints(constraints, self.packed),
                progress,
            ),
            k,
        )

    def _probes(self, codes: quantize.Codes, k: int, reach: float) -> object:
        assert self.sample is not None
        assert self.centres is not None
        sampled = int((self.sample.order != quantize.NO_ITEM).sum())
        first = max(FIRST_SHARE, 4 * k / len(self.items))
        first_rank = min(sampled, max(1, round(first * sampled)))
        floor_rank = min(sampled, max(1, round(FLOOR_SHARE * sampled)))
        lengths = codes.norms if self.metric != "l2" else codes.norms + np.sqrt(2 * np.median(-self._offsets()))
        return _isa.native().ProbeArrays(
            quantize.native_queries(codes),
            self.centres.native,
            self.sample.native,
            first_rank,
            floor_rank,
            SLOPE,
            -reach,
            lengths * self.spread,
        )

    def _offsets(self) -> np.ndarray:
        assert self.centres is not None
        assert self.centres.offsets is not None
        return self.centres.offsets[self.centres.order != quantize.NO_ITEM]

    def calibrate(self, queries: np.ndarray, k: int, recall: float, *, threads: int = 1) -> float:
        """The least reach, to 1%, at which these queries find `recall` of their true neighbours."""
        truth = self.join(queries, k, threads=threads).positions
        low, high = -4.0, 8.0
        for _ in range(10):
            reach = (low + high) / 2
            found = self.join(queries, k, reach=reach, threads=threads).positions
            low, high = (low, reach) if recall_of(found, truth) >= recall else (reach, high)
        return high


def recall_of(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of true neighbours that were found."""
    real = truth >= 0
    hits = sum(int(np.isin(t[r], f).sum()) for f, t, r in zip(found, truth, real, strict=True))
    return hits / max(1, int(real.sum()))


def default_cells(n_items: int) -> int:
    """How many cells suit so many items, where cells pay at all."""
    return max(1, min(round(CELLS_PER_ROOT * n_items**0.5), n_items // ITEMS_PER_CELL))


def build_index(
    items: np.ndarray,
    metric: str,
    *,
    cells: int | None = None,
    seed: int = 0,
    threads: int = 1,
    query_sample: np.ndarray | None = None,
) -> DenseIndex:
    """Group the items into cells; a sample of the queries to come makes the cells fit them (inner product, cosine)."""
    items = _join.checked_vectors(items, "items")
    _join.check_pair(items[:0], items, 1, metric)
    isa = _isa.isa_info().taken
    rotation = quantize.make_rotation(items, metric)
    if isa == _isa.TWINS or len(items) == 0:
        return DenseIndex(
            metric, items, None, rotation, None, None, None, 0.0
        )  # joins are the referee's, without cells
    codes = quantize.round_vectors(items, rotation, quantize.ITEM_LEVELS, isa, threads)
    _join.check_lengths(codes, "items")
    rows = _cells.Rows(items, quantize.coarser(codes), rotation)
    weight = None
    if metric != "l2" and query_sample is not None and len(query_sample):
        weight = _cells.query_weight(_join.checked_vectors(query_sample, "query_sample"))
    n_cells = min(cells or default_cells(len(items)), len(items))
    cell_of, means = _cells_of(rows, n_cells, weight, seed, isa, threads)
    order, block_tiles = quantize.order_in_blocks(cell_of, codes.residuals, len(means))
    packed = quantize.pack_items(codes, order, block_tiles, quantize.l2_offsets(codes, metric), isa, threads)
    offsets = None
    counts = np.bincount(cell_of, minlength=len(means))
    if metric == "l2":
        offsets = np.bincount(cell_of, -0.5 * codes.norms**2, len(means)) / counts
    spread = _spread(codes.norms, counts, means)
    stride = max(1, len(means) // SAMPLED_CENTRES)
    return DenseIndex(
        metric,
        items,
        _join.item_norms(items, metric, isa, threads),
        rotation,
        packed,
        _packed_centres(means, offsets, 1, rotation, isa),
        _packed_centres(means, offsets, stride, rotation, isa),
        spread,
    )


def ruled_index(items: np.ndarray, metric: str, rule: Eligibility, *, threads: int = 1) -> DenseIndex:
    """All items in blocks that the rule tells apart, for exact joins under it; other rules are answered rightly too."""
    items = _join.checked_vectors(items, "items")
    isa = _isa.isa_info().taken
    rotation = quantize.make_rotation(items, metric)
    packed = None
    if isa != _isa.TWINS and len(items):
        packed = _join.pack_whole(items, rotation, metric, isa, threads, rule)
    norms = None if packed is None else _join.item_norms(items, metric, isa, threads)
    return DenseIndex(metric, items, norms, rotation, packed, None, None, 0.0)


def _cells_of(
    rows: _cells.Rows, n_cells: int, weight: np.ndarray | None, seed: int, isa: str, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """The cell of every item and the cells' means; cells are not empty, and neighbours have numbers close by."""
    centres = _cells.train(rows, n_cells, weight, seed, isa, threads)
    groups = _cells.group_centres(centres, weight, rows.rotation, isa, threads)
    cell_of = _cells.assign(rows, centres, weight, groups, isa, threads)
    filled = np.bincount(cell_of, minlength=n_cells) > 0
    by_group = np.arange(n_cells) if groups is None else np.argsort(groups[0], kind="stable")
    kept = by_group[filled[by_group]]
    number = np.full(n_cells, -1)
    number[kept] = np.arange(len(kept))
    cell_of = number[cell_of]
    return cell_of, _cells.means(rows, cell_of, centres[kept], isa, threads)


def _spread(norms: np.ndarray, counts: np.ndarray, means: np.ndarray) -> float:
    within = (norms**2).mean() - (counts * (means**2).sum(axis=1)).sum() / len(norms)
    return float(np.sqrt(max(within, 0.0) / means.shape[1]))


def _packed_centres(
    means: np.ndarray, offsets: np.ndarray | None, stride: int, rotation: Rotation, isa: str
) -> PackedItems:
    taken = means[::stride]
    return _cells.pack_centres(
        taken,
        None if offsets is None else offsets[::stride],
        np.zeros(len(taken), np.int64),
        1,
        rotation,
        isa,
        keep_order=True,
    )


def index_arrays(index: DenseIndex) -> dict[str, np.ndarray]:
    """Everything of an index but its items, as arrays by name, to be kept and mapped again by `index_of_arrays`."""
    rotation = index.rotation
    arrays = {"sign": rotation.sign, "place": rotation.place, "centre": rotation.centre, "item_norms": index.item_norms}
    arrays["numbers"] = np.array([rotation.width, rotation.normalise, index.spread], np.float64)
    for name in PACKED:
        packed = getattr(index, name)
        if packed is not None:
            arrays |= {f"{name}.{part}": getattr(packed, part) for part in PACKED_PARTS}
    return {name: array for name, array in arrays.items() if array is not None}


def index_of_arrays(items: np.ndarray, metric: str, arrays: Mapping[str, np.ndarray]) -> DenseIndex:
    """The index that `index_arrays` has taken apart; the arrays may be mapped from files."""
    width, normalise, spread = arrays["numbers"].tolist()
    rotation = Rotation(arrays["sign"], arrays["place"], arrays.get("centre"), int(width), bool(normalise))

    def packed(name: str) -> PackedItems | None:
        parts: dict[str, Any] = {part: arrays.get(f"{name}.{part}") for part in PACKED_PARTS}
        return None if parts["codes"] is None else PackedItems(**parts, width=int(width))

    return DenseIndex(
        metric,
        items,
        arrays.get("item_norms"),
        rotation,
        packed=packed("packed"),
        centres=packed("centres"),
        sample=packed("sample"),
        spread=float(spread),
    )
