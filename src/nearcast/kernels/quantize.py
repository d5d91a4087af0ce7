"""Vectors as 8-bit codes: the rotation, the rounding, and the tiles that the scan reads.

Arrays in, arrays out. Queries are rounded like items, on fewer levels if an instruction set needs that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nearcast.kernels import isa as _isa
from nearcast.kernels import numpy_fallback

TILE_ITEMS = 16
NO_ITEM = np.uint32(0xFFFFFFFF)
ITEM_LEVELS = 127
COMMON_LEVELS = 63
CENTRE_ROWS = 4096  # any centre is correct; the mean of so many rows is as good as that of all
METRICS = ("inner_product", "cosine", "l2")


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotation before rounding; see kernels.h."""

    sign: np.ndarray  # (d,) float64
    place: np.ndarray  # (d,) uint32
    centre: np.ndarray | None  # (d,) float64
    width: int
    normalise: bool


@dataclass(frozen=True, slots=True)
class Codes:
    """n rounded vectors: a vector is about scale * codes, in the rotated basis."""

    codes: np.ndarray  # (n, width) int8
    scales: np.ndarray  # (n,) float64
    residuals: np.ndarray  # (n,) float64, length of the rounding error
    norms: np.ndarray  # (n,) float64, length before rounding

    def take(self, rows: np.ndarray | slice) -> Codes:
        """Return some of the vectors."""
        return Codes(self.codes[rows], self.scales[rows], self.residuals[rows], self.norms[rows])


@dataclass(frozen=True)
class PackedItems:
    """Items as tiles, in blocks. An empty slot of a tile has order NO_ITEM and scale NaN."""

    codes: np.ndarray  # (tiles * width * 16,) uint8
    scales: np.ndarray  # (tiles * 16,) float32
    offsets: np.ndarray | None  # (tiles * 16,) float32
    order: np.ndarray  # (tiles * 16,) uint32
    block_tiles: np.ndarray  # (blocks + 1,) uint64
    block_norms: np.ndarray  # (blocks,) float64
    block_residuals: np.ndarray
    block_offsets: np.ndarray
    width: int

    @cached_property
    def native(self) -> Any:
        """Return the same as a native object, made once."""
        return _isa.native().PackedArrays(
            self.codes,
            self.scales,
            self.offsets,
            self.order,
            self.block_tiles,
            self.block_norms,
            self.block_residuals,
            self.block_offsets,
            self.width,
        )


