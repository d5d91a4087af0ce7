"""The kNN join with a cell index: every cell for an exact join, the cells within a probe radius for a pruned one.

Checks and rounds the queries, derives batch sizes from the memory, and runs the native join or its NumPy fallback.
Knows no ids, files or specs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearcast.kernels import isa as _isa
from nearcast.kernels import numpy_fallback, quantize, rule_blocks
from nearcast.kernels.quantize import PackedItems, Rotation
from nearcast.knn.constraints import Constraints
from nearcast.knn.join_request import JoinRequest, Resources

INITIAL_SHARE = 0.01  # of all cells is probed before the k-th score is taken
BASELINE_SHARE = 0.1
SLOPE = 0.5
ERROR_DEVIATIONS = 2.5  # standard deviations of a value's error, at least, that a pruned join allows for
EXACT_QUERIES_PER_JOB = 1024  # more reuse of items from memory, and yet 128 KiB of codes
PRUNED_QUERIES_PER_JOB = 4096
FEW_QUERIES = 512  # of a job
METRIC_NUMBERS = {"inner_product": 0, "cosine": 1, "l2": 2}
MAX_NORM = 2.1e18  # twice the limit of inputs, since l2 moves them to their centre; products are still float32
MAX_DIMENSIONS = 4096
MAX_SLOTS = 2**28  # kMostSlots in arrays.h

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class JoinOutput:
    """k slots per query, best first. An empty slot has position -1 and score -inf."""

    positions: np.ndarray  # (n, k) int64
    scores: np.ndarray  # (n, k) float32
    counters: dict[str, int] = field(default_factory=dict)  # of the native join; empty from the NumPy fallback


@dataclass(frozen=True, slots=True)
class CellIndex:
    """Items in cells. Every field but `items` and `metric` is derived from them."""

    metric: str
    items: np.ndarray  # (m, d) as given
    item_norms: np.ndarray | None  # (m,) float64, cosine only
    rotation: Rotation
    packed: PackedItems | None  # one block per cell; None without native kernels, where every join is exact
    centres: PackedItems | None = None  # None if every join is exact
    sample: PackedItems | None = None  # of the centres
    spread: float = 0.0  # of items about their centres, per dimension
    exact: PackedItems | None = None  # all items as one block: faster than `packed` for an exact join

    @property
    def n_cells(self) -> int:
        """Return the number of cells that hold items; 1 for an index without cells."""
        return 1 if self.packed is None or self.centres is None else len(self.packed.block_norms)

    def join(
        self,
        queries: np.ndarray,
        request: JoinRequest,
        *,
        radius: float = np.inf,
        resources: Resources | None = None,
        per_job: int | None = None,
        progress: Progress | None = None,
    ) -> JoinOutput:
        """Return the k best items per query among the cells within the probe radius; all cells for infinity.

        Probe a query's best cells first. Then probe every cell whose centre scores at least
        `baseline + (kth - baseline) / 2 - radius * spread`: `kth` is the query's k-th score so far, `baseline` the
        score of a centre at a tenth of all ranks. A larger radius costs more and finds more. Neighbouring queries
        should be near each other. per_job: queries that a worker takes at a time, derived by default. Answers do not
        depend on it; counters do a little, since a worker fills up its last tile.
        Raises ValueError for arrays that the kernels cannot take.
        """
        isa, resources = _isa.isa_info().taken, resources or Resources()
        k = request.k
        queries = validate_vectors(queries, "queries")
        check_pair(queries, self.items, k, self.metric)
        exclude = _validate_exclude(request.exclude, len(queries))
        thresholds = _validate_thresholds(request.thresholds, len(queries))
        if np.isnan(radius):
            raise ValueError("radius is NaN; give a number, or infinity for an exact join")
        if isa == _isa.NUMPY or self.packed is None or len(queries) == 0:
            return JoinOutput(
                *numpy_fallback.join_exact(
                    queries, self.items, k, self.metric, exclude, request.constraints, thresholds
                )
            )
        exact, packed = np.isposinf(radius), self.packed
        if exact and self.exact is not None:
            packed = self.exact
        # What a pruned join drops depends on the values, so all instruction sets must compute the same values.
        levels = _isa.query_levels(isa) if exact else quantize.COMMON_LEVELS
        codes = quantize.round_vectors(queries, self.rotation, levels, isa, resources.threads)
        check_lengths(codes, "queries")
        order = None if exact else self._order_queries(codes, isa, resources.threads)
        codes = codes if order is None else codes.take(order)
        rounded = quantize.native_queries(codes, order)
        slots = min(k, max(1, len(self.items)))  # no worker allocates more slots than there are items
        default = EXACT_QUERIES_PER_JOB if exact else PRUNED_QUERIES_PER_JOB
        output = _isa.native().join(
            isa,
            METRIC_NUMBERS[self.metric],
            queries,
            self.items,
            rounded,
            packed.native,
            self.item_norms,
            exclude,
            slots,
            resources.threads,
            per_job or _choose_per_job(len(queries), slots, self.rotation.width, resources, default),
            False,
            None if exact else self._make_probes(codes, rounded, k, radius),
            *_native_constraints(request.constraints, packed),
            thresholds,
            1.0 if exact else min(1.0, ERROR_DEVIATIONS / math.sqrt(self.rotation.width)),
            progress,
        )
        return _pad_slots(output, k)

    def _order_queries(self, codes: quantize.Codes, isa: str, threads: int) -> np.ndarray:
        """Return the rows of the queries by their best sampled centre: the queries of a job then share cells."""
        assert self.sample is not None
        rows = np.arange(len(codes.codes), dtype=np.uint32)
        best = _isa.native().nearest_centres(
            isa, codes.codes, codes.scales, quantize.COMMON_LEVELS, rows, self.sample.native, None, 1, threads
        )
        return quantize.sort_stably(best, len(self.sample.order) + 1).astype(np.uint32)

    def _make_probes(self, codes: quantize.Codes, rounded: Any, k: int, radius: float) -> object:
        assert self.sample is not None
        assert self.centres is not None
        initial_rank, baseline_rank = self.probe_ranks(k)
        return _isa.native().ProbeArrays(
            rounded,
            self.centres.native,
            self.sample.native,
            initial_rank,
            baseline_rank,
            SLOPE,
            -radius,
            self.probe_spreads(codes),
        )

    def probe_ranks(self, k: int) -> tuple[int, int]:
        """Return the ranks, among the sampled centres, of the last one probed first and of the baseline."""
        assert self.sample is not None
        sampled = int((self.sample.order != quantize.NO_ITEM).sum())
        initial = max(INITIAL_SHARE, 4 * k / len(self.items))
        initial_rank = min(sampled, max(1, round(initial * sampled)))
        return initial_rank, min(sampled, max(1, round(BASELINE_SHARE * sampled)))

    def probe_spreads(self, codes: quantize.Codes) -> np.ndarray:
        """Return (n,) the spread of the cells as the queries see it, in units of a score."""
        lengths = codes.norms if self.metric != "l2" else codes.norms + np.sqrt(2 * np.median(-self._compute_offsets()))
        return lengths * self.spread

    def _compute_offsets(self) -> np.ndarray:
        assert self.centres is not None
        assert self.centres.offsets is not None
        return self.centres.offsets[self.centres.order != quantize.NO_ITEM]


def validate_vectors(vectors: np.ndarray, name: str) -> np.ndarray:
    """Return the vectors as a contiguous array. Raises ValueError if the kernels cannot take them."""
    if vectors.ndim != 2 or not 1 <= vectors.shape[1] <= MAX_DIMENSIONS:
        raise ValueError(f"{name} have shape {vectors.shape}; needed are (n, d) with d from 1 to {MAX_DIMENSIONS}")
    if vectors.dtype not in (np.float16, np.float32, np.int8, np.uint8):
        raise ValueError(f"{name} are {vectors.dtype}; needed are float16, float32, int8 or uint8")
    return np.require(vectors, requirements=["C", "A"])


def check_pair(queries: np.ndarray, items: np.ndarray, k: int, metric: str) -> None:
    """Raise ValueError if queries, items, k and metric do not fit each other."""
    if queries.shape[1] != items.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions and items {items.shape[1]}")
    if metric not in METRIC_NUMBERS:
        raise ValueError(f"metric is {metric!r}; known are {', '.join(METRIC_NUMBERS)}")
    if not 1 <= k <= MAX_SLOTS:
        raise ValueError(f"k is {k}; needed is 1 to {MAX_SLOTS}")
    if len(items) >= int(quantize.NO_ITEM) - 2**20:
        raise ValueError(f"{len(items)} items are too many for one index; cut them into shards")


def check_lengths(codes: quantize.Codes, name: str) -> None:
    """Raise ValueError if a vector is not finite, or too long to be squared in float32."""
    bad = np.flatnonzero(~(codes.norms <= MAX_NORM))
    if len(bad):
        raise ValueError(
            f"{len(bad)} {name} hold NaN, infinity or are longer than {MAX_NORM:g}; the first is {name}[{bad[0]}]"
        )


def _choose_per_job(n: int, k: int, width: int, resources: Resources, default: int) -> int:
    """Return the number of queries that a worker takes at a time, within the memory."""
    limit = max(64, 3 * k + 48)  # buffer_limit in join.cpp
    bytes_per_query = 8 * (limit + 80) + 8 * k + width + 64  # buffer, best list, codes
    most = min(default, max(32, resources.memory_bytes // (resources.threads * bytes_per_query)))
    # Four jobs per thread, so that none waits long for the last; fewer of few queries, since every job reads all items.
    rounds = min(4, -(-n // (FEW_QUERIES * resources.threads)))
    share = -(-n // (rounds * resources.threads))
    return max(1, min(most, max(96, share)))


def _validate_exclude(exclude: np.ndarray | None, n: int) -> np.ndarray | None:
    """Return the exclusions as int64. Raises ValueError unless there is one per query."""
    if exclude is None:
        return None
    if exclude.shape != (n,):
        raise ValueError(f"exclude has shape {exclude.shape}; needed is one position per query, ({n},)")
    return np.ascontiguousarray(exclude, dtype=np.int64)


def _validate_thresholds(thresholds: np.ndarray | None, n: int) -> np.ndarray | None:
    """Return the thresholds as float32. Raises ValueError unless there is one number per query."""
    if thresholds is None:
        return None
    if thresholds.shape != (n,) or np.isnan(thresholds).any():
        raise ValueError(f"thresholds have shape {thresholds.shape}; needed is one number per query, ({n},)")
    return np.ascontiguousarray(thresholds, dtype=np.float32)


def _pad_slots(output: tuple[np.ndarray, np.ndarray, dict[str, int]], k: int) -> JoinOutput:
    """Return the output of a native join with its rows padded to k slots."""
    positions, scores, counters = output
    missing = ((0, 0), (0, k - positions.shape[1]))
    if missing[1][1]:
        positions = np.pad(positions, missing, constant_values=-1)
        scores = np.pad(scores, missing, constant_values=-np.inf)
    return JoinOutput(positions, scores, counters)


def _native_constraints(constraints: Constraints, packed: quantize.PackedItems) -> tuple[Any, Any, float]:
    """Return rule, caps and minimum score in the form that the native join takes."""
    rule = None if constraints.eligibility is None else rule_blocks.native_rule(constraints.eligibility, packed)
    min_score = -np.inf if constraints.min_score is None else constraints.min_score
    return rule, rule_blocks.native_caps(constraints), min_score
