"""An independent brute-force kNN join, written from the definition in `knn/scores.py` and from nothing else.

Components are widened to float64; component i goes to lane i mod 16; each lane adds up one after the other;
the 16 lanes are added as a tree (l and l + 8, then l and l + 4, ...); the sum is rounded to float32. Equal
scores go to the smaller position. Shares no code with nearcast: it must not share its mistakes.
"""

from __future__ import annotations

import math

import numpy as np


def pair_score(query, item, metric):
    """The score of one pair, in plain Python floats."""
    q, x = [float(value) for value in query], [float(value) for value in item]
    if metric == "l2":
        differences = [a - b for a, b in zip(q, x, strict=True)]
        return np.float32(-lane_sum(differences, differences)) + np.float32(0)
    product = lane_sum(q, x)
    if metric == "inner_product":
        return np.float32(product) + np.float32(0)
    lengths = math.sqrt(lane_sum(q, q)) * math.sqrt(lane_sum(x, x))
    return np.float32(product / lengths if lengths > 0 else 0.0) + np.float32(0)


def lane_sum(left, right):
    """The sum of products in the documented order."""
    lanes = [0.0] * 16
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        lanes[i % 16] += a * b
    for width in (8, 4, 2, 1):
        lanes = [lanes[lane] + lanes[lane + width] for lane in range(width)]
    return lanes[0]


def all_scores(queries, items, metric):
    """(n, m) float32: the score of every pair, all pairs side by side, one component at a time."""
    q, x = np.asarray(queries, np.float64), np.asarray(items, np.float64)
    if metric == "l2":
        return (-_pair_sums(q[:, None, :] - x[None, :, :], None)).astype(np.float32) + np.float32(0)
    products = _pair_sums(q[:, None, :], x[None, :, :])
    if metric == "inner_product":
        return products.astype(np.float32) + np.float32(0)
    q_lengths = np.sqrt(_pair_sums(q[:, None, :], q[:, None, :]))
    x_lengths = np.sqrt(_pair_sums(x[None, :, :], x[None, :, :]))
    lengths = q_lengths * x_lengths
    return np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1.0), 0.0).astype(np.float32) + np.float32(0)


def _pair_sums(left, right):
    right = left if right is None else right
    shape = np.broadcast_shapes(left.shape[:2], right.shape[:2])
    lanes = [np.zeros(shape) for _ in range(16)]
    for i in range(left.shape[2]):
        lanes[i % 16] = lanes[i % 16] + left[:, :, i] * right[:, :, i]
    for width in (8, 4, 2, 1):
        lanes = [lanes[lane] + lanes[lane + width] for lane in range(width)]
    return lanes[0]


def join(queries, items, k, metric, exclude=None):
    """(positions, scores), both (n, k): the k best items of every query; -1 and -inf where there is none."""
    n, m = len(queries), len(items)
    positions = np.full((n, k), -1, np.int64)
    scores = np.full((n, k), -np.inf, np.float32)
    every = all_scores(queries, items, metric)
    for row in range(n):
        allowed = np.array([p for p in range(m) if exclude is None or p != exclude[row]], np.int64)
        best = allowed[np.lexsort((allowed, -every[row, allowed].astype(np.float64)))][:k]
        positions[row, : len(best)] = best
        scores[row, : len(best)] = every[row, best]
    return positions, scores
