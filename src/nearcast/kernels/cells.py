"""k-means cells of the items; the join's own scan assigns items to centres.

A cell should hold neighbors of the same queries. With a sample of the queries and an inner product as score, distances
between items are therefore weighted by the queries' directions: |x - c|^2 becomes (x - c)' W (x - c), with W the square
root of the queries' second moments. On data with two catalogues this saves a quarter of the scanned items.

The weighted distance is an inner product plus an offset, x.(W c) - c'W c / 2, so items need no transformation. Arrays
in, arrays out. The result depends on the seed, not on threads or instruction set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nearcast.kernels import isa as _isa
from nearcast.kernels import numpy_fallback, quantize
from nearcast.kernels.quantize import Codes, PackedItems, Rotation
from nearcast.knn.scores import norms

ROWS_PER_CELL = 16  # of the training sample; 40 gave cells that are 2% better at three times the cost
ROUNDS = 5
GROUP_PROBES = 8  # groups of centres probed per row; the nearest centre is missed for 1% of rows
DIRECT_CELLS = 256  # up to so many centres are scanned without groups
ONE_THREAD_PRODUCTS = 1 << 18  # OpenBLAS starts no thread for so few; its threads would spin while ours work
WEIGHT_BITS = 16  # rounds away the differences of linear algebra libraries


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Vectors for k-means: full vectors, their codes, and the rotation of the codes."""

    vectors: np.ndarray
    codes: Codes  # on ITEM_LEVELS
    rotation: Rotation

    def widen(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors at these positions as float64, normalised and centred like the codes."""
        vectors = self.vectors[positions]
        wide = vectors.astype(np.float64)
        if self.rotation.normalise:
            lengths = norms(vectors)
            wide /= np.where(lengths > 0, lengths, 1.0)[:, None]
        return wide - self.rotation.centre if self.rotation.centre is not None else wide


@dataclass(frozen=True, slots=True)
class CentreGroups:
    """Neighbouring centres in groups, so that a row is not compared with all of them."""

    of_centre: np.ndarray  # (centres,) int64 group
    tops: np.ndarray  # (groups, d) float64, the groups' own centres


def make_query_weight(queries: np.ndarray) -> np.ndarray | None:
    """Return W, the square root of the queries' second moments, with trace d, rounded; None if all are zero."""
    wide = queries.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1))
    if not lengths.any():
        return None
    wide = wide[lengths > 0] / lengths[lengths > 0, None]
    at_once = max(16, ONE_THREAD_PRODUCTS // wide.shape[1] ** 2)
    parts = (wide[start : start + at_once] for start in range(0, len(wide), at_once))
    moments = sum(part.T @ part for part in parts)
    values, vectors = np.linalg.eigh(moments / len(wide))
    weight = (vectors * np.sqrt(np.maximum(values, values.max(initial=0) * 1e-4))) @ vectors.T
    weight *= len(weight) / max(np.trace(weight), 1e-300)
    step = 2.0 ** (np.ceil(np.log2(np.abs(weight).max())) - WEIGHT_BITS)
    return np.rint(weight / step) * step


def apply_weight(centres: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Return centres @ weight, equal on every machine: rounded to 20 bits, so that sums are exact in any order."""
    if weight is None or not centres.size:
        return centres
    step = 2.0 ** (np.ceil(np.log2(max(np.abs(centres).max(), 1e-300))) - 20)
    rounded = np.rint(centres / step) * step
    at_once = max(16, ONE_THREAD_PRODUCTS // weight.size)
    whole = len(centres) // at_once * at_once
    parts = rounded[:whole].reshape(-1, at_once, len(weight)) @ weight
    return np.concatenate([parts.reshape(whole, weight.shape[1]), rounded[whole:] @ weight])


def pack_centres(
    centres: np.ndarray,
    offsets: np.ndarray | None,
    groups: np.ndarray,
    n_groups: int,
    rotation: Rotation,
    isa: str,
    *,
    keep_order: bool,
) -> PackedItems:
    """Pack centres as items of a scan, one block per group. keep_order keeps their order (with one group)."""
    plain = Rotation(rotation.sign, rotation.place, None, rotation.width, False)
    codes = quantize.round_vectors(centres.astype(np.float32), plain, quantize.ITEM_LEVELS, isa, 1)
    by = np.zeros(len(centres)) if keep_order else codes.residuals
    order, block_tiles = quantize.order_in_blocks(groups, by, n_groups)
    return quantize.pack_items(codes, order, block_tiles, offsets, isa, 1)


def assign_centres(
    rows: TrainingRows,
    positions: np.ndarray,
    centres: np.ndarray,
    weight: np.ndarray | None,
    groups: CentreGroups | None,
    isa: str,
    threads: int,
) -> np.ndarray:
    """Return the nearest centre of every row at these positions; with groups, among the centres of its best groups.

    Compares codes on the levels of every instruction set, so that cells are the same everywhere.
    """
    images = apply_weight(centres, weight)
    offsets = -0.5 * numpy_fallback.lane_sums(images * centres)
    group_of = np.zeros(len(centres), np.int64) if groups is None else groups.of_centre
    n_groups = 1 if groups is None else len(groups.tops)
    packed = pack_centres(images, offsets, group_of, n_groups, rows.rotation, isa, keep_order=False)
    tops = None
    if groups is not None:
        images = apply_weight(groups.tops, weight)
        offsets = -0.5 * numpy_fallback.lane_sums(images * groups.tops)
        one = np.zeros(n_groups, np.int64)
        tops = pack_centres(images, offsets, one, 1, rows.rotation, isa, keep_order=True).native
    nearest: np.ndarray = _isa.native().nearest_centres(
        isa,
        rows.codes.codes,
        rows.codes.scales,
        quantize.ITEM_LEVELS,
        positions,
        packed.native,
        tops,
        GROUP_PROBES,
        threads,
    )
    lost = np.flatnonzero(nearest == quantize.NO_ITEM)  # rows whose best groups hold no centre
    if len(lost):
        nearest[lost] = (
            0 if groups is None else assign_centres(rows, positions[lost], centres, weight, None, isa, threads)
        )
    return nearest.astype(np.int64)


def sort_by_cell(cells: np.ndarray, n_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows sorted by cell, and the start of each cell."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=n_cells))]).astype(np.uint64)
    return quantize.sort_stably(cells, n_cells).astype(np.uint32), starts


def compute_means(
    rows: TrainingRows, positions: np.ndarray, cells: np.ndarray, fallback: np.ndarray, isa: str, threads: int
) -> np.ndarray:
    """Return the mean of each cell, float64; the fallback for an empty cell. cells: those of the rows at positions."""
    order, starts = sort_by_cell(cells, len(fallback))
    sums = _isa.native().cell_sums(isa, rows.vectors, starts, positions[order], rows.rotation.normalise, threads)
    counts = np.diff(starts.astype(np.int64))[:, None]
    centred = sums / np.maximum(counts, 1)
    if rows.rotation.centre is not None:
        centred = centred - rows.rotation.centre
    return np.where(counts > 0, centred, fallback)


def group_centres(
    centres: np.ndarray,
    weight: np.ndarray | None,
    rotation: Rotation,
    isa: str,
    threads: int,
    earlier: CentreGroups | None = None,
) -> CentreGroups | None:
    """Group neighbouring centres by k-means, from the groups of an earlier round if given. None for few centres."""
    if len(centres) <= DIRECT_CELLS:
        return None
    plain = Rotation(rotation.sign, rotation.place, None, rotation.width, False)
    vectors = centres.astype(np.float32)
    rows = TrainingRows(vectors, quantize.round_vectors(vectors, plain, quantize.ITEM_LEVELS, isa, threads), plain)
    positions = np.arange(len(centres), dtype=np.uint32)
    n_groups = int(np.sqrt(len(centres)))
    tops = centres[:: len(centres) // n_groups][:n_groups].copy() if earlier is None else earlier.tops
    for _ in range(ROUNDS if earlier is None else 1):
        group_of = assign_centres(rows, positions, tops, weight, None, isa, threads)
        tops = compute_means(rows, positions, group_of, tops, isa, threads)
    return CentreGroups(assign_centres(rows, positions, tops, weight, None, isa, threads), tops)


def train_centres(
    rows: TrainingRows, n_cells: int, weight: np.ndarray | None, seed: int, isa: str, threads: int
) -> tuple[np.ndarray, CentreGroups | None]:
    """Train (n_cells, d) centres on a random sample of the rows. Return them and their groups."""
    rng = np.random.default_rng(seed)
    size = min(len(rows.vectors), n_cells * ROWS_PER_CELL)
    sample = np.sort(rng.choice(len(rows.vectors), size, replace=False)).astype(np.uint32)
    centres = rows.widen(sample[np.sort(rng.choice(size, n_cells, replace=False))])
    groups = group_centres(centres, weight, rows.rotation, isa, threads)
    for _ in range(ROUNDS):
        cells = assign_centres(rows, sample, centres, weight, groups, isa, threads)
        centres = compute_means(rows, sample, cells, centres, isa, threads)
        groups = group_centres(centres, weight, rows.rotation, isa, threads, groups)
    return centres, groups
