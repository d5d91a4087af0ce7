"""Share out a table of a given size: which query gets how many slots, so that the fewest requests end up short.

The probability that a query ends up short falls with its slots, but the slope may first grow and then shrink: the first
slots help nothing until there are enough. So each query's curve is replaced by its lower convex hull, and slots are
sold in whole edges of hulls, the steepest first: one price for all queries (a Lagrange multiplier). That is the optimum
for every table size at which an edge ends; between two of them the next edge does not fit, and what is lost against the
optimum is less than that edge is worth. Knows nothing of where curves come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nearcast.errors import SpecError
from nearcast.overfetch.survivor_probability import Float64Array
from nearcast.types import IntArray

__all__ = ["Edges", "allocate", "hull_edges", "sell"]

NEGLIGIBLE = 1e-9  # of a query's requests: an edge that helps fewer is not looked for


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Edges of convex hulls; those of a query are in order, and none is worth more a slot than the one before."""

    queries: IntArray  # whose edge it is
    slots: IntArray  # what it costs
    gains: Float64Array  # expected requests that it keeps from ending up short
    prices: Float64Array  # the same for each slot

    @classmethod
    def joined(cls, parts: Sequence[Edges]) -> Edges:
        """The edges of several blocks of queries as one."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0))
        names = ("queries", "slots", "gains", "prices")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def weighted(self, weights: Float64Array) -> Edges:
        """The same edges when query q is asked for `weights[q]` times; those that nobody asks for are left out."""
        factors = weights[self.queries]
        asked = factors > 0
        factors = factors[asked]
        return Edges(self.queries[asked], self.slots[asked], self.gains[asked] * factors, self.prices[asked] * factors)


def allocate(
    short: Float64Array, slots: int, *, weights: Float64Array | None = None, least: IntArray | None = None
) -> IntArray:
    """(n,) slots for each query, in all at most `slots`, so that the fewest requests are expected to end up short.

    short: (n, k + 1) the probability of ending up short with 0..k slots; it never rises along a row. weights: (n,)
    requests of each query. least: (n,) slots that each query gets in any case. How good it is: see the module.
    """
    n, width = short.shape
    least = np.zeros(n, np.int64) if least is None else least
    edges = hull_edges(short, np.broadcast_to(np.arange(width), short.shape), least)
    return sell(edges if weights is None else edges.weighted(weights), least, slots)


def hull_edges(short: Float64Array, at: IntArray, least: IntArray, first_query: int = 0) -> Edges:
    """The edges of the lower convex hulls of curves (n, points), from `least` slots on.

    at: (n, points) the slots that each point of a curve stands for, ascending; `least` (n,) is among them.
    """
    corners, last = _hull_corners(short, at, least)
    rows, order = np.nonzero(np.arange(short.shape[1]) < last[:, None])
    left, right = corners[rows, order], corners[rows, order + 1]
    gains = short[rows, left] - short[rows, right]
    worth = gains > NEGLIGIBLE
    rows, left, right, gains = rows[worth], left[worth], right[worth], gains[worth]
    slots = at[rows, right] - at[rows, left]
    return Edges(rows + first_query, slots, gains, _never_rising(rows, gains / slots))


def _hull_corners(short: Float64Array, at: IntArray, least: IntArray) -> tuple[IntArray, IntArray]:
    """((n, points) the points that are corners, (n,) the column of the last one): Andrew's scan, all curves at once.

    Points on a straight edge stay corners, so that edges are small.
    """
    n, points = short.shape
    heights, slots = np.ascontiguousarray(short.T), np.ascontiguousarray(at.T)  # a step reads a row, not a column
    corners, last = np.zeros((points, n), np.int64), np.full(n, -1)
    for point in range(points):
        tip = corners[np.maximum(last, 0), np.arange(n)]
        fresh = np.flatnonzero((slots[point] >= least) & ((last < 0) | (slots[point] > slots[tip, np.arange(n)])))
        rows = fresh
        while len(rows := rows[last[rows] >= 1]):  # take back corners that the new point makes hollow
            first, second = corners[last[rows] - 1, rows], corners[last[rows], rows]
            before = (heights[first, rows] - heights[second, rows]) * (slots[point, rows] - slots[second, rows])
            after = (heights[second, rows] - heights[point, rows]) * (slots[second, rows] - slots[first, rows])
            rows = rows[after > before]
            last[rows] -= 1
        last[fresh] += 1
        corners[last[fresh], fresh] = point
    return corners.T, last


def _never_rising(rows: IntArray, prices: Float64Array) -> Float64Array:
    """Prices along each curve, freed of what rounding lets them rise, so that edges are sold in their order."""
    order = np.lexsort((-prices, rows))
    return prices[order]  # rows ascend and their prices fall but for rounding: sorting them moves none by more


def sell(edges: Edges, least: IntArray, slots: int) -> IntArray:
    """(n,) each query's `least`, and whole edges by their gain a slot until no more fits into the table."""
    left = slots - int(least.sum())
    if left < 0:
        raise SpecError(
            f"the table has {slots:,} slots, and what every query keeps takes {least.sum():,}; give it more"
        )
    queries, costs = edges.queries, edges.slots
    order = np.lexsort((queries, -edges.prices))  # at one price the smaller query first
    paid = np.cumsum(costs[order])
    whole = int(np.searchsorted(paid, left, side="right"))
    lengths = least.copy()
    np.add.at(lengths, queries[order[:whole]], costs[order[:whole]])
    if whole < len(order):
        _fill_up(lengths, queries, costs, order[whole:], left - int(paid[whole - 1] if whole else 0))
    return lengths


def _fill_up(lengths: IntArray, queries: IntArray, costs: IntArray, order: IntArray, left: int) -> None:
    """The first edge that did not fit leaves slots over: cheaper edges behind it take them, a query's own in turn."""
    cheapest = int(costs[order].min())
    passed_over: set[int] = set()
    for edge in order:
        if left < cheapest:
            return
        query, cost = int(queries[edge]), int(costs[edge])
        if cost > left:
            passed_over.add(query)
        if query not in passed_over:
            lengths[query] += cost
            left -= cost
