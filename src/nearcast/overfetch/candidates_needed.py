"""The fewest candidates with which a query has enough survivors, and the queries for which no number will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from nearcast.errors import SpecError
from nearcast.overfetch.budget import Edges, hull_edges, sell
from nearcast.overfetch.survivor_probability import Float64Array, Offer, blocks, reach, reach_at
from nearcast.types import IntArray

__all__ = ["Plan", "Shortage", "hulls", "plan_lengths", "plan_of", "plan_within"]

GROUPED_POINTS = 48  # of a list's curve with groups; a step of a few slots changes little in a list of hundreds
ROUNDING = 1e-12  # of sums of probabilities: 0.95 that comes out as 0.9499999999999998 is 0.95


class Shortage(StrEnum):
    """Why a query cannot have enough survivors, or not with the probability asked for."""

    TOO_FEW_CANDIDATES = "too_few_candidates"  # it has fewer candidates than survivors are wanted
    TOO_FEW_SURVIVE = "too_few_survive"  # it has enough, and too many of them are lost
    TOO_FEW_SLOTS = "too_few_slots"  # more slots would have done, and the table had none left


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How many candidates to store for each of n queries."""

    lengths: IntArray  # (n,) candidates to store
    reached: Float64Array  # (n,) probability that enough of them survive
    expected: Float64Array  # (n,) survivors to expect of them
    shortage: npt.NDArray[np.object_]  # (n,) None, or the Shortage of a query below the probability asked for

    @classmethod
    def joined(cls, parts: Sequence[Plan]) -> Plan:
        """The plans of several parts of the queries as one."""
        names = ("lengths", "reached", "expected", "shortage")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def n_short(self) -> int:
        """How many queries stay below the probability asked for."""
        return int(np.count_nonzero(self.shortage != None))  # noqa: E711  (compares element by element)

    def expected_below(self, weights: Float64Array | None = None) -> float:
        """The share of requests, or of queries without their traffic, to expect below the number asked for."""
        if not len(self.reached) or (weights is not None and not weights.sum()):
            return 0.0
        return float(1 - np.average(self.reached, weights=weights))


def plan_lengths(offered: Offer, at_least: int, probability: float) -> Plan:
    """For each query the fewest candidates of which `at_least` survive with this probability.

    A query that cannot be helped keeps all it has, and says why. Exact, with and without groups.
    """
    if not 0 < probability <= 1:
        raise SpecError(f"probability is {probability:g}; it is above 0 and at most 1")
    n, k = offered.survival.shape
    wanted = probability - ROUNDING
    lengths, reached = np.zeros(n, np.int64), np.zeros(n)
    for rows in blocks(n, _row_bytes(k, at_least)):
        find = _first_of_curve if offered.groups is None else _first_by_halving
        lengths[rows], reached[rows] = find(offered.of_queries(rows), at_least, wanted)
    short = _shortages(offered, at_least, reached, probability, lengths)
    return Plan(lengths, reached, _expected(offered, lengths), short)


def plan_within(
    offered: Offer,
    at_least: int,
    slots: int,
    *,
    probability: float = 1.0,
    weights: Float64Array | None = None,
    least: int = 0,
) -> Plan:
    """Lengths that take at most `slots` in all, for the fewest requests with fewer than `at_least` survivors.

    weights: (n,) requests of each query; all alike without. least: what each query keeps in any case, as far as it
    has so many. probability: more than that is wanted of no query, and those below it say why. With groups, lengths
    are among GROUPED_POINTS spread over the list, since each point costs a pass over it.
    """
    kept = np.minimum(offered.lengths, least)
    edges = hulls(offered, at_least, kept, probability)
    lengths = sell(edges if weights is None else edges.weighted(weights), kept, slots)
    return plan_of(offered, at_least, probability, lengths)


def plan_of(offered: Offer, at_least: int, probability: float, lengths: IntArray) -> Plan:
    """What lengths (n,) lead to, however they were found."""
    reached = _reach_in_blocks(offered, at_least, lengths)
    short = _shortages(offered, at_least, reached, probability, lengths)
    return Plan(lengths, reached, _expected(offered, lengths), short)


