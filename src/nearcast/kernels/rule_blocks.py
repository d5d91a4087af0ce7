"""Eligibility as the native join takes it: leaves in tile order, summaries of blocks, and items in blocks by rule.

Two things make rules cheap. A block whose summary (least and largest code, all bits) cannot satisfy a query is not met
at all, so items are put into blocks that differ in what queries ask for. And of the blocks that are met, the eligible
items of a strip are found as a mask for many queries at once, before anything is multiplied, unless so many are
eligible that it is cheaper to ask about the few that survive the threshold.
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

MASKED_SHARE = 0.35  # where fewer items than that are eligible, masks cost less than asking survivors
SHARE_ITEMS = 256  # sampled to tell it
LEAST_BLOCK = 256  # items; smaller blocks cost more to enter than they save
MOST_BLOCK = 1024
SPLIT_QUERIES = 256
SPLIT_AT, SPLIT_PARTS = (1, 2, 4, 6, 7), 8  # quantiles of codes that are tried as a split
SPLIT_BITS = 8  # most frequent bits of an overlap that are tried as a split
WORTHWHILE = 0.97  # of the pairs met without a split; one that leaves more is not made
COUNT_WIDTH = 16  # bytes of codes per item that nobody reads
COUNT_PAIRS = 1 << 24  # pairs whose flags are held at a time
DEEPEST = 64  # results that may wait in the native evaluation (kRuleDepth)

LEAF, ALL, ANY = 0, 1, 2  # steps of a tree in postfix
INTERVAL, OVERLAP, SHARED = 0, 1, 2  # kinds of leaves


def native_rule(rule: Eligibility, packed: quantize.PackedItems) -> Any:
    """The rule over items in this order, as a native object."""
    places = packed.order != quantize.NO_ITEM
    rows = np.where(places, packed.order, 0).astype(np.int64)
    dense, lazy = split_tree(rule)
    return _isa.native().RuleArrays(
        [_native_leaf(leaf, rows, places, packed) for leaf in rule.leaves],
        list(_steps(dense)) if dense.parts else [],
        list(_steps(lazy)) if lazy.parts else [],
        masked_queries(rule, dense).view(np.uint8),
        len(rows),
    )


def native_caps(constraints: Constraints) -> list[Any]:
    """The caps as native objects."""
    return [_native_cap(cap) for cap in constraints.caps]


def _native_cap(cap: Cap) -> Any:
    groups, n_groups = cap.groups, int(cap.groups.max(initial=-1)) + 1
    if n_groups > len(groups):  # each worker counts every group: number them without gaps
        distinct, numbers = np.unique(groups, return_inverse=True)
        groups = np.where(groups < 0, -1, numbers.reshape(-1))
        n_groups = len(distinct)
    return _isa.native().CapArrays(np.ascontiguousarray(groups, np.int32), n_groups, min(cap.most, 2**32 - 1))


def eligible_counts(rule: Eligibility, threads: int = 1) -> np.ndarray:
    """(n,) how many items each query may get, without a join: costs n * m bits where blocks cannot be ruled out."""
    isa = _isa.isa_info().taken
    if isa == _isa.NUMPY or rule.n_items == 0 or rule.n_queries == 0:
        return _counted_by_pairs(rule)
    nothing = np.zeros(rule.n_items)
    blocks = rule_blocks(rule)
    order, block_tiles = quantize.order_in_blocks(blocks, nothing, int(blocks.max()) + 1)
    codes = quantize.Codes(np.zeros((rule.n_items, COUNT_WIDTH), np.int8), nothing, nothing, nothing)
    packed = quantize.pack_items(codes, order, block_tiles, None, isa, threads)
    counts: np.ndarray = _isa.native().eligible_counts(isa, packed.native, native_rule(rule, packed), threads)
    return counts


def _counted_by_pairs(rule: Eligibility) -> np.ndarray:
    counts = np.zeros(rule.n_queries, np.int64)
    step = max(1, COUNT_PAIRS // max(1, rule.n_items))
    for start in range(0, rule.n_queries, step):
        rows = slice(start, start + step)
        counts[rows] = eligible_pairs(rule.of_queries(rows)).sum(axis=1)
    return counts


def split_tree(rule: Eligibility) -> tuple[AllOf, AllOf]:
    """The parts of a rule that masks can tell, and those that survivors are asked for; both must hold."""
    parts = rule.tree.parts if isinstance(rule.tree, AllOf) else (rule.tree,)
    dense = [part for part in parts if not any(isinstance(rule.leaves[leaf], ListOverlap) for leaf in leaves_of(part))]
    return AllOf(tuple(dense)), AllOf(tuple(part for part in parts if part not in dense))


def leaves_of(node: Node) -> Iterator[int]:
    """The leaves of a tree, left to right."""
    if isinstance(node, int):
        yield node
    else:
        for part in node.parts:
            yield from leaves_of(part)


def masked_queries(rule: Eligibility, dense: AllOf) -> np.ndarray:
    """(n,) for which queries so few items are eligible that masks pay, by a sample of the items."""
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
    leaf: Interval | BitsetOverlap | ListOverlap, rows: np.ndarray, places: np.ndarray, packed: quantize.PackedItems
) -> Any:
    make = _isa.native().LeafArrays
    starts, filled = _block_starts(packed)
    n_blocks = len(packed.block_norms)
    if isinstance(leaf, Interval):
        codes = np.where(places, leaf.codes[rows], -1).astype(np.int32)
        lowest, highest = np.full(n_blocks, np.iinfo(np.int32).max, np.int32), np.full(n_blocks, -1, np.int32)
        if len(filled):
            known = np.where(codes < 0, np.iinfo(np.int32).max, codes)
            lowest[filled] = np.minimum.reduceat(known, starts)
            highest[filled] = np.maximum.reduceat(codes, starts)
        low, high = (np.ascontiguousarray(bound, np.int32) for bound in (leaf.low, leaf.high))
        return make(INTERVAL, codes=codes, low=low, high=high, block_low=lowest, block_high=highest)
    if isinstance(leaf, BitsetOverlap):
        words = np.ascontiguousarray(np.where(places[:, None], leaf.items[rows], np.uint64(0)).T)
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
    """The first place of each block that holds items, and these blocks."""
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
    for number, part in enumerate(sorted(node.parts, key=depth_of, reverse=True)):
        yield from _steps(part)
        if number:
            yield kind, 2


def depth_of(node: Node) -> int:
    """Return how many results wait at most while the steps of the tree are evaluated."""
    if isinstance(node, int) or not node.parts:
        return 1
    depths = sorted(map(depth_of, node.parts), reverse=True)
    return max([depths[0], *(depth + 1 for depth in depths[1:])])


# ---- blocks that rules tell apart ----


@dataclass(frozen=True, slots=True)
class _Zone:
    """Some items, and what of each leaf is among them: (low, high) of codes, or all bits."""

    items: np.ndarray
    facts: tuple[Any, ...]


def rule_blocks(rule: Eligibility) -> np.ndarray:
    """(m,) a block for each item: a tree of splits by codes and bits, each one that leaves the fewest pairs to meet.

    What queries ask for is taken from a sample of them. Where no split pays, items of one zone are cut by position.
    """
    numbers = np.empty(rule.n_items, np.int64)
    done = 0
    for zone in _zones(rule, _asked(rule)):
        n_blocks = -(-len(zone.items) // MOST_BLOCK)
        numbers[zone.items] = done + np.arange(len(zone.items)) * n_blocks // max(1, len(zone.items))
        done += n_blocks
    return numbers


def sample_rule_shares(rule: Eligibility) -> tuple[float, float]:
    """The share of all pairs that an exact join meets in these blocks, and the share that is eligible, by samples."""
    if rule.n_items == 0 or rule.n_queries == 0:
        return 0.0, 0.0
    asked = _asked(rule)
    met = sum(len(zone.items) * _may_meet(asked, zone) for zone in _zones(rule, asked)) / rule.n_items
    eligible = float(eligible_pairs(asked.of_items(_spread(rule.n_items, SPLIT_QUERIES * 16))).mean())
    return met, eligible


def _asked(rule: Eligibility) -> Eligibility:
    return rule.of_queries(_spread(rule.n_queries, SPLIT_QUERIES))


def _zones(rule: Eligibility, asked: Eligibility) -> Iterator[_Zone]:
    """Zones that no split makes cheaper."""
    zones = [_zone(rule, np.arange(rule.n_items))]
    while zones:
        zone = zones.pop()
        halves = _best_split(asked, zone) if len(zone.items) > LEAST_BLOCK else None
        if halves is None:
            yield zone
        else:
            zones += halves


def _spread(n: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).astype(np.int64)) if n else np.empty(0, np.int64)


def _zone(rule: Eligibility, items: np.ndarray) -> _Zone:
    facts: list[Any] = []
    for leaf in rule.leaves:
        if isinstance(leaf, Interval):
            codes = leaf.codes[items]
            known = codes[codes >= 0]
            facts.append((int(known.min()), int(known.max())) if len(known) else (1, 0))
        elif isinstance(leaf, BitsetOverlap):
            facts.append(np.bitwise_or.reduce(leaf.items[items], axis=0))
        else:
            facts.append(None)
    return _Zone(items, tuple(facts))


def _may_meet(asked: Eligibility, zone: _Zone) -> float:
    """The share of the sampled queries that would meet a zone."""

    def value(node: Node) -> Any:
        if isinstance(node, AllOf | AnyOf):
            combine = np.logical_and if isinstance(node, AllOf) else np.logical_or
            found = np.full(asked.n_queries, isinstance(node, AllOf))
            for part in node.parts:
                found = combine(found, value(part))
            return found
        leaf, fact = asked.leaves[node], zone.facts[node]
        if isinstance(leaf, Interval):
            low, high = fact
            return (leaf.low <= high) & (leaf.high >= low) & (leaf.low <= leaf.high)
        if isinstance(leaf, BitsetOverlap) and not leaf.negated:
            return ((leaf.queries & fact) != 0).any(axis=1)
        return np.ones(asked.n_queries, np.bool_)

    return float(np.mean(value(asked.tree))) if asked.n_queries else 0.0


def _best_split(asked: Eligibility, zone: _Zone) -> list[_Zone] | None:
    """The two parts of the split after which the sampled queries meet the fewest items, if it is worth it."""
    best, least = None, WORTHWHILE * len(zone.items) * _may_meet(asked, zone)
    for inside in _splits(asked, zone):
        n_inside = int(inside.sum())
        if not LEAST_BLOCK // 4 <= n_inside <= len(zone.items) - LEAST_BLOCK // 4:
            continue
        halves = [_zone(asked, zone.items[inside]), _zone(asked, zone.items[~inside])]
        pairs = sum(len(half.items) * _may_meet(asked, half) for half in halves)
        if pairs < least:
            best, least = halves, pairs
    return best


def _splits(asked: Eligibility, zone: _Zone) -> Iterator[np.ndarray]:
    """Ways to cut a zone in two, as flags over its items: at some quantiles of the codes, or by who has a bit.

    Where every query wants the newer half, and some of the older one, the middle parts nothing and a quarter does.
    """
    for leaf, fact in zip(asked.leaves, zone.facts, strict=True):
        if isinstance(leaf, Interval) and fact[0] < fact[1]:
            codes = leaf.codes[zone.items]
            places = [len(codes) * part // SPLIT_PARTS for part in SPLIT_AT]
            for bound in dict.fromkeys(np.partition(codes, places)[places].tolist()):
                yield codes < bound if bound > codes.min() else codes <= bound
        elif isinstance(leaf, BitsetOverlap) and not leaf.negated:
            held = leaf.items[zone.items]
            for word, bit in _frequent_bits(held):
                yield (held[:, word] >> np.uint64(bit)) & np.uint64(1) == 1


def _frequent_bits(held: np.ndarray) -> Sequence[tuple[int, int]]:
    """The bits that most nearly half of the items have."""
    sample = held[:: max(1, len(held) // 512)]
    bits = np.unpackbits(np.ascontiguousarray(sample).view(np.uint8), axis=1, bitorder="little").mean(axis=0)
    order = np.argsort(-np.minimum(bits, 1 - bits), kind="stable")[:SPLIT_BITS]
    return [(int(bit) // 64, int(bit) % 64) for bit in order if 0 < bits[bit] < 1]
