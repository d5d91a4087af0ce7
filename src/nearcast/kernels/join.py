"""The kNN join of two sets of vectors, exact.

Arrays in, arrays out: checks them, rounds them, derives batch sizes from the memory given, and runs the native join or
its NumPy twin. Knows no ids, files or specs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearcast.kernels import isa as _isa
from nearcast.kernels import numpy_fallback, quantize, rule_blocks
from nearcast.knn.constraints import FREE, Constraints
from nearcast.knn.eligible import Eligibility

BLOCK_ITEMS = 1024  # thresholds are adapted to the items' residuals once per block; 128 KiB of codes at 128 dimensions
QUERIES_PER_JOB = 1024  # more reuse of items from memory, and yet 128 KiB of codes
METRIC_NUMBERS = {"inner_product": 0, "cosine": 1, "l2": 2}
LARGEST_NORM = 2.1e18  # twice what inputs may have, since l2 moves them to their centre; products are still float32
MOST_DIMENSIONS = 4096
MOST_SLOTS = 2**28  # kMostSlots in arrays.h

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Joined:
    """k slots per query, best first. An empty slot has position -1 and score -inf."""

    positions: np.ndarray  # (n, k) int64
    scores: np.ndarray  # (n, k) float32
    counters: dict[str, int] = field(default_factory=dict)  # what the native join did; empty for twins


def checked_vectors(vectors: np.ndarray, name: str) -> np.ndarray:
    """The vectors, contiguous; ValueError where the kernels cannot take them."""
    if vectors.ndim != 2 or not 1 <= vectors.shape[1] <= MOST_DIMENSIONS:
        raise ValueError(f"{name} have shape {vectors.shape}; needed are (n, d) with d from 1 to {MOST_DIMENSIONS}")
    if vectors.dtype not in (np.float16, np.float32, np.int8, np.uint8):
        raise ValueError(f"{name} are {vectors.dtype}; needed are float16, float32, int8 or uint8")
    return np.require(vectors, requirements=["C", "A"])


def check_pair(queries: np.ndarray, items: np.ndarray, k: int, metric: str) -> None:
    """ValueError where queries, items, k and metric do not go together."""
    if queries.shape[1] != items.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions and items {items.shape[1]}")
    if metric not in METRIC_NUMBERS:
        raise ValueError(f"metric is {metric!r}; known are {', '.join(METRIC_NUMBERS)}")
    if not 1 <= k <= MOST_SLOTS:
        raise ValueError(f"k is {k}; needed is 1 to {MOST_SLOTS}")
    if len(items) >= int(quantize.NO_ITEM) - 2**20:
        raise ValueError(f"{len(items)} items are too many for one index; cut them into shards")


def check_lengths(codes: quantize.Codes, name: str) -> None:
    """ValueError where a vector is not finite, or too long to be squared in float32."""
    bad = np.flatnonzero(~(codes.norms <= LARGEST_NORM))
    if len(bad):
        raise ValueError(
            f"{len(bad)} {name} hold NaN, infinity or are longer than {LARGEST_NORM:g}; the first is {name}[{bad[0]}]"
        )


def bytes_per_query(k: int, width: int) -> int:
    """What a worker holds for a query: its buffer, its best, its codes."""
    limit = max(64, 3 * k + 48)  # buffer_limit in join.cpp
    return 8 * (limit + 80) + 8 * k + width + 64


def queries_per_job(n: int, k: int, width: int, threads: int, memory_bytes: int | None, most: int) -> int:
    """How many queries a worker takes at a time, within the memory given."""
    if memory_bytes is not None:
        most = min(most, max(32, memory_bytes // (threads * bytes_per_query(k, width))))
    share = -(-n // (4 * threads))  # at least four jobs per thread, so that none waits long for the last
    return max(1, min(most, max(96, share)))


def checked_exclude(exclude: np.ndarray | None, n: int) -> np.ndarray | None:
    """The exclusions as int64; ValueError where there is not one per query."""
    if exclude is None:
        return None
    if exclude.shape != (n,):
        raise ValueError(f"exclude has shape {exclude.shape}; needed is one position per query, ({n},)")
    return np.ascontiguousarray(exclude, dtype=np.int64)


def slots_for(k: int, n_items: int) -> int:
    """Return how many slots a native join fills: no worker makes room for more than there are items."""
    return min(k, max(1, n_items))


def widened(found: tuple[np.ndarray, np.ndarray, dict[str, int]], k: int) -> Joined:
    """Return what a native join found with its rows filled up to k slots."""
    positions, scores, counters = found
    missing = ((0, 0), (0, k - positions.shape[1]))
    if missing[1][1]:
        positions = np.pad(positions, missing, constant_values=-1)
        scores = np.pad(scores, missing, constant_values=-np.inf)
    return Joined(positions, scores, counters)


def item_norms(items: np.ndarray, metric: str, isa: str, threads: int) -> np.ndarray | None:
    """(m,) lengths of the items under cosine, None for the other metrics."""
    return _isa.native().norms(isa, items, threads) if metric == "cosine" else None


def join_exact(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    metric: str,
    *,
    exclude: np.ndarray | None = None,
    constraints: Constraints = FREE,
    threads: int = 1,
    memory_bytes: int | None = None,
    progress: Progress | None = None,
) -> Joined:
    """The k best items of every query, exactly: an 8-bit scan leaves out what a bound excludes, full scores decide.

    Costs n * m * d 8-bit products, memory for 2 * m * d bytes of codes, and n * k results; fewer products where the
    constraints bar whole blocks. memory_bytes bounds the buffers of the scan.
    """
    queries, items = checked_vectors(queries, "queries"), checked_vectors(items, "items")
    check_pair(queries, items, k, metric)
    exclude = checked_exclude(exclude, len(queries))
    isa = _isa.isa_info().taken
    if isa == _isa.TWINS:
        return Joined(*numpy_fallback.join_exact(queries, items, k, metric, exclude, constraints))
    if len(queries) == 0 or len(items) == 0:
        return Joined(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
    rotation = quantize.make_rotation(items, metric)
    packed = pack_whole(items, rotation, metric, isa, threads, constraints.eligibility)
    rounded = quantize.round_vectors(queries, rotation, _isa.query_levels(isa), isa, threads)
    check_lengths(rounded, "queries")
    slots = slots_for(k, len(items))
    per_job = queries_per_job(len(queries), slots, rotation.width, threads, memory_bytes, QUERIES_PER_JOB)
    return widened(
        _isa.native().join(
            isa,
            METRIC_NUMBERS[metric],
            queries,
            items,
            quantize.native_queries(rounded),
            packed.native,
            item_norms(items, metric, isa, threads),
            exclude,
            slots,
            threads,
            per_job,
            False,
            None,
            *native_constraints(constraints, packed),
            progress,
        ),
        k,
    )


def native_constraints(constraints: Constraints, packed: quantize.PackedItems) -> tuple[Any, Any, float]:
    """Rule, caps and least score as the native join takes them."""
    rule = None if constraints.eligibility is None else rule_blocks.native_rule(constraints.eligibility, packed)
    least = -np.inf if constraints.min_score is None else constraints.min_score
    return rule, rule_blocks.native_caps(constraints), least


def pack_whole(
    items: np.ndarray,
    rotation: quantize.Rotation,
    metric: str,
    isa: str,
    threads: int,
    eligibility: Eligibility | None = None,
) -> quantize.PackedItems:
    """All items in blocks: of one size with large residuals (long ones) first, or such as rules tell apart."""
    codes = quantize.round_vectors(items, rotation, quantize.ITEM_LEVELS, isa, threads)
    check_lengths(codes, "items")
    if eligibility is None:
        ranks = np.empty(len(items), np.int64)
        ranks[np.argsort(-codes.residuals, kind="stable")] = np.arange(len(items))
        blocks = ranks // BLOCK_ITEMS
    else:
        blocks = rule_blocks.rule_blocks(eligibility)
    order, block_tiles = quantize.order_in_blocks(blocks, codes.residuals, int(blocks.max()) + 1)
    return quantize.pack_items(codes, order, block_tiles, quantize.l2_offsets(codes, metric), isa, threads)
