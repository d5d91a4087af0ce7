"""Eligibility for the native join: leaves in tile order, summaries of blocks, and blocks that rules distinguish.

Two measures make rules cheap. A block whose summary (least and largest code, union of bits) cannot satisfy a query is
not scanned, so items are laid out in blocks that differ in the attributes that queries filter by. In a scanned block,
the eligible items of a strip are found as a bit mask for many queries at once, before any multiplication. If most items
are eligible, the rule is evaluated after the threshold instead, for the few remaining items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearcast.kernels import isa as _isa
from nearcast.kernels import quantize
from nearcast.knn.constraints import Cap, Constraints
from nearcast.knn.eligible import AllOf, AnyOf, BitsetOverlap, Eligibility, Interval, ListOverlap, Node, eligible_pairs

MASKED_SHARE = 0.35  # below this share of eligible items, masks cost less than evaluating the rule afterwards
SHARE_ITEMS = 256  # sampled to estimate the share
MIN_BLOCK = 256  # items; smaller blocks cost more to enter than they save
MAX_BLOCK = 1024
SPLIT_QUERIES = 256
SPLIT_AT, SPLIT_PARTS = (1, 2, 4, 6, 7), 8  # quantiles of codes to try as a split
SPLIT_BITS = 8  # most frequent bits of an overlap to try as a split
MAX_SPLIT_COST = 0.97  # of the pairs scanned without a split; a split that saves less is not made
COUNT_WIDTH = 16  # bytes of unused codes per item
COUNT_PAIRS = 1 << 24  # pairs counted at a time
MAX_DEPTH = 64  # pending results in the native evaluation (kRuleDepth)

LEAF, ALL, ANY = 0, 1, 2  # steps of a tree in postfix
INTERVAL, OVERLAP, SHARED = 0, 1, 2  # kinds of leaves


def native_rule(rule: Eligibility, packed: quantize.PackedItems) -> Any:
    """Return the rule over items in this order, as a native object."""
    filled = packed.order != quantize.NO_ITEM
    rows = np.where(filled, packed.order, 0).astype(np.int64)
    dense, lazy = split_tree(rule)
    return _isa.native().RuleArrays(
        [_native_leaf(leaf, rows, filled, packed) for leaf in rule.leaves],
        list(_steps(dense)) if dense.parts else [],
        list(_steps(lazy)) if lazy.parts else [],
        masked_queries(rule, dense).view(np.uint8),
        len(rows),
    )


def native_caps(constraints: Constraints) -> list[Any]:
    """Return the caps as native objects."""
    return [_native_cap(cap) for cap in constraints.caps]


def _native_cap(cap: Cap) -> Any:
    groups, n_groups = cap.groups, int(cap.groups.max(initial=-1)) + 1
    if n_groups > len(groups):  # each worker counts every group: number them without gaps
        distinct, numbers = np.unique(groups, return_inverse=True)
        groups = np.where(groups < 0, -1, numbers.reshape(-1))
        n_groups = len(distinct)
    return _isa.native().CapArrays(np.ascontiguousarray(groups, np.int32), n_groups, min(cap.most, 2**32 - 1))


def eligible_counts(rule: Eligibility, threads: int = 1) -> np.ndarray:
    """Return (n,) the number of eligible items per query, without a join: n * m bits unless blocks are excluded."""
    isa = _isa.isa_info().taken
    if isa == _isa.NUMPY or rule.n_items == 0 or rule.n_queries == 0:
        return _count_by_pairs(rule)
    nothing = np.zeros(rule.n_items)
    blocks = rule_blocks(rule)
    order, block_tiles = quantize.order_in_blocks(blocks, nothing, int(blocks.max()) + 1)
    codes = quantize.Codes(np.zeros((rule.n_items, COUNT_WIDTH), np.int8), nothing, nothing, nothing)
    packed = quantize.pack_items(codes, order, block_tiles, None, isa, threads)
    counts: np.ndarray = _isa.native().eligible_counts(isa, packed.native, native_rule(rule, packed), threads)
    return counts


def _count_by_pairs(rule: Eligibility) -> np.ndarray:
    counts = np.zeros(rule.n_queries, np.int64)
    step = max(1, COUNT_PAIRS // max(1, rule.n_items))
    for start in range(0, rule.n_queries, step):
        rows = slice(start, start + step)
        counts[rows] = eligible_pairs(rule.of_queries(rows)).sum(axis=1)
    return counts


def split_tree(rule: Eligibility) -> tuple[AllOf, AllOf]:
    """Split a rule into the part for masks and the part to evaluate afterwards; both must hold."""
    parts = rule.tree.parts if isinstance(rule.tree, AllOf) else (rule.tree,)
    dense = [
        part for part in parts if not any(isinstance(rule.leaves[leaf], ListOverlap) for leaf in walk_leaves(part))
    ]
    return AllOf(tuple(dense)), AllOf(tuple(part for part in parts if part not in dense))


def walk_leaves(node: Node) -> Iterator[int]:
    """Yield the leaves of a tree, left to right."""
    if isinstance(node, int):
        yield node
    else:
        for part in node.parts:
            yield from walk_leaves(part)


def masked_queries(rule: Eligibility, dense: AllOf) -> np.ndarray:
    """Return (n,) flags of the queries with so few eligible items that masks are cheaper, by a sample of the items."""
    if not dense.parts:
        return np.zeros(rule.n_queries, np.bool_)
    sample = rule.of_items(slice(0, None, max(1, rule.n_items // SHARE_ITEMS)))
    sample = Eligibility(sample.n_queries, sample.n_items, sample.leaves, dense)
    shares = np.empty(rule.n_queries)
    for start in range(0, rule.n_queries, 4096):
        rows = slice(start, start + 4096)
        shares[rows] = eligible_pairs(sample.of_queries(rows)).mean(axis=1)
    return shares < MASKED_SHARE


def _native_leaf(
    leaf: Interval | BitsetOverlap | ListOverlap, rows: np.ndarray, has_item: np.ndarray, packed: quantize.PackedItems
) -> Any:
    make = _isa.native().LeafArrays
    starts, filled = _block_starts(packed)
    n_blocks = len(packed.block_norms)
    if isinstance(leaf, Interval):
        codes = np.where(has_item, leaf.codes[rows], -1).astype(np.int32)
        lowest, highest = np.full(n_blocks, np.iinfo(np.int32).max, np.int32), np.full(n_blocks, -1, np.int32)
        if len(filled):
            known = np.where(codes < 0, np.iinfo(np.int32).max, codes)
            lowest[filled] = np.minimum.reduceat(known, starts)
            highest[filled] = np.maximum.reduceat(codes, starts)
        low, high = (np.ascontiguousarray(bound, np.int32) for bound in (leaf.low, leaf.high))
        return make(INTERVAL, codes=codes, low=low, high=high, block_low=lowest, block_high=highest)
    if isinstance(leaf, BitsetOverlap):
        words = np.ascontiguousarray(np.where(has_item[:, None], leaf.items[rows], np.uint64(0)).T)
        block_words = np.zeros((n_blocks, len(words)), np.uint64)
        if len(filled):
            block_words[filled] = np.bitwise_or.reduceat(words, starts, axis=1).T
        return make(
            OVERLAP,
            negated=leaf.negated,
            item_words=words.reshape(-1),
            query_words=np.ascontiguousarray(leaf.queries, np.uint64).reshape(-1),
            block_words=block_words.reshape(-1),
            words=len(words),
        )
    return make(
        SHARED,
        negated=leaf.negated,
        item_starts=np.ascontiguousarray(leaf.item_starts, np.int64),
        query_starts=np.ascontiguousarray(leaf.query_starts, np.int64),
        item_values=np.ascontiguousarray(leaf.item_values, np.int32),
        query_values=np.ascontiguousarray(leaf.query_values, np.int32),
    )


def _block_starts(packed: quantize.PackedItems) -> tuple[np.ndarray, np.ndarray]:
    """Return the first slot of each block that holds items, and these blocks."""
    tiles = packed.block_tiles.astype(np.int64)
    filled = np.flatnonzero(np.diff(tiles))
    return tiles[filled] * quantize.TILE_ITEMS, filled


def _steps(node: Node) -> Iterator[tuple[int, int]]:
    """Yield the tree in postfix.

    Two results are combined as soon as there are two, and the parts that keep most results waiting come first, so that
    no more wait than the logarithm of the leaves (Sethi and Ullman, 1970).
    """
    if isinstance(node, int):
        yield LEAF, node
        return
    kind = ALL if isinstance(node, AllOf) else ANY
    if not node.parts:
        yield kind, 0
    for number, part in enumerate(sorted(node.parts, key=compute_depth, reverse=True)):
        yield from _steps(part)
        if number:
            yield kind, 2


def compute_depth(node: Node) -> int:
    """Return how many results wait at most while the steps of the tree are evaluated."""
    if isinstance(node, int) or not node.parts:
        return 1
    depths = sorted(map(compute_depth, node.parts), reverse=True)
    return max([depths[0], *(depth + 1 for depth in depths[1:])])


# ---- blocks that rules tell apart ----


@dataclass(frozen=True, slots=True)
class _ItemBlock:
    """Some items with a summary per leaf: (low, high) of codes, or the union of bits."""

    items: np.ndarray
    summaries: tuple[Any, ...]


def rule_blocks(rule: Eligibility) -> np.ndarray:
    """Return (m,) the block of each item, by a tree of splits by codes and bits that minimize the scanned pairs.

    The filters come from a sample of the queries. A block without a useful split is cut by position.
    """
    numbers = np.empty(rule.n_items, np.int64)
    done = 0
    for block in _split_items(rule, _sample_queries(rule)):
        n_blocks = -(-len(block.items) // MAX_BLOCK)
        numbers[block.items] = done + np.arange(len(block.items)) * n_blocks // max(1, len(block.items))
        done += n_blocks
    return numbers


def sample_rule_shares(rule: Eligibility) -> tuple[float, float]:
    """Return the share of pairs that an exact join scans in these blocks, and the eligible share, by samples."""
    if rule.n_items == 0 or rule.n_queries == 0:
        return 0.0, 0.0
    sample = _sample_queries(rule)
    scanned = (
        sum(len(block.items) * _scanned_share(sample, block) for block in _split_items(rule, sample)) / rule.n_items
    )
    eligible = float(eligible_pairs(sample.of_items(_spread_evenly(rule.n_items, SPLIT_QUERIES * 16))).mean())
    return scanned, eligible


def _sample_queries(rule: Eligibility) -> Eligibility:
    return rule.of_queries(_spread_evenly(rule.n_queries, SPLIT_QUERIES))


def _split_items(rule: Eligibility, sample: Eligibility) -> Iterator[_ItemBlock]:
    """Yield blocks of items that no split makes cheaper."""
    blocks = [_summarize(rule, np.arange(rule.n_items))]
    while blocks:
        block = blocks.pop()
        split = _find_best_split(sample, block) if len(block.items) > MIN_BLOCK else None
        if split is None:
            yield block
        else:
            blocks += split


def _spread_evenly(n: int, size: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, size)).astype(np.int64)) if n else np.empty(0, np.int64)


def _summarize(rule: Eligibility, items: np.ndarray) -> _ItemBlock:
    summaries: list[Any] = []
    for leaf in rule.leaves:
        if isinstance(leaf, Interval):
            codes = leaf.codes[items]
            known = codes[codes >= 0]
            summaries.append((int(known.min()), int(known.max())) if len(known) else (1, 0))
        elif isinstance(leaf, BitsetOverlap):
            summaries.append(np.bitwise_or.reduce(leaf.items[items], axis=0))
        else:
            summaries.append(None)
    return _ItemBlock(items, tuple(summaries))


def _scanned_share(sample: Eligibility, block: _ItemBlock) -> float:
    """Return the share of the sampled queries that would scan a block."""

    def value(node: Node) -> Any:
        if isinstance(node, AllOf | AnyOf):
            combine = np.logical_and if isinstance(node, AllOf) else np.logical_or
            flags = np.full(sample.n_queries, isinstance(node, AllOf))
            for child in node.parts:
                flags = combine(flags, value(child))
            return flags
        leaf, summary = sample.leaves[node], block.summaries[node]
        if isinstance(leaf, Interval):
            low, high = summary
            return (leaf.low <= high) & (leaf.high >= low) & (leaf.low <= leaf.high)
        if isinstance(leaf, BitsetOverlap) and not leaf.negated:
            return ((leaf.queries & summary) != 0).any(axis=1)
        return np.ones(sample.n_queries, np.bool_)

    return float(np.mean(value(sample.tree))) if sample.n_queries else 0.0


def _find_best_split(sample: Eligibility, block: _ItemBlock) -> list[_ItemBlock] | None:
    """Return the parts of the split after which the sampled queries scan the fewest items; None if none is useful."""
    best, least = None, MAX_SPLIT_COST * len(block.items) * _scanned_share(sample, block)
    for inside in _propose_splits(sample, block):
        n_inside = int(inside.sum())
        if not MIN_BLOCK // 4 <= n_inside <= len(block.items) - MIN_BLOCK // 4:
            continue
        split = [_summarize(sample, block.items[inside]), _summarize(sample, block.items[~inside])]
        pairs = sum(len(half.items) * _scanned_share(sample, half) for half in split)
        if pairs < least:
            best, least = split, pairs
    return best


def _propose_splits(sample: Eligibility, block: _ItemBlock) -> Iterator[np.ndarray]:
    """Yield splits of a block as flags over its items: at some quantiles of the codes, or by a bit.

    If every query takes the newer half and some of the older half, the median separates nothing, but a quartile does.
    """
    for leaf, summary in zip(sample.leaves, block.summaries, strict=True):
        if isinstance(leaf, Interval) and summary[0] < summary[1]:
            codes = leaf.codes[block.items]
            ranks = [len(codes) * eighth // SPLIT_PARTS for eighth in SPLIT_AT]
            for bound in dict.fromkeys(np.partition(codes, ranks)[ranks].tolist()):
                yield codes < bound if bound > codes.min() else codes <= bound
        elif isinstance(leaf, BitsetOverlap) and not leaf.negated:
            words = leaf.items[block.items]
            for word, bit in _balanced_bits(words):
                yield (words[:, word] >> np.uint64(bit)) & np.uint64(1) == 1


def _balanced_bits(words: np.ndarray) -> Sequence[tuple[int, int]]:
    """Return the bits that nearly half of the items have."""
    sample = words[:: max(1, len(words) // 512)]
    bits = np.unpackbits(np.ascontiguousarray(sample).view(np.uint8), axis=1, bitorder="little").mean(axis=0)
    order = np.argsort(-np.minimum(bits, 1 - bits), kind="stable")[:SPLIT_BITS]
    return [(int(bit) // 64, int(bit) % 64) for bit in order if 0 < bits[bit] < 1]
