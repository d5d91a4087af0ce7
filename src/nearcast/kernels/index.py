"""Build the index that a kNN join scans: items in k-means cells, in one block, or in blocks that rules distinguish.

Arrays in, arrays out; the caller saves and maps the arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nearcast.kernels import cells as _cells
from nearcast.kernels import isa as _isa
from nearcast.kernels import quantize, rule_blocks
from nearcast.kernels.join import CellIndex, JoinOutput, Progress, check_lengths, check_pair, validate_vectors
from nearcast.kernels.quantize import Codes, PackedItems, Rotation
from nearcast.knn.eligible import Eligibility
from nearcast.knn.join_request import JoinRequest, Resources

CELLS_PER_ROOT = 6.5  # cells = 6.5 * sqrt(items): then choosing cells costs a fifth of scanning them
MIN_ITEMS_PER_CELL = 24  # on average: tiles of 16 are padded
SAMPLED_CENTRES = 512  # from which a query's ranks are read
BLOCK_ITEMS = 1024  # thresholds are adapted to the items' residuals once per block; 128 KiB of codes at 128 dimensions
PACKED = ("packed", "centres", "sample", "exact")
PACKED_PARTS = ("codes", "scales", "offsets", "order", "block_tiles", "block_norms", "block_residuals", "block_offsets")


def join_exact(
    queries: np.ndarray,
    items: np.ndarray,
    request: JoinRequest,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> JoinOutput:
    """Return the k best items per query, exactly: a bound prunes the 8-bit scan, full-precision scores decide.

    Costs n * m * d 8-bit products, memory for 2 * m * d bytes of codes, and n * k results; fewer products if the
    constraints exclude whole blocks. Raises ValueError for arrays that the kernels cannot take.
    """
    queries, items = validate_vectors(queries, "queries"), validate_vectors(items, "items")
    check_pair(queries, items, request.k, request.metric)
    resources = resources or Resources()
    index = _build_blocks(items, request.metric, request.constraints.eligibility, resources.threads)
    return index.join(queries, request, resources=resources, progress=progress)


def measure_recall(positions: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the true neighbours (n, k) that are among the `positions` (n, any)."""
    real = truth >= 0
    hits = sum(int(np.isin(t[r], f).sum()) for f, t, r in zip(positions, truth, real, strict=True))
    return hits / max(1, int(real.sum()))