def pad_width(d: int) -> int:
    """Return the padded number of dimensions: 16, 32, or a multiple of 64."""
    return 16 if d <= 16 else 32 if d <= 32 else -(-d // 64) * 64


def make_rotation(items: np.ndarray, metric: str) -> Rotation:
    """Return the rotation for these items: a function of their shape, and for l2 of their centre.

    Signs and permutation come from integer arithmetic instead of a random generator, so that they never change.
    """
    d = items.shape[1]
    width = pad_width(d)
    i = np.arange(d, dtype=np.uint64)
    sign = 1.0 - 2.0 * ((i * np.uint64(2654435761) >> np.uint64(13)) & np.uint64(1)).astype(np.float64)
    step = np.uint64(int(width * 0.618) | 1)
    while np.gcd(step, np.uint64(width)) != 1:
        step += np.uint64(2)
    place = (i * step % np.uint64(width)).astype(np.uint32)
    centre = None
    if metric == "l2" and len(items):
        rows = items[:: max(1, len(items) // CENTRE_ROWS)]
        mean = rows.astype(np.float64).mean(axis=0)
        centre = np.where(np.isfinite(mean), mean, 0.0)  # a NaN must be reported in its row, not spread over all rows
    return Rotation(sign, place, centre, width, metric == "cosine")


def round_vectors(vectors: np.ndarray, rotation: Rotation, levels: int, isa: str, threads: int) -> Codes:
    """Rotate the vectors and round them to 8-bit codes on `levels` levels."""
    if isa == _isa.NUMPY:
        return Codes(
            *numpy_fallback.quantise(
                vectors, rotation.sign, rotation.place, rotation.centre, rotation.width, rotation.normalise, levels
            )
        )
    return Codes(
        *_isa.native().quantise(
            isa,
            vectors,
            rotation.sign,
            rotation.place,
            rotation.centre,
            rotation.width,
            rotation.normalise,
            levels,
            threads,
        )
    )


def order_descending(values: np.ndarray) -> np.ndarray:
    """Return the order of non-negative values, largest first to float32, equal ones by position.

    Sorts words of value and position, which is several times faster than a stable sort of float64.
    """
    bits = np.uint32(0xFFFFFFFF) - values.astype(np.float32).view(np.uint32)
    words = (bits.astype(np.uint64) << np.uint64(32)) | np.arange(len(values), dtype=np.uint64)
    words.sort()
    return words.astype(np.uint32)


def sort_stably(numbers: np.ndarray, limit: int) -> np.ndarray:
    """Return the stable order of numbers from 0 to limit - 1. 16-bit numbers are sorted by radix."""
    return np.argsort(numbers.astype(np.uint16) if limit <= 1 << 16 else numbers, kind="stable")


def order_in_blocks(blocks: np.ndarray, residuals: np.ndarray, n_blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of items in tiles, block by block, and the first tile of each block.

    Within a block the largest residuals come first, so that the items of a tile are similar. A residual grows with the
    length: for inner products the long items come first, too, which raises thresholds early.
    """
    by_residual = order_descending(residuals)
    by_block = by_residual[sort_stably(blocks[by_residual], n_blocks)]
    counts = np.bincount(blocks, minlength=n_blocks)
    tiles = -(-counts // TILE_ITEMS)
    block_tiles = np.concatenate([[0], np.cumsum(tiles)]).astype(np.uint64)
    order = np.full(int(block_tiles[-1]) * TILE_ITEMS, NO_ITEM, np.uint32)
    within = np.arange(len(by_block)) - np.repeat(np.cumsum(counts) - counts, counts)
    order[np.repeat(block_tiles[:-1].astype(np.int64) * TILE_ITEMS, counts) + within] = by_block
    return order, block_tiles


def pack_items(
    codes: Codes, order: np.ndarray, block_tiles: np.ndarray, offsets: np.ndarray | None, isa: str, threads: int
) -> PackedItems:
    """Pack the codes into tiles in this order. offsets: (n,) are added to the items' inner products."""
    width = codes.codes.shape[1]
    pack = numpy_fallback.pack if isa == _isa.NUMPY else _isa.native().pack
    tiles = pack(codes.codes, order, threads).reshape(-1)
    real = order != NO_ITEM
    rows = np.where(real, order, 0)
    scales = np.where(real, codes.scales[rows], np.nan).astype(np.float32)
    norms, residuals = np.where(real, codes.norms[rows], 0), np.where(real, codes.residuals[rows], 0)
    packed_offsets = None if offsets is None else np.where(real, offsets[rows], 0).astype(np.float32)
    n_blocks = len(block_tiles) - 1
    largest_norm, largest_residual, largest_offset = np.zeros(n_blocks), np.zeros(n_blocks), np.zeros(n_blocks)
    filled = np.flatnonzero(np.diff(block_tiles.astype(np.int64)))
    if len(filled):
        starts = block_tiles[filled].astype(np.int64) * TILE_ITEMS
        largest_norm[filled] = np.maximum.reduceat(norms + residuals, starts)
        largest_residual[filled] = np.maximum.reduceat(residuals, starts)
        if packed_offsets is not None:
            largest_offset[filled] = np.maximum.reduceat(np.abs(packed_offsets).astype(np.float64), starts)
    return PackedItems(
        tiles, scales, packed_offsets, order, block_tiles, largest_norm, largest_residual, largest_offset, width
    )


def merge_blocks(packed: PackedItems, threads: int) -> PackedItems:
    """Return the same items as one block, largest scales first: about the order of their residuals."""
    places = np.flatnonzero(packed.order != NO_ITEM)
    places = places[order_descending(packed.scales[places])]
    padded = np.full(-(-len(places) // TILE_ITEMS) * TILE_ITEMS, NO_ITEM, np.uint32)
    padded[: len(places)] = places

    def move(values: np.ndarray, empty: Any) -> np.ndarray:
        moved = np.full(len(padded), empty, values.dtype)
        moved[: len(places)] = values[places]
        return moved

    return PackedItems(
        _isa.native().repack(packed.codes, packed.width, padded, threads),
        move(packed.scales, np.nan),
        None if packed.offsets is None else move(packed.offsets, 0),
        move(packed.order, NO_ITEM),
        np.array([0, len(padded) // TILE_ITEMS], np.uint64),
        packed.block_norms.max(keepdims=True),
        packed.block_residuals.max(keepdims=True),
        packed.block_offsets.max(keepdims=True),
        packed.width,
    )


def l2_offsets(codes: Codes, metric: str) -> np.ndarray | None:
    """Return the offsets that turn an inner product into a rank by distance, q.x - |x|^2 / 2; None unless l2."""
    return -0.5 * codes.norms * codes.norms if metric == "l2" else None


def native_queries(codes: Codes, order: np.ndarray | None = None) -> Any:
    """Return the codes as the native scan takes them, with the sums that its unsigned items need.

    order: (n,) uint32, the row of the queries and results that each code belongs to; the same row by default.
    """
    starts = -128 * codes.codes.sum(axis=1, dtype=np.int32)
    return _isa.native().QueryArrays(codes.codes, starts, codes.scales, codes.residuals, codes.norms, order)