def hulls(offered: Offer, at_least: int, kept: IntArray, probability: float = 1.0, *, first_query: int = 0) -> Edges:
    """What slots are worth to each query beyond those it keeps (n,), for `sell` to share out tables of any size.

    first_query: number of the first of these queries, where they are a part of more.
    """
    n, k = offered.survival.shape
    parts = []
    for rows in blocks(n, _row_bytes(k, at_least)):
        short, at = _curve(offered.of_queries(rows), at_least, kept[rows])
        parts.append(hull_edges(np.maximum(short, 1 - probability), at, kept[rows], first_query + rows.start))
    return Edges.joined(parts)


def _row_bytes(k: int, at_least: int) -> int:
    """What a query of k candidates takes while its curve is made."""
    return 8 * (2 * k + 4 * (at_least + 1))


def _expected(offered: Offer, lengths: IntArray) -> Float64Array:
    """(n,) how many of each query's first `lengths` candidates survive on average."""
    sums = np.concatenate([np.zeros((len(lengths), 1)), np.cumsum(offered.survival, axis=1)], axis=1)
    expected: Float64Array = np.take_along_axis(sums, lengths[:, None], 1)[:, 0]
    return expected


def _shortages(
    offered: Offer, at_least: int, reached: Float64Array, probability: float, lengths: IntArray
) -> npt.NDArray[np.object_]:
    """(n,) why each query is below the probability; None for those that are not."""
    found = np.full(len(reached), None, dtype=object)
    below = reached < probability - ROUNDING
    found[below] = Shortage.TOO_FEW_SURVIVE
    found[below & (lengths < offered.lengths)] = Shortage.TOO_FEW_SLOTS
    found[below & (offered.lengths < at_least)] = Shortage.TOO_FEW_CANDIDATES
    return found


def _first_of_curve(offered: Offer, at_least: int, wanted: float) -> tuple[IntArray, Float64Array]:
    curve = reach(offered, at_least)
    enough = curve >= wanted
    lengths = np.where(enough[:, -1], enough.argmax(axis=1), offered.lengths)
    return lengths, np.take_along_axis(curve, lengths[:, None], 1)[:, 0]


def _first_by_halving(offered: Offer, at_least: int, wanted: float) -> tuple[IntArray, Float64Array]:
    """With groups a curve costs k times a point of it; it never falls, so the point is found by halving."""
    reached = reach_at(offered, at_least, offered.lengths)
    low, high = np.zeros_like(offered.lengths), offered.lengths.copy()
    helped = reached >= wanted
    while (open_rows := helped & (low < high)).any():
        middle = (low + high) // 2
        here = reach_at(offered, at_least, middle)
        enough = here >= wanted
        high = np.where(open_rows & enough, middle, high)
        low = np.where(open_rows & ~enough, middle + 1, low)
        reached = np.where(open_rows & enough, here, reached)
    return high, reached


def _curve(offered: Offer, at_least: int, kept: IntArray) -> tuple[Float64Array, IntArray]:
    """((n, points) probability of ending up short, (n, points) with so many slots), from `kept` slots on."""
    n, k = offered.survival.shape
    if offered.groups is None:
        return 1 - reach(offered, at_least), np.broadcast_to(np.arange(k + 1), (n, k + 1))
    room = (offered.lengths - kept)[:, None]
    at = kept[:, None] + np.rint(room * np.linspace(0, 1, min(k + 1, GROUPED_POINTS))).astype(np.int64)
    reached = np.stack([reach_at(offered, at_least, at[:, point]) for point in range(at.shape[1])], axis=1)
    return 1 - np.maximum.accumulate(reached, axis=1), at


def _reach_in_blocks(offered: Offer, at_least: int, lengths: IntArray) -> Float64Array:
    reached = np.zeros(len(lengths))
    for rows in blocks(len(lengths), _row_bytes(offered.survival.shape[1], at_least)):
        reached[rows] = reach_at(offered.of_queries(rows), at_least, lengths[rows])
    return reached
