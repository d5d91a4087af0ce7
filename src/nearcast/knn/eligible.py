"""Eligibility of pairs as arrays: leaves compare codes of an item with bounds or sets of a query; a tree combines them.

A rule is compiled to this form once per join. It is two-valued: the compiler has decided the meaning of null. A pair is
eligible if the tree is true. Knows nothing of columns, types or text. The native kernels evaluate the same leaves;
`eligible_pairs` is their NumPy fallback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import numpy.typing as npt

from nearcast.types import IntArray, flat

__all__ = [
    "AllOf",
    "AnyOf",
    "BitsetOverlap",
    "Eligibility",
    "Interval",
    "Leaf",
    "ListOverlap",
    "Node",
    "are_eligible",
    "eligible_pairs",
]

Int32Array = npt.NDArray[np.int32]
WordArray = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """True if low <= code <= high. A null item has code -1; a low is never negative; 1..0 is empty."""

    codes: Int32Array  # (m,)
    low: Int32Array  # (n,)
    high: Int32Array  # (n,)


@dataclass(frozen=True, slots=True, eq=False)
class BitsetOverlap:
    """True if two sets of at most 64 * words values share a value; negated: if they share none."""

    items: WordArray  # (m, words)
    queries: WordArray  # (n, words)
    negated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class ListOverlap:
    """The same for sets of any size: item i has the ascending item_values[item_starts[i]:item_starts[i + 1]]."""

    item_starts: IntArray  # (m + 1,)
    item_values: Int32Array
    query_starts: IntArray  # (n + 1,)
    query_values: Int32Array
    negated: bool = False


Leaf = Interval | BitsetOverlap | ListOverlap


@dataclass(frozen=True, slots=True)
class AllOf:
    """True if every part is true. Without parts: true."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """True if a part is true. Without parts: false."""

    parts: tuple[Node, ...]


Node = int | AllOf | AnyOf
"""A leaf by its number, or a combination of nodes."""


@dataclass(frozen=True, slots=True, eq=False)
class Eligibility:
    """The eligible pairs of queries and items: those for which the tree is true."""

    n_queries: int
    n_items: int
    leaves: tuple[Leaf, ...]
    tree: Node

    def of_queries(self, rows: IntArray | slice) -> Eligibility:
        """Return the eligibility of some of the queries, in this order."""
        numbers = np.arange(self.n_queries)[rows]
        return replace(
            self, n_queries=len(numbers), leaves=tuple(_take_queries(leaf, rows, numbers) for leaf in self.leaves)
        )

    def of_items(self, rows: IntArray | slice) -> Eligibility:
        """Return the eligibility of some of the items, in this order."""
        numbers = np.arange(self.n_items)[rows]
        return replace(
            self, n_items=len(numbers), leaves=tuple(_take_items(leaf, rows, numbers) for leaf in self.leaves)
        )


def eligible_pairs(rule: Eligibility) -> BoolArray:
    """Return (n_queries, n_items) flags of eligible pairs. For a block, take its queries and items first."""
    shape = (rule.n_queries, rule.n_items)

    def value(node: Node) -> BoolArray:
        if isinstance(node, AllOf):
            return reduce(np.logical_and, map(value, node.parts), np.ones(shape, np.bool_))
        if isinstance(node, AnyOf):
            return reduce(np.logical_or, map(value, node.parts), np.zeros(shape, np.bool_))
        return _leaf_pairs(rule.leaves[node])

    return value(rule.tree)


def are_eligible(rule: Eligibility, queries: IntArray, items: IntArray) -> BoolArray:
    """Return (len,) whether these pairs of a query position and an item position are eligible."""
    flags = np.empty(len(queries), np.bool_)
    for number, (query, item) in enumerate(zip(queries.tolist(), items.tolist(), strict=True)):
        pair = rule.of_queries(slice(query, query + 1)).of_items(slice(item, item + 1))
        flags[number] = eligible_pairs(pair)[0, 0]
    return flags


def _leaf_pairs(leaf: Leaf) -> BoolArray:
    if isinstance(leaf, Interval):
        inside: BoolArray = (leaf.codes >= leaf.low[:, None]) & (leaf.codes <= leaf.high[:, None])
        return inside
    if isinstance(leaf, BitsetOverlap):
        words = leaf.items.shape[1]
        shares = np.zeros((len(leaf.queries), len(leaf.items)), np.bool_)
        for word in range(words):
            shares |= (leaf.items[:, word] & leaf.queries[:, word, None]) != 0
    else:
        shares = _shared_pairs(leaf)
    return ~shares if leaf.negated else shares


def _shared_pairs(leaf: ListOverlap) -> BoolArray:
    """Flag a query's values in a table over all values, and look up the items' values in it."""
    n, m = len(leaf.query_starts) - 1, len(leaf.item_starts) - 1
    size = int(max(leaf.item_values.max(initial=-1), leaf.query_values.max(initial=-1))) + 1
    owners = np.repeat(np.arange(m), np.diff(leaf.item_starts))
    shares = np.zeros((n, m), np.bool_)
    is_value = np.zeros(size, np.bool_)
    for query in range(n):
        values = leaf.query_values[leaf.query_starts[query] : leaf.query_starts[query + 1]]
        is_value[values] = True
        shares[query, owners[is_value[leaf.item_values]]] = True
        is_value[values] = False
    return shares


def _take_queries(leaf: Leaf, rows: IntArray | slice, numbers: IntArray) -> Leaf:
    if isinstance(leaf, Interval):
        return replace(leaf, low=leaf.low[rows], high=leaf.high[rows])
    if isinstance(leaf, BitsetOverlap):
        return replace(leaf, queries=leaf.queries[rows])
    starts, values = _take_lists(leaf.query_starts, leaf.query_values, numbers)
    return replace(leaf, query_starts=starts, query_values=values)


def _take_items(leaf: Leaf, rows: IntArray | slice, numbers: IntArray) -> Leaf:
    if isinstance(leaf, Interval):
        return replace(leaf, codes=leaf.codes[rows])
    if isinstance(leaf, BitsetOverlap):
        return replace(leaf, items=leaf.items[rows])
    starts, values = _take_lists(leaf.item_starts, leaf.item_values, numbers)
    return replace(leaf, item_starts=starts, item_values=values)


def _take_lists(starts: IntArray, values: Int32Array, rows: IntArray | Sequence[int]) -> tuple[IntArray, Int32Array]:
    """Return some of the lists of a flat array of lists."""
    first, last = starts[:-1][rows], starts[1:][rows]
    return np.append(0, np.cumsum(last - first)), values[flat(first, last)]
