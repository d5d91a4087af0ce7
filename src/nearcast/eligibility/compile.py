"""Rules over whole tables, compiled to the arrays that a join evaluates.

A condition is true, false or unknown, and a pair is eligible if all rules are true. The compiled tree has two values,
so a condition compiles to when it is true, and under a `not` to when it is false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.eligibility.nodes import (
    And,
    Compare,
    IsNull,
    Member,
    Node,
    Not,
    Or,
    Rule,
    collect_tables,
    request_time,
)
from nearcast.eligibility.rule_columns import (
    ListColumn,
    Scalars,
    Values,
    convert_to_lists,
    encode_list_values,
    encode_values,
    evaluate_values,
)
from nearcast.eligibility.rule_types import with_types
from nearcast.eligibility.validate import check_rules
from nearcast.knn import eligible
from nearcast.knn.eligible import BitsetOverlap, Eligibility, Interval, Leaf, ListOverlap
from nearcast.types import IntArray

__all__ = ["compile_rules"]

BoolArray = npt.NDArray[np.bool_]
Tree = eligible.Node

MOST_BITS = 256  # largest number of distinct values as a bit set; more values are stored as lists
WIDEST = 8  # largest number of parts of a node, which limits the buffers of the native evaluation
TRUE, FALSE = eligible.AllOf(()), eligible.AnyOf(())


def compile_rules(rules: Sequence[Rule], queries: pa.Table, items: pa.Table) -> Eligibility | None:
    """Return the eligible pairs, without rules that need a request; None if every pair is eligible.

    queries, items: the columns that the rules name, and "id"; row i is position i. Costs about a sort per column.
    Raises SpecError for wrong rules (see `check_rules`), InputError for values that rules do not support.
    """
    schemas = check_rules(rules, items.schema, queries.schema)
    queries, items = with_types(queries, schemas.queries), with_types(items, schemas.items)
    waiting = request_time(rules)
    bound = [rule.core for rule in rules if rule not in waiting]
    if not bound:
        return None
    compiler = _Compiler(queries, items)
    leaves, tree = _renumber(compiler.tree(And(tuple(bound)), expected=True), compiler.leaves)
    return None if tree == TRUE else Eligibility(len(queries), len(items), leaves, tree)


@dataclass(frozen=True, slots=True, eq=False)
class _Truth:
    """The rows for which a condition of one table is true, and false. (rows,), or (1,) for a constant."""

    true: BoolArray
    false: BoolArray


class _Compiler:
    def __init__(self, queries: pa.Table, items: pa.Table) -> None:
        self.tables = {"query": queries, "item": items}
        self.leaves: list[Leaf] = []

    def values(self, node: Node) -> Values:
        return evaluate_values(node, self.tables["item" if "item" in collect_tables(node) else "query"])

    def leaf(self, leaf: Leaf) -> Tree:
        self.leaves.append(leaf)
        return len(self.leaves) - 1

    def tree(self, node: Node, *, expected: bool) -> Tree:
        """Compile when a condition is true or, if `expected` is False, when it is false."""
        sides = collect_tables(node)
        if len(sides) < 2:
            truth = self.truth(node)
            return self.one_table(truth.true if expected else truth.false, "item" if "item" in sides else "query")
        if isinstance(node, Not):
            return self.tree(node.part, expected=not expected)
        if isinstance(node, And | Or):
            parts = [self.tree(part, expected=expected) for part in _group_by_table(node)]
            return _combine(parts, every=isinstance(node, And) == expected)
        if isinstance(node, Compare):
            return self.comparison(node, expected=expected)
        assert isinstance(node, Member)
        return self.membership(node, expected=expected)

    # ---- conditions of one table ----

    def one_table(self, holds: BoolArray, side: str) -> Tree:
        """Return a leaf that is true for the rows of one table where `holds` is true."""
        if holds.all() or not holds.any():
            return TRUE if holds.all() else FALSE
        n, m = (len(self.tables[name]) for name in ("query", "item"))
        codes, high = np.zeros(m, np.int32), np.zeros(n, np.int32)
        if side == "item":
            codes[~holds] = -1
            return self.leaf(Interval(codes, np.zeros(n, np.int32), high))
        return self.leaf(Interval(codes, np.where(holds, 0, 1).astype(np.int32), high))

    def truth(self, node: Node) -> _Truth:
        if isinstance(node, Not):
            inner = self.truth(node.part)
            return _Truth(inner.false, inner.true)
        if isinstance(node, And | Or):
            return _combine_truths([self.truth(part) for part in node.parts], isinstance(node, And))
        if isinstance(node, Compare):
            left, right = self.values(node.left), self.values(node.right)
            assert isinstance(left, Scalars)
            assert isinstance(right, Scalars)
            return _make_truth(_compare(node.operator, *encode_values(left, right)), left.valid & right.valid)
        if isinstance(node, Member):
            left, right = self.values(node.left), self.values(node.right)
            known = _known_rows(left) & _known_rows(right)
            return _make_truth(_find_shared(convert_to_lists(left), convert_to_lists(right)), known)
        if isinstance(node, IsNull):
            missing = ~self.values(node.value).valid
            return _Truth(missing, ~missing)
        value = self.values(node)
        assert isinstance(value, Scalars)
        return _make_truth(value.data, value.valid)

    # ---- conditions of both tables ----

    def comparison(self, node: Compare, *, expected: bool) -> Tree:
        operator = node.operator if expected else OPPOSITE[node.operator]
        left, right = node.left, node.right
        if "item" in collect_tables(right):
            left, right, operator = right, left, MIRRORED[operator]
        item, query = self.values(left), self.values(right)
        assert isinstance(item, Scalars)
        assert isinstance(query, Scalars)
        values, requested = encode_values(item, query)
        distinct = np.unique(values[item.valid])
        codes = np.where(item.valid, np.searchsorted(distinct, values), -1).astype(np.int32)
        if operator == "!=":
            below, above = (self.interval(codes, distinct, requested, query.valid, sign) for sign in ("<", ">"))
            return eligible.AnyOf((below, above))
        return self.interval(codes, distinct, requested, query.valid, operator)

    def interval(
        self,
        codes: npt.NDArray[np.int32],
        distinct: npt.NDArray[np.generic],
        requested: npt.NDArray[np.generic],
        valid: BoolArray,
        operator: str,
    ) -> Tree:
        """Return a leaf for a comparison of the item's value with the query's; false for a null."""
        low, high = np.zeros(len(requested), np.int64), np.full(len(requested), len(distinct) - 1, np.int64)
        if operator in ("<", "<=", "=="):
            high = np.searchsorted(distinct, requested, "left" if operator == "<" else "right") - 1
        if operator in (">", ">=", "=="):
            low = np.searchsorted(distinct, requested, "right" if operator == ">" else "left")
        empty = ~valid | (low > high)
        return self.leaf(
            Interval(codes, np.where(empty, 1, low).astype(np.int32), np.where(empty, 0, high).astype(np.int32))
        )

    def membership(self, node: Member, *, expected: bool) -> Tree:
        left, right = self.values(node.left), self.values(node.right)
        item, query = (left, right) if "item" in collect_tables(node.left) else (right, left)
        item_lists, query_lists = convert_to_lists(item), convert_to_lists(query)
        item_codes, query_codes, size = encode_list_values(item_lists, query_lists)
        parts: list[Tree] = []
        if size:
            sides = _distinct_pairs(item_lists, item_codes), _distinct_pairs(query_lists, query_codes)
            parts.append(self.leaf(_make_overlap(*sides, size, negated=not expected)))
        elif expected:
            return FALSE
        if not expected:  # null is neither in a list nor outside of it
            parts += [self.one_table(_known_rows(item), "item"), self.one_table(_known_rows(query), "query")]
        return _combine(parts, every=True)


OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
MIRRORED = {"==": "==", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}


def _group_by_table(node: And | Or) -> list[Node]:
    """Return the parts of a combination; the parts of the item alone, and of the query alone, as one part each."""
    groups: dict[frozenset[str], list[Node]] = {}
    for part in _flatten(node):
        groups.setdefault(collect_tables(part), []).append(part)
    mixed = groups.pop(frozenset(("item", "query")), [])
    return [type(node)(tuple(parts)) for parts in groups.values()] + mixed


def _flatten(node: And | Or) -> list[Node]:
    """Return the parts, with nested combinations of the same type flattened."""
    return [found for part in node.parts for found in (_flatten(part) if isinstance(part, type(node)) else [part])]


def _combine_truths(parts: Sequence[_Truth], every: bool) -> _Truth:
    true, false = parts[0].true, parts[0].false
    for part in parts[1:]:
        if every:
            true, false = true & part.true, false | part.false
        else:
            true, false = true | part.true, false & part.false
    return _Truth(true, false)


def _make_truth(holds: BoolArray, known: BoolArray) -> _Truth:
    return _Truth(known & holds, known & ~holds)


def _known_rows(values: Values) -> BoolArray:
    """Return the rows that are not null; a null list is an empty list."""
    return np.ones(1, np.bool_) if isinstance(values, ListColumn) else values.valid


def _compare(operator: str, left: npt.NDArray[np.generic], right: npt.NDArray[np.generic]) -> BoolArray:
    found: BoolArray = {
        "==": np.equal,
        "!=": np.not_equal,
        "<": np.less,
        "<=": np.less_equal,
        ">": np.greater,
        ">=": np.greater_equal,
    }[operator](left, right)
    return found


def _find_shared(left: ListColumn, right: ListColumn) -> BoolArray:
    """Return (rows,) whether both lists of a row share a value; one list may be the same for all rows."""
    left_codes, right_codes, size = encode_list_values(left, right)
    rows = max(len(left.valid), len(right.valid))
    keys: list[IntArray | None] = []
    for lists, codes in ((left, left_codes), (right, right_codes)):
        kept = codes >= 0
        if len(lists.valid) == 1 < rows:  # codes are of shared values, so this list has all of them
            keys.append(None)
        else:
            keys.append(lists.owners[kept] * size + codes[kept])
    found = np.zeros(rows, np.bool_)
    if not size:
        return found
    if keys[0] is None or keys[1] is None:
        both = keys[1] if keys[0] is None else keys[0]
    else:
        both = np.intersect1d(keys[0], keys[1])
    assert both is not None
    found[both // size] = True
    return found


def _distinct_pairs(lists: ListColumn, codes: IntArray) -> tuple[IntArray, IntArray, int]:
    """Return the distinct (row, code) pairs of lists, by row and then by code, and the number of rows."""
    kept = codes >= 0
    size = int(codes.max(initial=0)) + 1
    pairs = np.unique(lists.owners[kept] * size + codes[kept])
    return pairs // size, pairs % size, len(lists.valid)


def _make_overlap(
    item: tuple[IntArray, IntArray, int], query: tuple[IntArray, IntArray, int], size: int, *, negated: bool
) -> Leaf:
    """Return the leaf for lists that share one of `size` values."""
    if size <= MOST_BITS:
        words = -(-size // 64)
        return BitsetOverlap(_pack_bits(*item, words), _pack_bits(*query, words), negated)
    (item_starts, item_values), (query_starts, query_values) = _flat_lists(*item), _flat_lists(*query)
    return ListOverlap(item_starts, item_values, query_starts, query_values, negated)


def _pack_bits(rows: IntArray, codes: IntArray, n_rows: int, words: int) -> npt.NDArray[np.uint64]:
    bits = np.zeros((n_rows, words), np.uint64)
    np.bitwise_or.at(bits, (rows, codes // 64), np.uint64(1) << (codes % 64).astype(np.uint64))
    return bits


def _flat_lists(rows: IntArray, codes: IntArray, n_rows: int) -> tuple[IntArray, npt.NDArray[np.int32]]:
    starts = np.append(0, np.cumsum(np.bincount(rows, minlength=n_rows))).astype(np.int64)
    return starts, codes.astype(np.int32)


# ---- trees ----


def _combine(parts: Sequence[Tree], *, every: bool) -> Tree:
    """Return all or any of the parts, without constant parts."""
    neutral, deciding = (TRUE, FALSE) if every else (FALSE, TRUE)
    if deciding in parts:
        return deciding
    left = [part for part in parts if part != neutral]
    kind = eligible.AllOf if every else eligible.AnyOf
    while len(left) > WIDEST:
        left = [kind(tuple(left[start : start + WIDEST])) for start in range(0, len(left), WIDEST)]
    return left[0] if len(left) == 1 else kind(tuple(left))


def _renumber(tree: Tree, leaves: Sequence[Leaf]) -> tuple[tuple[Leaf, ...], Tree]:
    """Return the leaves that the tree uses, numbered from the left."""
    used: dict[int, int] = {}

    def visit(node: Tree) -> Tree:
        if isinstance(node, int):
            return used.setdefault(node, len(used))
        return type(node)(tuple(visit(part) for part in node.parts))

    visited = visit(tree)
    return tuple(leaves[number] for number in used), visited
