"""The smallest number of candidates with which a query has enough survivors, and the reason if no number is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from nearcast.errors import SpecError
from nearcast.overfetch.budget import HullEdges, allocate_edges, compute_hull_edges
from nearcast.overfetch.survivor_probability import (
    CandidateSurvival,
    Float64Array,
    compute_curve,
    compute_probability,
    split_rows,
)
from nearcast.types import IntArray

__all__ = ["OverfetchPlan", "Shortage", "compute_edges", "evaluate_lengths", "plan_lengths", "plan_within"]

GROUPED_POINTS = 48  # points of a curve with groups, each a pass over the list; a few slots more change little
ROUNDING = 1e-12  # of sums of probabilities: 0.9499999999999998 counts as 0.95


class Shortage(StrEnum):
    """The reason why a query does not have enough survivors with the wanted probability."""

    TOO_FEW_CANDIDATES = "too_few_candidates"  # fewer candidates than wanted survivors
    TOO_FEW_SURVIVE = "too_few_survive"  # enough candidates, but too few of them survive
    TOO_FEW_SLOTS = "too_few_slots"  # more slots would be enough, but the table has none left


@dataclass(frozen=True, slots=True, eq=False)
class OverfetchPlan:
    """The number of candidates to store for each of n queries."""

    lengths: IntArray  # (n,) candidates to store
    probabilities: Float64Array  # (n,) probability that enough of them survive
    expected: Float64Array  # (n,) expected survivors
    shortage: npt.NDArray[np.object_]  # (n,) the Shortage of a query below the wanted probability, or None

    @classmethod
    def concatenate(cls, parts: Sequence[OverfetchPlan]) -> OverfetchPlan:
        """Return the plans of several parts of the queries as one value."""
        names = ("lengths", "probabilities", "expected", "shortage")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def is_short(self) -> npt.NDArray[np.bool_]:
        """(n,) whether a query is below the wanted probability."""
        below: npt.NDArray[np.bool_] = (self.shortage != None).astype(np.bool_)  # noqa: E711  (element by element)
        return below

    @property
    def n_short(self) -> int:
        """Return the number of queries below the wanted probability."""
        return int(np.count_nonzero(self.is_short))

    def expected_below(self, weights: Float64Array | None = None) -> float:
        """Return the expected share of short requests, or of short queries without weights."""
        if not len(self.probabilities) or (weights is not None and not weights.sum()):
            return 0.0
        return float(1 - np.average(self.probabilities, weights=weights))


def plan_lengths(candidates: CandidateSurvival, at_least: int, probability: float) -> OverfetchPlan:
    """Return for each query the fewest candidates of which `at_least` survive with this probability.

    A query without enough survivors keeps all of its candidates and gets a reason. Exact, with and without groups.
    """
    if not 0 < probability <= 1:
        raise SpecError(f"probability must be in (0, 1], got {probability:g}")
    n, k = candidates.survival.shape
    target = probability - ROUNDING
    lengths, reached = np.zeros(n, np.int64), np.zeros(n)
    for rows in split_rows(n, _row_bytes(k, at_least)):
        find = _search_curve if candidates.groups is None else _bisect
        lengths[rows], reached[rows] = find(candidates.select(rows), at_least, target)
    short = _find_shortages(candidates, at_least, reached, probability, lengths)
    return OverfetchPlan(lengths, reached, _expect_survivors(candidates, lengths), short)


def plan_within(
    candidates: CandidateSurvival,
    at_least: int,
    slots: int,
    *,
    probability: float = 1.0,
    weights: Float64Array | None = None,
    least: int = 0,
) -> OverfetchPlan:
    """Return lengths of at most `slots` in total, for the fewest requests with fewer than `at_least` survivors.

    weights: (n,) requests of each query. Default: 1 each. least: smallest length of a query that has so many
    candidates. probability: no query gets more slots than this needs; a query below it gets a reason. With groups,
    lengths are among GROUPED_POINTS spread over the list.
    """
    kept = np.minimum(candidates.lengths, least)
    edges = compute_edges(candidates, at_least, kept, probability)
    lengths = allocate_edges(edges if weights is None else edges.scale(weights), kept, slots)
    return evaluate_lengths(candidates, at_least, probability, lengths)


def evaluate_lengths(
    candidates: CandidateSurvival, at_least: int, probability: float, lengths: IntArray
) -> OverfetchPlan:
    """Return the plan of given lengths (n,)."""
    reached = _compute_in_blocks(candidates, at_least, lengths)
    short = _find_shortages(candidates, at_least, reached, probability, lengths)
    return OverfetchPlan(lengths, reached, _expect_survivors(candidates, lengths), short)


def compute_edges(
    candidates: CandidateSurvival, at_least: int, kept: IntArray, probability: float = 1.0, *, first_query: int = 0
) -> HullEdges:
    """Return the gains of slots beyond `kept` (n,) of each query; `allocate_edges` distributes tables of any size.

    first_query: number of the first of these queries, if they are a part of all.
    """
    n, k = candidates.survival.shape
    parts = []
    for rows in split_rows(n, _row_bytes(k, at_least)):
        short, at = _short_curve(candidates.select(rows), at_least, kept[rows])
        parts.append(compute_hull_edges(np.maximum(short, 1 - probability), at, kept[rows], first_query + rows.start))
    return HullEdges.concatenate(parts)


def _row_bytes(k: int, at_least: int) -> int:
    """Return the memory of a query of k candidates while its curve is computed."""
    return 8 * (2 * k + 4 * (at_least + 1))


def _expect_survivors(candidates: CandidateSurvival, lengths: IntArray) -> Float64Array:
    """Return (n,) the expected survivors of each query's first `lengths` candidates."""
    sums = np.concatenate([np.zeros((len(lengths), 1)), np.cumsum(candidates.survival, axis=1)], axis=1)
    expected: Float64Array = np.take_along_axis(sums, lengths[:, None], 1)[:, 0]
    return expected


