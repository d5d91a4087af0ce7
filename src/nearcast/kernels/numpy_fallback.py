"""The NumPy fallback of every native kernel: slow and short.

`knn.scores` defines the score; fallbacks and kernels agree with it to the last bit.
"""

from __future__ import annotations

import numpy as np

from nearcast.knn.constraints import FREE, Constraints
from nearcast.knn.exact_join import exact_join
from nearcast.knn.join_request import JoinRequest
from nearcast.knn.scores import LANES, norms
from nearcast.types import ArrayVectors, Metric

MIN_SCALE = 2.0**-100  # of a vector's codes; smaller scales are rounded to zero


def lane_sums(terms: np.ndarray) -> np.ndarray:
    """Sum the last axis in the order that defines a score."""
    d = terms.shape[-1]
    lanes = np.zeros((*terms.shape[:-1], LANES))
    for start in range(0, d, LANES):
        part = terms[..., start : start + LANES]
        lanes[..., : part.shape[-1]] += part
    half = LANES // 2
    while half:
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        half //= 2
    return lanes[..., 0]


def join_exact(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    metric: str,
    exclude: np.ndarray | None = None,
    constraints: Constraints = FREE,
    thresholds: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and scores of the k best items of every query: the reference join, which scores every pair."""
    request = JoinRequest(Metric(metric), k, exclude=exclude, constraints=constraints, thresholds=thresholds)
    lists = exact_join(queries, ArrayVectors(items), request)
    return lists.positions, lists.scores


def hadamard(blocks: np.ndarray) -> np.ndarray:
    """Apply the Hadamard transform to rows whose length is a power of two, in the steps of the kernel."""
    n, size = blocks.shape
    if n == 0:
        return blocks
    half = size // 2
    while half:
        pairs = blocks.reshape(n, -1, 2, half)
        blocks = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(n, size)
        half //= 2
    return blocks * (1.0 / np.sqrt(float(size)))


def quantise(
    vectors: np.ndarray,
    sign: np.ndarray,
    place: np.ndarray,
    centre: np.ndarray | None,
    width: int,
    normalise: bool,
    levels: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return 8-bit codes, scales, residual lengths and lengths of the rows, after the rotation."""
    wide = vectors.astype(np.float64)
    if centre is not None:
        wide = wide - centre
    if normalise:
        lengths = norms(vectors)
        wide = wide / np.where(lengths > 0, lengths, 1.0)[:, None]
    rotated = np.zeros((len(vectors), width))
    rotated[:, place] = sign * wide
    at = 0
    while at < width:
        size = 1 << ((width - at).bit_length() - 1)
        rotated[:, at : at + size] = hadamard(rotated[:, at : at + size])
        at += size
    scales = (np.abs(rotated).max(axis=1, initial=0.0) / levels).astype(np.float32).astype(np.float64)
    scales[scales < MIN_SCALE] = 0.0
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales > 0)
    codes = np.clip(np.rint(rotated * inverse[:, None]), -levels, levels)
    rest = rotated - scales[:, None] * codes
    return (codes.astype(np.int8), scales, np.sqrt(lane_sums(rest * rest)), np.sqrt(lane_sums(rotated * rotated)))


def pack(codes: np.ndarray, order: np.ndarray, threads: int = 1) -> np.ndarray:  # noqa: ARG001 (the kernel's)
    """Pack codes + 128 as (tiles, width / 4, 16, 4); slots without an item hold 128."""
    width = codes.shape[1]
    rows = np.full((len(order), width), 128, np.uint8)
    real = order != np.uint32(0xFFFFFFFF)
    rows[real] = (codes[order[real]].astype(np.int16) + 128).astype(np.uint8)
    return np.ascontiguousarray(rows.reshape(-1, 16, width // 4, 4).transpose(0, 2, 1, 3))


def interval_masks(codes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return (n,) words; bit i is set if low <= codes[i] <= high. Up to 64 codes."""
    return _pack_bits((codes >= low[:, None]) & (codes <= high[:, None]))


def overlap_masks(item_words: np.ndarray, query_words: np.ndarray) -> np.ndarray:
    """Return (n,) words; bit i is set if item i, column i of (words, items), shares a bit with the query."""
    return _pack_bits(((item_words.T[None, :, :] & query_words[:, None, :]) != 0).any(axis=2))


def _pack_bits(flags: np.ndarray) -> np.ndarray:
    weights = np.uint64(1) << np.arange(flags.shape[1], dtype=np.uint64)
    return (flags * weights).sum(axis=1, dtype=np.uint64)
