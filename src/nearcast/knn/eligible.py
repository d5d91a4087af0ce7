"""Which items a query may get, as arrays: leaves that compare item codes with what a query asks for, and how they join.

A rule is compiled to this once per join. It is two-valued: whoever compiles has settled what null means, and a pair is
eligible where the tree is true. Knows nothing of columns, types or text. The native kernels evaluate the same leaves;
`eligible_pairs` is their twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import numpy.typing as npt

from nearcast.types import IntArray, flat

__all__ = [
    "All",
    "Any",
    "Eligibility",
    "Interval",
    "Leaf",
    "Node",
    "Overlap",
    "Shared",
    "eligible_of",
    "eligible_pairs",
]

Int32Array = npt.NDArray[np.int32]
WordArray = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """True where low <= code <= high. A null item has code -1, and lows are never negative; 1..0 is empty."""

    codes: Int32Array  # (m,)
    low: Int32Array  # (n,)
    high: Int32Array  # (n,)


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """True where both sets of at most 64 * words values share one; negated, where they share none."""

    items: WordArray  # (m, words)
    queries: WordArray  # (n, words)
    negated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """The same for sets of any size: item i has the ascending item_values[item_starts[i]:item_starts[i + 1]]."""

    item_starts: IntArray  # (m + 1,)
    item_values: Int32Array
    query_starts: IntArray  # (n + 1,)
    query_values: Int32Array
    negated: bool = False


Leaf = Interval | Overlap | Shared


@dataclass(frozen=True, slots=True)
class All:
    """True where every part is; without parts, true."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Any:
    """True where some part is; without parts, false."""

    parts: tuple[Node, ...]


Node = int | All | Any
"""A leaf by its number, or a combination."""


@dataclass(frozen=True, slots=True, eq=False)
class Eligibility:
    """Eligible are the pairs for which the tree is true."""

    n_queries: int
    n_items: int
    leaves: tuple[Leaf, ...]
    tree: Node

    def of_queries(self, rows: IntArray | slice) -> Eligibility:
        """The same for some of the queries, in this order."""
        numbers = np.arange(self.n_queries)[rows]
        return replace(
            self, n_queries=len(numbers), leaves=tuple(_of_queries(leaf, rows, numbers) for leaf in self.leaves)
        )

    def of_items(self, rows: IntArray | slice) -> Eligibility:
        """The same for some of the items, in this order."""
        numbers = np.arange(self.n_items)[rows]
        return replace(self, n_items=len(numbers), leaves=tuple(_of_items(leaf, rows, numbers) for leaf in self.leaves))


def eligible_pairs(rule: Eligibility) -> BoolArray:
    """(n_queries, n_items) which pairs are eligible. For blocks: cut the rule with of_queries and of_items first."""
    shape = (rule.n_queries, rule.n_items)

    def value(node: Node) -> BoolArray:
        if isinstance(node, All):
            return reduce(np.logical_and, map(value, node.parts), np.ones(shape, np.bool_))
        if isinstance(node, Any):
            return reduce(np.logical_or, map(value, node.parts), np.zeros(shape, np.bool_))
        return _leaf_pairs(rule.leaves[node])

    return value(rule.tree)


def eligible_of(rule: Eligibility, queries: IntArray, items: IntArray) -> BoolArray:
    """(len,) whether these pairs of a query and an item, given by position, are eligible."""
    found = np.empty(len(queries), np.bool_)
    for place, (query, item) in enumerate(zip(queries.tolist(), items.tolist(), strict=True)):
        pair = rule.of_queries(slice(query, query + 1)).of_items(slice(item, item + 1))
        found[place] = eligible_pairs(pair)[0, 0]
    return found


def _leaf_pairs(leaf: Leaf) -> BoolArray:
    if isinstance(leaf, Interval):
        inside: BoolArray = (leaf.codes >= leaf.low[:, None]) & (leaf.codes <= leaf.high[:, None])
        return inside
    if isinstance(leaf, Overlap):
        words = leaf.items.shape[1]
        shares = np.zeros((len(leaf.queries), len(leaf.items)), np.bool_)
        for word in range(words):
            shares |= (leaf.items[:, word] & leaf.queries[:, word, None]) != 0
    else:
        shares = _shared_pairs(leaf)
    return ~shares if leaf.negated else shares


def _shared_pairs(leaf: Shared) -> BoolArray:
    """A query's values become a table over all values, which the items' values look up."""
    n, m = len(leaf.query_starts) - 1, len(leaf.item_starts) - 1
    size = int(max(leaf.item_values.max(initial=-1), leaf.query_values.max(initial=-1))) + 1
    owners = np.repeat(np.arange(m), np.diff(leaf.item_starts))
    shares = np.zeros((n, m), np.bool_)
    wanted = np.zeros(size, np.bool_)
    for query in range(n):
        values = leaf.query_values[leaf.query_starts[query] : leaf.query_starts[query + 1]]
        wanted[values] = True
        shares[query, owners[wanted[leaf.item_values]]] = True
        wanted[values] = False
    return shares


def _of_queries(leaf: Leaf, rows: IntArray | slice, numbers: IntArray) -> Leaf:
    if isinstance(leaf, Interval):
        return replace(leaf, low=leaf.low[rows], high=leaf.high[rows])
    if isinstance(leaf, Overlap):
        return replace(leaf, queries=leaf.queries[rows])
    starts, values = _lists(leaf.query_starts, leaf.query_values, numbers)
    return replace(leaf, query_starts=starts, query_values=values)


def _of_items(leaf: Leaf, rows: IntArray | slice, numbers: IntArray) -> Leaf:
    if isinstance(leaf, Interval):
        return replace(leaf, codes=leaf.codes[rows])
    if isinstance(leaf, Overlap):
        return replace(leaf, items=leaf.items[rows])
    starts, values = _lists(leaf.item_starts, leaf.item_values, numbers)
    return replace(leaf, item_starts=starts, item_values=values)


def _lists(starts: IntArray, values: Int32Array, rows: IntArray | Sequence[int]) -> tuple[IntArray, Int32Array]:
    """Some of the lists of a flat array of lists."""
    first, last = starts[:-1][rows], starts[1:][rows]
    return np.append(0, np.cumsum(last - first)), values[flat(first, last)]