def _find_shortages(
    candidates: CandidateSurvival, at_least: int, reached: Float64Array, probability: float, lengths: IntArray
) -> npt.NDArray[np.object_]:
    """Return (n,) why each query is below the probability; None if it is not."""
    found = np.full(len(reached), None, dtype=object)
    below = reached < probability - ROUNDING
    found[below] = Shortage.TOO_FEW_SURVIVE
    found[below & (lengths < candidates.lengths)] = Shortage.TOO_FEW_SLOTS
    found[below & (candidates.lengths < at_least)] = Shortage.TOO_FEW_CANDIDATES
    return found


def _search_curve(candidates: CandidateSurvival, at_least: int, target: float) -> tuple[IntArray, Float64Array]:
    curve = compute_curve(candidates, at_least)
    enough = curve >= target
    lengths = np.where(enough[:, -1], enough.argmax(axis=1), candidates.lengths)
    return lengths, np.take_along_axis(curve, lengths[:, None], 1)[:, 0]


def _bisect(candidates: CandidateSurvival, at_least: int, target: float) -> tuple[IntArray, Float64Array]:
    """Bisect the nondecreasing curve. With groups, computing the whole curve costs k times as much as one point."""
    reached = compute_probability(candidates, at_least, candidates.lengths)
    low, high = np.zeros_like(candidates.lengths), candidates.lengths.copy()
    solvable = reached >= target
    while (open_rows := solvable & (low < high)).any():
        middle = (low + high) // 2
        here = compute_probability(candidates, at_least, middle)
        enough = here >= target
        high = np.where(open_rows & enough, middle, high)
        low = np.where(open_rows & ~enough, middle + 1, low)
        reached = np.where(open_rows & enough, here, reached)
    return high, reached


def _short_curve(candidates: CandidateSurvival, at_least: int, kept: IntArray) -> tuple[Float64Array, IntArray]:
    """Return (n, points) the probability of a short request, and (n, points) the slots, from `kept` slots on."""
    n, k = candidates.survival.shape
    if candidates.groups is None:
        return 1 - compute_curve(candidates, at_least), np.broadcast_to(np.arange(k + 1), (n, k + 1))
    room = (candidates.lengths - kept)[:, None]
    at = kept[:, None] + np.rint(room * np.linspace(0, 1, min(k + 1, GROUPED_POINTS))).astype(np.int64)
    reached = np.stack(
        [compute_probability(candidates, at_least, at[:, point]) for point in range(at.shape[1])], axis=1
    )
    return 1 - np.maximum.accumulate(reached, axis=1), at


def _compute_in_blocks(candidates: CandidateSurvival, at_least: int, lengths: IntArray) -> Float64Array:
    reached = np.zeros(len(lengths))
    for rows in split_rows(len(lengths), _row_bytes(candidates.survival.shape[1], at_least)):
        reached[rows] = compute_probability(candidates.select(rows), at_least, lengths[rows])
    return reached
