"""Distribute the slots of a table of a given size over queries, so that the fewest requests are short.

A request is short if fewer candidates survive than wanted. The probability of that falls with the slots of its query,
but the slope may grow first: the first slots help nothing until there are enough. So the curve of each query is
replaced by its lower convex hull, and whole edges of the hulls are taken by their gain per slot, the largest first (a
Lagrange multiplier). The result is optimal for every table size at which an edge ends. Between two such sizes, the loss
against the optimum is smaller than the gain of the next edge. Knows nothing of how curves are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nearcast.errors import SpecError
from nearcast.overfetch.survivor_probability import Float64Array
from nearcast.types import IntArray

__all__ = ["HullEdges", "allocate_edges", "allocate_slots", "compute_hull_edges"]

NEGLIGIBLE = 1e-9  # share of a query's requests: edges with a smaller gain are dropped


@dataclass(frozen=True, slots=True, eq=False)
class HullEdges:
    """Edges of convex hulls. The edges of a query are in order, and their gain per slot never rises."""

    queries: IntArray  # the query of each edge
    slots: IntArray  # number of slots of the edge
    gains: Float64Array  # expected requests that are no longer short
    prices: Float64Array  # gain per slot

    @classmethod
    def concatenate(cls, parts: Sequence[HullEdges]) -> HullEdges:
        """Return the edges of several blocks of queries as one value."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0))
        names = ("queries", "slots", "gains", "prices")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def scale(self, weights: Float64Array) -> HullEdges:
        """Return the edges with gains times `weights[q]`, the requests of query q; drop queries without requests."""
        factors = weights[self.queries]
        requested = factors > 0
        factors = factors[requested]
        return HullEdges(
            self.queries[requested],
            self.slots[requested],
            self.gains[requested] * factors,
            self.prices[requested] * factors,
        )


def allocate_slots(
    short: Float64Array, slots: int, *, weights: Float64Array | None = None, least: IntArray | None = None
) -> IntArray:
    """Return (n,) slots of each query, at most `slots` in total, for the fewest expected short requests.

    short: (n, k + 1) probability that a request is short with 0..k slots; it never rises along a row. weights: (n,)
    requests of each query. least: (n,) smallest number of slots of each query. See the module for the quality.
    """
    n, width = short.shape
    least = np.zeros(n, np.int64) if least is None else least
    edges = compute_hull_edges(short, np.broadcast_to(np.arange(width), short.shape), least)
    return allocate_edges(edges if weights is None else edges.scale(weights), least, slots)


def compute_hull_edges(short: Float64Array, at: IntArray, least: IntArray, first_query: int = 0) -> HullEdges:
    """Return the edges of the lower convex hulls of curves (n, points), from `least` slots on.

    at: (n, points) number of slots at each point of a curve, ascending; it contains `least` (n,).
    """
    corners, last = _hull_corners(short, at, least)
    rows, order = np.nonzero(np.arange(short.shape[1]) < last[:, None])
    left, right = corners[rows, order], corners[rows, order + 1]
    gains = short[rows, left] - short[rows, right]
    worth = gains > NEGLIGIBLE
    rows, left, right, gains = rows[worth], left[worth], right[worth], gains[worth]
    slots = at[rows, right] - at[rows, left]
    return HullEdges(rows + first_query, slots, gains, _never_rising(rows, gains / slots))


def _hull_corners(short: Float64Array, at: IntArray, least: IntArray) -> tuple[IntArray, IntArray]:
    """Return (n, points) the corners of each hull, and (n,) the column of the last corner.

    Andrew's monotone chain, for all curves at once. Points on a straight edge stay corners, so that edges are small.
    """
    n, points = short.shape
    heights, slots = np.ascontiguousarray(short.T), np.ascontiguousarray(at.T)  # each step reads one row
    corners, last = np.zeros((points, n), np.int64), np.full(n, -1)
    for point in range(points):
        tip = corners[np.maximum(last, 0), np.arange(n)]
        fresh = np.flatnonzero((slots[point] >= least) & ((last < 0) | (slots[point] > slots[tip, np.arange(n)])))
        rows = fresh
        while len(rows := rows[last[rows] >= 1]):  # remove corners above the line to the new point
            first, second = corners[last[rows] - 1, rows], corners[last[rows], rows]
            before = (heights[first, rows] - heights[second, rows]) * (slots[point, rows] - slots[second, rows])
            after = (heights[second, rows] - heights[point, rows]) * (slots[second, rows] - slots[first, rows])
            rows = rows[after > before]
            last[rows] -= 1
        last[fresh] += 1
        corners[last[fresh], fresh] = point
    return corners.T, last


def _never_rising(rows: IntArray, prices: Float64Array) -> Float64Array:
    """Return prices that never rise along a curve, in spite of rounding, so that edges are taken in their order."""
    order = np.lexsort((-prices, rows))
    return prices[order]  # prices fall but for rounding, so sorting moves none by more than that


def allocate_edges(edges: HullEdges, least: IntArray, slots: int) -> IntArray:
    """Return (n,) slots of each query: `least`, and whole edges by their gain per slot while they fit."""
    left = slots - int(least.sum())
    if left < 0:
        raise SpecError(
            f"the table has {slots:,} slots, and all queries need at least {least.sum():,}; give it more slots"
        )
    queries, costs = edges.queries, edges.slots
    order = np.lexsort((queries, -edges.prices))  # equal prices: the smaller query first
    paid = np.cumsum(costs[order])
    whole = int(np.searchsorted(paid, left, side="right"))
    lengths = least.copy()
    np.add.at(lengths, queries[order[:whole]], costs[order[:whole]])
    if whole < len(order):
        _fill_up(lengths, queries, costs, order[whole:], left - int(paid[whole - 1] if whole else 0))
    return lengths


def _fill_up(lengths: IntArray, queries: IntArray, costs: IntArray, order: IntArray, left: int) -> None:
    """Give the slots that remain before the first edge that does not fit to smaller edges; a query's edges in order."""
    cheapest = int(costs[order].min())
    skipped: set[int] = set()
    for edge in order:
        if left < cheapest:
            return
        query, cost = int(queries[edge]), int(costs[edge])
        if cost > left:
            skipped.add(query)
        if query not in skipped:
            lengths[query] += cost
            left -= cost
