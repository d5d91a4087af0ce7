"""The NumPy twin of every native kernel: slow, short, and right.

The score is the one that `knn.scores` defines; twins agree with it and with the kernels to the last bit.
"""

from __future__ import annotations

import numpy as np

LANES = 16
PAIRS_AT_ONCE = 1 << 22  # components of pairs held in float64 at a time: 32 MiB


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


def norms(vectors: np.ndarray) -> np.ndarray:
    """The length of every row, float64."""
    wide = vectors.astype(np.float64)
    return np.sqrt(lane_sums(wide * wide))


def score_pairs(queries: np.ndarray, items: np.ndarray, metric: str) -> np.ndarray:
    """The score of row i of one with row i of the other, float32; either may have one row for all."""
    q, x = queries.astype(np.float64), items.astype(np.float64)
    if metric == "l2":
        difference = q - x
        scores = -lane_sums(difference * difference)
    else:
        scores = lane_sums(q * x)
        if metric == "cosine":
            lengths = norms(queries) * norms(items)
            scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    return scores.astype(np.float32) + np.float32(0)


def score_all(query: np.ndarray, items: np.ndarray, metric: str) -> np.ndarray:
    """The scores of one query (1, d) with every item."""
    rows = max(1, PAIRS_AT_ONCE // max(1, items.shape[1]))
    parts = [score_pairs(query, items[i : i + rows], metric) for i in range(0, len(items), rows)]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def best(scores: np.ndarray, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best in order, ties to the smaller position, padded with -1 and -inf."""
    order = np.lexsort((positions, -scores))[:k]
    out_positions, out_scores = np.full(k, -1, np.int64), np.full(k, -np.inf, np.float32)
    out_positions[: len(order)], out_scores[: len(order)] = positions[order], scores[order]
    return out_positions, out_scores


def join_exact(
    queries: np.ndarray, items: np.ndarray, k: int, metric: str, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of every query by scoring every pair; n * m * d steps."""
    positions, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    everyone = np.arange(len(items))
    for row in range(len(queries)):
        found = score_all(queries[row : row + 1], items, metric)
        allowed = everyone if exclude is None else everyone[everyone != exclude[row]]
        positions[row], scores[row] = best(found[allowed], allowed, k)
    return positions, scores


def hadamard(blocks: np.ndarray) -> np.ndarray:
    """Turn rows whose length is a power of two, with the same steps as the kernel."""
    n, size = blocks.shape
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
    """8-bit codes, scales, residual lengths and lengths of the rows, after the change of basis."""
    wide = vectors.astype(np.float64)
    if centre is not None:
        wide = wide - centre
    if normalise:
        lengths = norms(vectors)
        wide = wide / np.where(lengths > 0, lengths, 1.0)[:, None]
    turned = np.zeros((len(vectors), width))
    turned[:, place] = sign * wide
    at = 0
    while at < width:
        size = 1 << ((width - at).bit_length() - 1)
        turned[:, at : at + size] = hadamard(turned[:, at : at + size])
        at += size
    scales = (np.abs(turned).max(axis=1, initial=0.0) / levels).astype(np.float32).astype(np.float64)
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales > 0)
    codes = np.clip(np.rint(turned * inverse[:, None]), -levels, levels)
    rest = turned - scales[:, None] * codes
    return (codes.astype(np.int8), scales, np.sqrt(lane_sums(rest * rest)), np.sqrt(lane_sums(turned * turned)))


def pack(codes: np.ndarray, order: np.ndarray, threads: int = 1) -> np.ndarray:  # noqa: ARG001 (the kernel's)
    """Codes + 128 as (tiles, width / 4, 16, 4); places without an item hold 128."""
    width = codes.shape[1]
    rows = np.full((len(order), width), 128, np.uint8)
    real = order != np.uint32(0xFFFFFFFF)
    rows[real] = (codes[order[real]].astype(np.int16) + 128).astype(np.uint8)
    return np.ascontiguousarray(rows.reshape(-1, 16, width // 4, 4).transpose(0, 2, 1, 3))
