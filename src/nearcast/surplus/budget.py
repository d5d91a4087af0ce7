"""Share out a table of a given size: which query gets how many slots, so that the fewest requests end up short.

The probability that a query ends up short falls with its slots, but the slope may first grow and then shrink: the first
slots help nothing until there are enough. So each query's curve is replaced by its lower convex hull, and slots are
sold in whole edges of hulls, the steepest first: one price for all queries (a Lagrange multiplier). That is the optimum
for every table size at which an edge ends; between two of them the next edge does not fit, and what is lost against the
optimum is less than that edge is worth. Knows nothing of where curves come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nearcast.errors import SpecError
from nearcast.surplus.reach import Float64Array
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


def allocate(
    short: Float64Array, slots: int, *, weights: Float64Array | None = None, least: IntArray | None = None
) -> IntArray:
    """(n,) slots for each query, in all at most `slots`, so that the fewest requests are expected to end up short.

    short: (n, k + 1) the probability of ending up short with 0..k slots; it never rises along a row. weights: (n,)
    requests of each query. least: (n,) slots that each query gets in any case. How good it is: see the module.
    """
    n, width = short.shape
    weights = np.ones(n) if weights is None else weights
    least = np.zeros(n, np.int64) if least is None else least
    at = np.broadcast_to(np.arange(width), short.shape)
    return sell([hull_edges(short, at, weights, least)], least, slots)


def hull_edges(
    short: Float64Array, at: IntArray, weights: Float64Array, least: IntArray, first_query: int = 0
) -> Edges:
    """The edges of the lower convex hulls of curves (n, points), from `least` slots on.

    at: (n, points) the slots that each point of a curve stands for, ascending; `least` (n,) is among them.
    """
    start = np.argmax(at >= least[:, None], axis=1)
    steps = [_NONE, *_walk(short, at, start)]
    queries, slots, gains, prices = (np.concatenate(parts) for parts in zip(*steps, strict=True))
    asked = weights[queries] > 0
    queries, slots, gains, prices = queries[asked], slots[asked], gains[asked], prices[asked]
    return Edges(queries + first_query, slots, gains * weights[queries], prices * weights[queries])


_Step = tuple[IntArray, IntArray, Float64Array, Float64Array]
_NONE: _Step = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0))


def _walk(short: Float64Array, at: IntArray, start: IntArray) -> Iterator[_Step]:
    """From each curve's start, again and again the steepest way down: queries, slots, gains, prices of one step of all.

    Of equal slopes the nearest point is taken, so that edges are small. The price never rises along a curve, though
    rounding would let it.
    """
    rows, points = np.arange(len(short)), np.arange(short.shape[1])
    price = np.full(len(short), np.inf)
    while len(rows):
        here = start[:, None]
        ahead = at[rows] - np.take_along_axis(at[rows], here, 1)
        drop = np.take_along_axis(short[rows], here, 1) - short[rows]
        slopes = np.divide(drop, ahead, out=np.full(drop.shape, -np.inf), where=(points > here) & (ahead > 0))
        steepest = slopes.argmax(axis=1)
        to = steepest[:, None]
        gains = np.take_along_axis(drop, to, 1)[:, 0]
        price = np.minimum(price, np.take_along_axis(slopes, to, 1)[:, 0])
        going = (steepest > start) & (gains > NEGLIGIBLE)
        costs = np.take_along_axis(ahead, to, 1)[going, 0]
        rows, start, price = rows[going], steepest[going], price[going]
        yield rows, costs, gains[going], price


def sell(parts: Sequence[Edges], least: IntArray, slots: int) -> IntArray:
    """(n,) each query's `least`, and whole edges by their gain a slot until no more fits into the table."""
    left = slots - int(least.sum())
    if left < 0:
        raise SpecError(
            f"the table has {slots:,} slots, and what every query keeps takes {least.sum():,}; give it more"
        )
    queries = np.concatenate([part.queries for part in parts])
    costs = np.concatenate([part.slots for part in parts])
    prices = np.concatenate([part.prices for part in parts])
    order = np.lexsort((queries, -prices))  # at one price the smaller query first
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