def default_cells(n_items: int) -> int:
    """Return the number of cells that suits so many items, if cells are cheaper at all."""
    return max(1, min(round(CELLS_PER_ROOT * n_items**0.5), n_items // MIN_ITEMS_PER_CELL))


def build_index(
    items: np.ndarray,
    metric: str,
    *,
    cells: int | None = None,
    seed: int = 0,
    threads: int = 1,
    query_sample: np.ndarray | None = None,
) -> CellIndex:
    """Group the items into k-means cells. A sample of the queries fits the cells to them (inner product, cosine)."""
    items = validate_vectors(items, "items")
    check_pair(items[:0], items, 1, metric)
    isa = _isa.isa_info().taken
    rotation = quantize.make_rotation(items, metric)
    if isa == _isa.NUMPY or len(items) == 0:
        return CellIndex(metric, items, None, rotation, None)  # the NumPy join needs no cells
    codes = _round_items(items, rotation, isa, threads)
    rows = _cells.TrainingRows(items, codes, rotation)
    weight = None
    if metric != "l2" and query_sample is not None and len(query_sample):
        weight = _cells.make_query_weight(validate_vectors(query_sample, "query_sample"))
    n_cells = min(cells or default_cells(len(items)), len(items))
    cell_of, means = _assign_cells(rows, n_cells, weight, seed, isa, threads)
    del rows  # as large as the codes; the tiles take their place
    offsets = None
    counts = np.bincount(cell_of, minlength=len(means))
    if metric == "l2":
        offsets = np.bincount(cell_of, -0.5 * codes.norms**2, len(means)) / counts
    stride = max(1, len(means) // SAMPLED_CENTRES)
    return CellIndex(
        metric,
        items,
        _item_norms(items, metric, isa, threads),
        rotation,
        _pack_blocks(codes, cell_of, len(means), metric, isa, threads),
        _pack_centres(means, offsets, 1, rotation, isa),
        _pack_centres(means, offsets, stride, rotation, isa),
        _compute_spread(codes.norms, counts, means),
    )


def build_ruled_index(items: np.ndarray, metric: str, rule: Eligibility | None, *, threads: int = 1) -> CellIndex:
    """Lay out all items in blocks that the rule distinguishes, for exact joins under it or under any other, or none."""
    return _build_blocks(validate_vectors(items, "items"), metric, rule, threads)


def add_exact_layout(index: CellIndex, *, threads: int = 1) -> CellIndex:
    """Return the index with all items as one block as well; the index itself if it needs or has that already."""
    if index.n_cells == 1 or index.exact is not None:
        return index
    assert index.packed is not None
    return replace(index, exact=quantize.merge_blocks(index.packed, threads))


def _build_blocks(items: np.ndarray, metric: str, rule: Eligibility | None, threads: int) -> CellIndex:
    """Lay out all items without cells: in blocks of one size, largest residuals first, or in the rule's blocks."""
    isa = _isa.isa_info().taken
    rotation = quantize.make_rotation(items, metric)
    if isa == _isa.NUMPY or len(items) == 0:
        return CellIndex(metric, items, None, rotation, None)
    codes = _round_items(items, rotation, isa, threads)
    if rule is None:
        ranks = np.empty(len(items), np.int64)
        ranks[np.argsort(-codes.residuals, kind="stable")] = np.arange(len(items))
        blocks = ranks // BLOCK_ITEMS
    else:
        blocks = rule_blocks.rule_blocks(rule)
    packed = _pack_blocks(codes, blocks, int(blocks.max()) + 1, metric, isa, threads)
    return CellIndex(metric, items, _item_norms(items, metric, isa, threads), rotation, packed)


def _round_items(items: np.ndarray, rotation: Rotation, isa: str, threads: int) -> Codes:
    codes = quantize.round_vectors(items, rotation, quantize.ITEM_LEVELS, isa, threads)
    check_lengths(codes, "items")
    return codes


def _pack_blocks(codes: Codes, blocks: np.ndarray, n_blocks: int, metric: str, isa: str, threads: int) -> PackedItems:
    order, block_tiles = quantize.order_in_blocks(blocks, codes.residuals, n_blocks)
    return quantize.pack_items(codes, order, block_tiles, quantize.l2_offsets(codes, metric), isa, threads)


def _item_norms(items: np.ndarray, metric: str, isa: str, threads: int) -> np.ndarray | None:
    """Return the (m,) lengths of the items under cosine, None for the other metrics."""
    return _isa.native().norms(isa, items, threads) if metric == "cosine" else None


def _assign_cells(
    rows: _cells.TrainingRows, n_cells: int, weight: np.ndarray | None, seed: int, isa: str, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cell of every item and the cells' means. No cell is empty; near cells have near numbers."""
    centres, groups = _cells.train_centres(rows, n_cells, weight, seed, isa, threads)
    positions = np.arange(len(rows.vectors), dtype=np.uint32)
    cell_of = _cells.assign_centres(rows, positions, centres, weight, groups, isa, threads)
    filled = np.bincount(cell_of, minlength=n_cells) > 0
    by_group = np.arange(n_cells) if groups is None else np.argsort(groups.of_centre, kind="stable")
    kept = by_group[filled[by_group]]
    number = np.full(n_cells, -1)
    number[kept] = np.arange(len(kept))
    cell_of = number[cell_of]
    return cell_of, _cells.compute_means(rows, positions, cell_of, centres[kept], isa, threads)


def _compute_spread(norms: np.ndarray, counts: np.ndarray, means: np.ndarray) -> float:
    within = (norms**2).mean() - (counts * (means**2).sum(axis=1)).sum() / len(norms)
    return float(np.sqrt(max(within, 0.0) / means.shape[1]))


def _pack_centres(
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


def index_arrays(index: CellIndex) -> dict[str, np.ndarray]:
    """Return all arrays of an index except its items, by name. `restore_index` reads them back."""
    rotation = index.rotation
    arrays = {"sign": rotation.sign, "place": rotation.place, "centre": rotation.centre, "item_norms": index.item_norms}
    arrays["numbers"] = np.array([rotation.width, rotation.normalise, index.spread], np.float64)
    for name in PACKED:
        packed = getattr(index, name)
        if packed is not None:
            arrays |= {f"{name}.{part}": getattr(packed, part) for part in PACKED_PARTS}
    return {name: array for name, array in arrays.items() if array is not None}


def restore_index(
    items: np.ndarray, metric: str, arrays: Mapping[str, np.ndarray], now: np.ndarray | None = None
) -> CellIndex:
    """Return the index of these items with the arrays of `index_arrays`, which may be mapped from files.

    now: (saved items,) the position of each saved item among `items`, -1 for one that is left out; None: the same.
    Items that were not saved are not in the index.
    """
    if now is not None:
        arrays = _move_items(arrays, len(items), now)
        items = items if len(now) else items[:0]  # the index of an empty table has no tiles to tell what it holds
    width, normalise, spread = arrays["numbers"].tolist()
    rotation = Rotation(arrays["sign"], arrays["place"], arrays.get("centre"), int(width), bool(normalise))

    def read_packed(name: str) -> PackedItems | None:
        parts: dict[str, Any] = {part: arrays.get(f"{name}.{part}") for part in PACKED_PARTS}
        return None if parts["codes"] is None else PackedItems(**parts, width=int(width))

    return CellIndex(
        metric,
        items,
        arrays.get("item_norms"),
        rotation,
        packed=read_packed("packed"),
        centres=read_packed("centres"),
        sample=read_packed("sample"),
        spread=float(spread),
        exact=read_packed("exact"),
    )


def _move_items(arrays: Mapping[str, np.ndarray], n_items: int, now: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of an index with its items at other positions; slots of items that are left out are empty."""
    moved = dict(arrays)
    for name in ("packed", "exact"):
        if f"{name}.order" not in arrays:
            continue
        here = np.append(now, -1)[np.minimum(arrays[f"{name}.order"], len(now))]
        moved[f"{name}.order"] = np.where(here < 0, quantize.NO_ITEM, here).astype(np.uint32)
        moved[f"{name}.scales"] = np.where(here < 0, np.float32(np.nan), arrays[f"{name}.scales"])
    if "item_norms" in arrays:
        moved["item_norms"] = np.zeros(n_items)
        moved["item_norms"][now[now >= 0]] = arrays["item_norms"][now >= 0]
    return moved
