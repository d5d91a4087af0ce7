"""Call every native entry point with random, degenerate and hostile arguments, for so many seconds each.

    python -m tests.kernels.fuzz [--seconds 2] [--seed 0] [entry point ...]

A call may return or raise what a Python caller can handle; anything else, and any answer that differs from the NumPy
reference, is an error. `make fuzz` and `make sanitize` run it on kernels built for the sanitizers, which end the
process at the first byte that is read out of bounds.
"""

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import tests.kernels.sanitized  # noqa: F401 (before nearcast.kernels)
from tests.kernels import rules as random_rules
from tests.kernels.vectors import coarsen, join_cells

from nearcast import kernels
from nearcast.errors import SpecError
from nearcast.kernels import isa as isa_module
from nearcast.kernels import numpy_fallback, quantize, rule_blocks
from nearcast.knn.constraints import Constraints
from nearcast.knn.eligible import AllOf, AnyOf, Eligibility, eligible_pairs
from nearcast.knn.scores import pair_scores
from nearcast.knn.update_lists import KnownLists, move_lists, update_lists
from nearcast.types import Metric, Neighbors

native = isa_module.native()
ISAS = [name for name in kernels.isa_info().available if name != "numpy"]
METRICS = ("inner_product", "cosine", "l2")
REFUSALS = (ValueError, TypeError, MemoryError, SpecError)
DTYPES = (np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.uint32, np.uint64, np.bool_)
INTEGERS = (
    -(2**63),
    -1,
    0,
    1,
    2,
    3,
    15,
    16,
    17,
    48,
    64,
    65,
    80,
    96,
    1000,
    4096,
    8193,
    2**28 + 1,
    2**31,
    2**32,
    2**63 - 1,
)
FLOATS = (0.0, -1.0, 1e-45, 1e308, -1e308, np.inf, -np.inf, np.nan)
SCORES = np.array([np.inf, 3e38, 1.0, 1e-45, 0.0, -0.0, -1.0, -3e38], np.float32)  # few, so that many are equal
UINT32, INT64, TEXT = 0, 1, 2  # kinds of ids in a store's lists
LONGEST_ID = 0xFFFF
WIDTHS = (1, 2, 3, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 128, 257, 1000, 4095, 4096)


def nothing() -> None:
    """Do nothing between the making of arguments and the call."""


@dataclass
class Call:
    """A call whose arguments may be calls: changed anywhere before it is made."""

    function: Callable[..., Any]
    arguments: list[Any]

    def make(self, before: Callable[[], None] = nothing) -> Any:
        """Make the call; `before` is called when its arguments are made."""
        made = [value.make() if isinstance(value, Call) else value for value in self.arguments]
        before()
        return self.function(*made)


# ---- values ----


def width(rng: np.random.Generator) -> int:
    return int(rng.choice(WIDTHS[:-4] if rng.random() < 0.9 else WIDTHS))


def rows(rng: np.random.Generator, most: int = 70) -> int:
    return int(rng.choice([0, 1, 2, 15, 16, 17, rng.integers(most + 1)]))


def vectors(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Rows of any kind: equal, zero, denormal, long, of whole numbers."""
    kind = rng.integers(7)
    values = rng.standard_normal((n, d))
    if kind == 1:
        values = np.repeat(values[:1], n, axis=0)
    elif kind == 2:
        values *= 10.0 ** rng.integers(-45, 17, size=(n, 1))
    elif kind == 3:
        values *= 10.0 ** rng.integers(-45, 17)
    elif kind == 4:
        values = 1e6 + values * 1e-3
    elif kind == 5:
        return rng.integers(-128, 128, size=(n, d)).astype(rng.choice([np.int8, np.uint8]))
    elif kind == 6:
        values[rng.random(n) < 0.5] = 0
    return values.astype(np.float32) if rng.random() < 0.8 else np.clip(values, -6e4, 6e4).astype(np.float16)


def any_rule(rng: np.random.Generator, n: int, m: int) -> Eligibility:
    """A rule that may have no leaf, be false or true for every pair, or be deep or wide."""
    choice = rng.integers(6)
    if choice == 0:
        return Eligibility(n, m, (), AnyOf(()) if rng.random() < 0.5 else AllOf(()))
    rule = random_rules.rule(rng, n, m)
    if choice == 1:
        return Eligibility(n, m, rule.leaves, AllOf((rule.tree, AnyOf(()))))
    if choice == 2:
        return Eligibility(n, m, rule.leaves, AnyOf((AllOf(()), rule.tree)))
    if choice == 3:
        tree: Any = rule.tree
        for level in range(int(rng.integers(1, 70))):
            tree = (AllOf if level % 2 else AnyOf)((rule.tree, tree))
        return Eligibility(n, m, rule.leaves, tree)
    return rule


def change(rng: np.random.Generator, value: Any) -> Any:
    """Another value in the place of this one, that may not fit."""
    if rng.random() < 0.03:
        return rng.choice(np.array([None, "", 1.5, b"", object()], dtype=object))
    if isinstance(value, np.ndarray):
        return change_array(rng, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return int(rng.choice(np.array(INTEGERS, dtype=object)))
    if isinstance(value, float):
        return float(rng.choice(FLOATS))
    if isinstance(value, str):
        return str(rng.choice([*ISAS, "", "amx", "numpy", "nothing"]))
    if isinstance(value, list):
        changed = list(value)
        for _ in range(rng.integers(1, 4)):
            if changed and rng.random() < 0.5:
                changed.pop(int(rng.integers(len(changed))))
            else:
                changed.insert(
                    int(rng.integers(len(changed) + 1)), (int(rng.integers(-1, 4)), int(rng.integers(-1, 70)))
                )
        return changed
    return None


def change_array(rng: np.random.Generator, array: np.ndarray) -> Any:
    kind = rng.integers(12)
    if kind == 0:
        return array[:-1]
    if kind == 1:
        return np.concatenate([array, array[-1:]]) if array.size else np.zeros((3, *array.shape[1:]), array.dtype)
    if kind == 2:
        return array[:0]
    if kind == 3:
        return array.astype(rng.choice(DTYPES))
    if kind == 4:
        return array.reshape(1, -1) if array.ndim == 1 else array.reshape(-1)
    if kind == 5:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if kind == 6:  # an address that is no multiple of the element's size
        raw = bytearray(array.nbytes + 1)
        moved = np.frombuffer(raw, np.uint8)[1:].view(array.dtype).reshape(array.shape)
        moved[...] = array
        return moved
    if kind == 7:
        return np.broadcast_to(array[:1], array.shape) if array.size else array
    if kind == 8:
        return np.asfortranarray(array)
    if kind == 9:
        return np.frombuffer(rng.bytes(array.nbytes), np.uint8).view(array.dtype).reshape(array.shape).copy()
    changed = array.copy()
    if changed.size:
        flat = changed.reshape(-1)
        info: Any = (
            np.finfo(array.dtype)
            if array.dtype.kind == "f"
            else np.iinfo(array.dtype)
            if array.dtype.kind in "iu"
            else None
        )
        ends = [0, 1] if info is None else [info.min, info.max, 0, 1]
        if array.dtype.kind == "f":
            ends += [np.nan, np.inf, -np.inf, info.smallest_subnormal]
        for place in rng.integers(flat.size, size=rng.integers(1, 4)):
            flat[place] = ends[int(rng.integers(len(ends)))]
    return changed


def change_some(rng: np.random.Generator, call: Call) -> None:
    """Change one to three arguments, at any depth."""
    for _ in range(int(rng.integers(1, 4))):
        here = call
        while True:
            place = int(rng.integers(len(here.arguments)))
            value = here.arguments[place]
            inner = value if isinstance(value, Call) else None
            if inner is None or rng.random() < 0.1:
                here.arguments[place] = change(rng, value)
                break
            here = inner


def scribble(rng: np.random.Generator, call: Call) -> None:
    """Write to an array that an object has been made of."""
    arrays = list(arrays_below(call))
    if arrays:
        array = arrays[int(rng.integers(len(arrays)))]
        changed = change_array(rng, array)
        if array.flags.writeable and changed.shape == array.shape and changed.dtype == array.dtype:
            array[...] = changed


def arrays_below(call: Call) -> Iterator[np.ndarray]:
    for value in call.arguments:
        if isinstance(value, Call):
            yield from (inner for inner in value.arguments if isinstance(inner, np.ndarray))
            yield from arrays_below(value)


# ---- entry points: each gives a call with arguments that fit, and what checks the answer ----


def packed_call(packed: quantize.PackedItems) -> Call:
    p = packed
    arrays = [p.codes, p.scales, p.offsets, p.order, p.block_tiles, p.block_norms, p.block_residuals, p.block_offsets]
    return Call(native.PackedArrays, [*arrays, p.width])


def queries_call(codes: quantize.Codes, order: np.ndarray | None = None) -> Call:
    starts = -128 * codes.codes.sum(axis=1, dtype=np.int32)
    return Call(native.QueryArrays, [codes.codes, starts, codes.scales, codes.residuals, codes.norms, order])


def leaf_call(leaf: Any, order: quantize.PackedItems) -> Call:
    """The native leaf as it is made, its arrays within reach of changes."""
    found: list[Any] = []

    recorder = SimpleNamespace(LeafArrays=lambda kind, **arrays: found.append((kind, arrays)))
    isa_module._native, kept = recorder, isa_module._native
    try:
        places = order.order != quantize.NO_ITEM
        rule_blocks._native_leaf(leaf, np.where(places, order.order, 0).astype(np.int64), places, order)
    finally:
        isa_module._native = kept
    kind, arrays = found[0]
    names = list(arrays)
    return Call(
        lambda kind, *values: native.LeafArrays(kind, **dict(zip(names, values, strict=True))), [kind, *arrays.values()]
    )


def rule_call(rule: Eligibility, packed: quantize.PackedItems) -> Call:
    dense, lazy = rule_blocks.split_tree(rule)
    steps = [list(rule_blocks._steps(tree)) if tree.parts else [] for tree in (dense, lazy)]
    masked = rule_blocks.masked_queries(rule, dense).view(np.uint8)
    leaves = Call(lambda *made: list(made), [leaf_call(leaf, packed) for leaf in rule.leaves])
    if not rule.leaves:
        leaves = Call(list, [[]])
    return Call(native.RuleArrays, [leaves, *steps, masked, len(packed.order)])


def cap_call(cap: Any) -> Call:
    return Call(native.CapArrays, [cap.groups, max(int(cap.groups.max(initial=-1)) + 1, 20), cap.most])


def tables(rng: np.random.Generator, isa: str, metric: str) -> Any:
    """(queries, items, rotation, packed items, rounded queries)"""
    d, n, m = width(rng), rows(rng), max(1, rows(rng, 300))
    queries, items = vectors(rng, n, d), vectors(rng, m, d)
    rotation = quantize.make_rotation(items, metric)
    codes = quantize.round_vectors(items, rotation, quantize.ITEM_LEVELS, isa, 1)
    blocks = np.sort(rng.integers(int(rng.integers(1, 6)), size=m))
    order, block_tiles = quantize.order_in_blocks(blocks, codes.residuals, int(blocks.max()) + 1)
    packed = quantize.pack_items(codes, order, block_tiles, quantize.l2_offsets(codes, metric), isa, 1)
    return (
        queries,
        items,
        rotation,
        packed,
        quantize.round_vectors(queries, rotation, isa_module.query_levels(isa), isa, 1),
    )


def fuzz_join(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    metric = str(rng.choice(METRICS))
    queries, items, rotation, packed, rounded = tables(rng, isa, metric)
    n, m = len(queries), len(items)
    rule = any_rule(rng, n, m) if rng.random() < 0.6 and n else None
    caps = random_rules.caps(rng, m)
    exclude = rng.integers(-1, m, size=n) if rng.random() < 0.5 else None
    norms = native.norms(isa, items, 1) if metric == "cosine" else None
    k = int(rng.choice([1, 2, 10, 65, m + 5]))
    least = float(rng.choice([-np.inf, 0.0, np.inf, -1.0]))
    thresholds = rng.choice([-np.inf, 0.0, 1.0], n).astype(np.float32) if rng.random() < 0.3 else None
    order = rng.permutation(n).astype(np.uint32) if rng.random() < 0.5 else None
    rounded = rounded if order is None else rounded.take(order)
    share = float(rng.choice([1.0, 0.3]))
    probes = None
    if rng.random() < 0.5 and n:
        n_centres = int(rng.integers(1, len(packed.block_norms) + 1))
        centres = quantize.round_vectors(
            vectors(rng, n_centres, items.shape[1]),
            quantize.Rotation(rotation.sign, rotation.place, None, rotation.width, False),
            127,
            isa,
            1,
        )
        offsets = None if rng.random() < 0.5 else -np.abs(rng.standard_normal(n_centres))
        places, tiles = quantize.order_in_blocks(np.zeros(n_centres, np.int64), np.zeros(n_centres), 1)
        tops = quantize.pack_items(centres, places, tiles, offsets, isa, 1)
        gap = float(rng.choice([-np.inf, np.inf, 0.0, -1.0]))
        ranks = [int(rng.integers(1, 40)) for _ in range(2)]
        calls = [queries_call(coarsen(rounded)), packed_call(tops), packed_call(tops)]
        probes = Call(native.ProbeArrays, [*calls, *ranks, 0.5, gap, np.abs(rng.standard_normal(n))])
    rule_or_none = None if rule is None else rule_call(rule, packed)
    held = Call(lambda *made: list(made), [cap_call(cap) for cap in caps]) if caps else []
    call = Call(
        native.join,
        [
            *(
                isa,
                METRICS.index(metric),
                queries,
                items,
                queries_call(rounded, order),
                packed_call(packed),
                norms,
                exclude,
                k,
            ),
            *(int(rng.integers(0, 4)), int(rng.choice([1, 7, 1000])), bool(rng.random() < 0.1), probes, rule_or_none),
            *(held, least, thresholds, share, None),
        ],
    )

    def check(answer: Any) -> None:
        positions, scores, _ = answer
        assert positions.shape == scores.shape == (n, k)
        assert ((positions >= -1) & (positions < m)).all()
        if probes is None and not call.arguments[11] and share == 1:
            constraints = Constraints(rule, caps, None if least == -np.inf else least)
            assert_lists(positions, scores, reference(queries, items, k, metric, exclude, constraints, thresholds))

    return call, check


def reference(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    metric: str,
    exclude: Any,
    constraints: Constraints,
    thresholds: Any = None,
) -> Any:
    return random_rules.sorted_join(queries, items, k, metric, exclude, constraints, thresholds)


def assert_lists(positions: np.ndarray, scores: np.ndarray, truth: Any) -> None:
    np.testing.assert_array_equal(positions, truth[0])
    np.testing.assert_array_equal(scores, truth[1])


def fuzz_count(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    n, m = max(1, rows(rng, 600)), max(1, rows(rng, 300))
    rule = any_rule(rng, n, m)
    blocks = rule_blocks.rule_blocks(rule)
    order, tiles = quantize.order_in_blocks(blocks, np.zeros(m), int(blocks.max()) + 1)
    nothing = np.zeros(m)
    packed = quantize.pack_items(
        quantize.Codes(np.zeros((m, 16), np.int8), nothing, nothing, nothing), order, tiles, None, isa, 1
    )
    call = Call(native.eligible_counts, [isa, packed_call(packed), rule_call(rule, packed), int(rng.integers(0, 4))])
    return call, lambda counts: np.testing.assert_array_equal(counts, eligible_pairs(rule).sum(axis=1))


def fuzz_quantise(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    d = width(rng)
    values = vectors(rng, rows(rng), d)
    rotation = quantize.make_rotation(values, str(rng.choice(METRICS)))
    levels = int(rng.choice([1, 63, 127]))
    parts = [rotation.sign, rotation.place, rotation.centre, rotation.width, rotation.normalise, levels]
    call = Call(native.quantise, [isa, values, *parts, int(rng.integers(0, 4))])

    def check(answer: Any) -> None:
        for found, wanted in zip(answer, numpy_fallback.quantise(values, *parts), strict=True):
            np.testing.assert_array_equal(found, wanted)

    return call, check


def fuzz_pack(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    codes = rng.integers(-127, 128, size=(max(1, rows(rng)), quantize.pad_width(width(rng)))).astype(np.int8)
    order = rng.integers(len(codes), size=16 * rows(rng, 6)).astype(np.uint32)
    order[rng.random(len(order)) < 0.3] = quantize.NO_ITEM
    call = Call(native.pack, [codes, order, int(rng.integers(0, 4))])
    return call, lambda tiles: np.testing.assert_array_equal(
        tiles.reshape(-1), numpy_fallback.pack(codes, order).reshape(-1)
    )


def fuzz_norms(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    values = vectors(rng, rows(rng), width(rng))
    wide = values.astype(np.float64)
    return Call(native.norms, [isa, values, int(rng.integers(0, 4))]), lambda found: np.testing.assert_allclose(
        found, np.sqrt((wide * wide).sum(axis=1)), rtol=1e-12
    )


def fuzz_score_lists(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    metric, d = str(rng.choice(METRICS)), width(rng)
    queries, items = vectors(rng, rows(rng, 20), d), vectors(rng, max(1, rows(rng)), d)
    lengths = rng.integers(0, 9, size=len(queries))
    starts = np.append(0, np.cumsum(lengths)).astype(np.uint64)
    positions = rng.integers(len(items), size=int(starts[-1])).astype(np.uint32)
    norms = native.norms(isa, items, 1) if metric == "cosine" else np.empty(0)
    call = Call(native.score_lists, [isa, METRICS.index(metric), queries, items, starts, positions, norms, 2])
    return call, lambda found: np.testing.assert_array_equal(
        found, pair_scores(np.repeat(queries, lengths, axis=0), items[positions], Metric(metric))
    )


def fuzz_cell_sums(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    values = vectors(rng, max(1, rows(rng)), width(rng))
    starts = np.append(0, np.cumsum(rng.integers(0, 9, size=rows(rng, 20)))).astype(np.uint64)
    positions = rng.integers(len(values), size=int(starts[-1])).astype(np.uint32)
    call = Call(native.cell_sums, [isa, values, starts, positions, bool(rng.random() < 0.5), int(rng.integers(0, 4))])
    return call, lambda sums: None


def fuzz_nearest_centres(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    d, n_groups = width(rng), int(rng.integers(1, 20))
    rotation = quantize.make_rotation(np.empty((0, d), np.float32), "inner_product")

    def draw(n: int) -> quantize.Codes:
        return quantize.round_vectors(vectors(rng, n, d), rotation, quantize.ITEM_LEVELS, isa, 1)

    codes, centres, tops = draw(max(1, rows(rng))), draw(n_groups + rows(rng)), draw(n_groups)
    groups = np.append(np.arange(n_groups), rng.integers(n_groups, size=len(centres.codes) - n_groups))
    packed = quantize.pack_items(
        centres, *quantize.order_in_blocks(groups, np.zeros(len(groups)), n_groups), rng.random(len(groups)), isa, 1
    )
    one = quantize.order_in_blocks(np.zeros(n_groups, np.int64), np.zeros(n_groups), 1)
    top = packed_call(quantize.pack_items(tops, *one, None, isa, 1)) if rng.random() < 0.7 else None
    positions = rng.integers(len(codes.codes), size=rows(rng)).astype(np.uint32)
    arrays = [
        codes.codes,
        codes.scales,
        int(rng.choice([63, 127])),
        positions,
        packed_call(packed),
        top,
        int(rng.integers(1, 9)),
    ]
    call = Call(native.nearest_centres, [isa, *arrays, int(rng.integers(0, 4))])

    def check(nearest: Any) -> None:
        assert nearest.shape == positions.shape
        assert (nearest < len(groups)).all()

    return call, check


def fuzz_centre_values(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    d, n = width(rng), rows(rng, 20)
    rotation = quantize.make_rotation(np.empty((0, d), np.float32), "inner_product")
    codes = quantize.round_vectors(vectors(rng, n, d), rotation, 63, isa, 1)
    centres = quantize.round_vectors(vectors(rng, max(1, rows(rng)), d), rotation, quantize.ITEM_LEVELS, isa, 1)
    blocks = np.arange(len(centres.codes)) // 20
    order = quantize.order_in_blocks(blocks, np.zeros(len(blocks)), int(blocks[-1]) + 1)
    packed = quantize.pack_items(centres, *order, None, isa, 1)
    call = Call(native.centre_values, [isa, queries_call(codes), packed_call(packed), int(rng.integers(0, 4))])

    def check(values: Any) -> None:
        assert (np.isnan(values) == (packed.order == quantize.NO_ITEM)).all()

    return call, check


def fuzz_repack(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    codes = rng.integers(-127, 128, size=(16 * rows(rng, 6), quantize.pad_width(width(rng)))).astype(np.int8)
    tiles = numpy_fallback.pack(codes, np.arange(len(codes), dtype=np.uint32))
    places = rng.integers(max(1, len(codes)), size=16 * rows(rng, 6)).astype(np.uint32)
    places[rng.random(len(places)) < (0.3 if len(codes) else 2)] = quantize.NO_ITEM
    call = Call(native.repack, [tiles.reshape(-1), codes.shape[1], places, int(rng.integers(0, 4))])
    return call, lambda found: np.testing.assert_array_equal(found, numpy_fallback.pack(codes, places).reshape(-1))


def fuzz_interval_masks(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    leaf = random_rules.interval(rng, rows(rng), int(rng.choice([16, 32, 48, 64])))
    parts = [leaf.codes, leaf.low, leaf.high]
    return Call(native.interval_masks, [isa, *parts]), lambda found: np.testing.assert_array_equal(
        found, numpy_fallback.interval_masks(*parts)
    )


def fuzz_overlap_masks(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    leaf = random_rules.overlap(rng, rows(rng), int(rng.choice([16, 32, 48, 64])), words=int(rng.integers(1, 6)))
    held = np.ascontiguousarray(leaf.items.T)
    if rng.random() < 0.1:
        held, queries = held[:0], leaf.queries[:, :0].copy()
    else:
        queries = leaf.queries
    return Call(native.overlap_masks, [isa, held, queries]), lambda found: np.testing.assert_array_equal(
        found, numpy_fallback.overlap_masks(held, queries)
    )


def fuzz_ceiling(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    def limited(isa: Any, loop: Any, rounds: Any) -> Any:  # a large number of rounds takes long, as it should
        return native.ceiling(isa, loop, min(rounds, 2) if isinstance(rounds, int) else rounds)

    return Call(limited, [isa, int(rng.integers(4)), 1]), lambda products: None


def distinct_ids(rng: np.random.Generator, kind: int, n: int) -> list[Any]:
    """Ids in ascending order, n at most: of integers the extremes, of texts the empty one and long ones."""
    if kind == TEXT:
        ids: set[Any] = {rng.bytes(int(rng.integers(6))) for _ in range(n)}
        return sorted(ids | ({b"\xff" * LONGEST_ID} if rng.random() < 0.1 else set()))
    info = np.iinfo(np.uint32 if kind == UINT32 else np.int64)
    near = rng.integers(1000, size=n) if rng.random() < 0.5 else rng.integers(info.min, info.max, size=n)
    return sorted({*near.tolist(), int(info.min), int(info.max)})


def offsets_of(texts: list[bytes]) -> np.ndarray:
    return np.append(0, np.cumsum([len(text) for text in texts], dtype=np.int64)).astype(np.int64)


def bytes_of(texts: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(texts), np.uint8)


def encode_list(slots: list[tuple[np.float32, int]], ids: list[Any], kind: int) -> bytes:
    """The bytes of a list in a store. slots: score, and number of the id."""
    scores, numbers = np.array([score for score, _ in slots], np.float32), [ids[item] for _, item in slots]
    head = bytes([16 + kind, 0]) + np.uint16(len(slots)).tobytes() + scores.tobytes()
    if kind != TEXT:
        return head + np.array(numbers, np.uint32 if kind == UINT32 else np.int64).tobytes()
    return head + np.array([len(text) for text in numbers], np.uint16).tobytes() + b"".join(numbers)


def fuzz_insert_candidates(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    kind, n = int(rng.integers(3)), rows(rng, 20)
    ids = distinct_ids(rng, kind, int(rng.choice([1, 10, 100, 500])))
    k = int(rng.integers(1, len(ids) + 1))
    values: list[bytes] = []
    entrants: list[list[tuple[np.float32, int]]] = []
    expected: list[tuple[bytes, np.float32, int]] = []
    for _ in range(n):
        order = rng.permutation(len(ids)).tolist()
        drawn = [(score, item) for score, item in zip(rng.choice(SCORES, len(ids)), order, strict=True)]
        new = drawn[k : k + int(rng.integers(41))]
        held, best = (sorted(part, key=lambda slot: (-slot[0], slot[1]))[:k] for part in (drawn[:k], drawn[:k] + new))
        value = encode_list(held, ids, kind)
        expected.append((encode_list(best, ids, kind), best[-1][0], int(held != best)))
        if rng.random() < 0.1:  # no full list: left to the caller
            cut = int(rng.integers(len(value)))
            value = bytes([200]) + value[1:] if rng.random() < 0.5 else value[:cut]
            expected[-1] = (b"", np.float32(0), 2)
        values.append(value)
        entrants.append(new)
    flat = [slot for part in entrants for slot in part]
    texts = ids if kind == TEXT else []
    call = Call(
        native.insert_candidates,
        [
            *(bytes_of(values), offsets_of(values).astype(np.uint64)),
            np.append(0, np.cumsum([len(part) for part in entrants])).astype(np.uint64),
            np.array([item for _, item in flat], np.uint32),
            np.array([score for score, _ in flat], np.float32),
            *(kind, np.array([] if kind == TEXT else ids, np.int64)),
            *(offsets_of(texts).astype(np.uint64), bytes_of(texts), k, int(rng.integers(0, 4))),
        ],
    )

    def check(answer: Any) -> None:
        out, starts, sizes, states, last = answer
        found = [out[at : at + size].tobytes() for at, size in zip(starts[:-1].tolist(), sizes.tolist(), strict=True)]
        assert found == [value for value, _, _ in expected]
        assert states.tolist() == [state for _, _, state in expected]
        np.testing.assert_array_equal(last, np.array([score for _, score, _ in expected], np.float32))

    return call, check


def best_lists(rng: np.random.Generator, n: int, items: np.ndarray, width: int) -> Neighbors:
    """Sorted lists of some of the items; many are short."""
    lists = Neighbors.empty(n, width)
    for row in range(n):
        some = rng.permutation(items)[: rng.integers(len(items) + 1)]
        scores = rng.choice(SCORES, len(some))
        order = np.lexsort((some, -scores))[:width]
        lists.positions[row, : len(order)], lists.scores[row, : len(order)] = some[order], scores[order]
    return lists


def fuzz_renew_lists(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    n, m, w = rows(rng, 30), int(rng.integers(1, 80)), int(rng.choice([1, 2, 3, 8, 17, 64]))
    places = np.sort(rng.choice(2 * m, m, replace=False))  # new items are at the other positions
    now = np.where(rng.random(m) < rng.choice([0.0, 0.5, 0.9, 1.0]), places, -1)
    known = best_lists(rng, n, np.arange(m), w)
    chosen = rng.integers(n, size=rows(rng, 30)) if n else np.empty(0, np.int64)
    fresh = best_lists(rng, len(chosen), np.setdiff1d(np.arange(2 * m), places), int(rng.integers(w + 2)))
    bounds = rng.choice([*FLOATS, 1.0], len(chosen)).astype(np.float32)
    edges = rng.integers(-1, 2 * m + 1, size=len(chosen))
    room = len(chosen) + 3
    written = np.sort(rng.choice(room, len(chosen), replace=False))
    targets = [np.full((room, w), 99, np.int32), np.full((room, w), 9, np.float32)]
    targets += [np.full(room, 9, np.float32), np.full(room, 99)]
    lists = [known.positions.astype(np.int32), known.scores, chosen, bounds, edges, now.astype(np.int32)]
    lists += [fresh.positions.astype(np.int32), fresh.scores, written]
    call = Call(native.renew_lists, [*lists, *targets, int(rng.integers(0, 4))])

    def check(_: Any) -> None:
        moved = np.append(now, -1)[known.positions[chosen]]
        some = KnownLists(Neighbors(known.positions[chosen], known.scores[chosen]), bounds, edges)
        truth = update_lists(move_lists(some, moved, edges), fresh, w)
        wanted = truth.best.positions, truth.best.scores, truth.bound_scores, truth.bound_edges
        for found, values, before in zip(targets, wanted, (99, 9, 9, 99), strict=True):
            np.testing.assert_array_equal(found[written], values)
            assert (np.delete(found, written, axis=0) == before).all()

    return call, check


def fuzz_count_left(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    n, m, w = rows(rng), rows(rng), rows(rng)
    ends = np.iinfo(np.int32)
    positions = rng.choice([*range(-1, m + 2), ends.min, ends.max], (n, w)).astype(np.int32)
    now = rng.choice([ends.min, -1, 0, 5, ends.max], m).astype(np.int32)
    chosen = rng.integers(n, size=rows(rng)) if n else np.empty(0, np.int64)
    call = Call(native.count_left, [positions, chosen, now, int(rng.integers(0, 4))])
    stays = {position for position in range(m) if now[position] >= 0}
    return call, lambda counts: np.testing.assert_array_equal(
        counts, np.isin(positions, list(stays)).sum(axis=1)[chosen] if stays else np.zeros(len(chosen))
    )


def fuzz_match_sorted_texts(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    pool = distinct_ids(rng, TEXT, rows(rng, 200))
    texts, others = ([text for text in pool if rng.random() < share] for share in rng.random(2))
    arrays = [part for each in (texts, others) for part in (offsets_of(each), bytes_of(each))]
    places = {text: place for place, text in enumerate(others)}
    return Call(native.match_sorted_texts, arrays), lambda matches: np.testing.assert_array_equal(
        matches, [places.get(text, -1) for text in texts]
    )


def fuzz_gather_texts(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    texts = distinct_ids(rng, TEXT, rows(rng, 200))
    positions = rng.integers(len(texts), size=rows(rng)) if texts else np.empty(0, np.int64)
    wanted = [texts[position] for position in positions]

    def check(found: Any) -> None:
        np.testing.assert_array_equal(found[0], offsets_of(wanted))
        np.testing.assert_array_equal(found[1], bytes_of(wanted))

    return Call(native.gather_texts, [offsets_of(texts), bytes_of(texts), positions]), check


def fuzz_equal_rows(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    size, n = int(rng.choice([0, 1, 3, 64, 1000])), rows(rng)
    others = rng.integers(3, size=(rows(rng), size)).astype(np.uint8)
    matches = rng.integers(-1, len(others), size=n)
    mine = np.array([others[match] if match >= 0 else np.zeros(size, np.uint8) for match in matches], np.uint8)
    mine = mine.reshape(n, size)
    if mine.size:
        mine[rng.integers(n, size=n // 2), rng.integers(size, size=n // 2)] += 1
    wanted = [match >= 0 and bool((mine[row] == others[match]).all()) for row, match in enumerate(matches)]
    return Call(native.equal_rows, [mine, others, matches]), lambda same: np.testing.assert_array_equal(same, wanted)


def fuzz_index(rng: np.random.Generator, isa: str) -> tuple[Call, Callable[[Any], None]]:
    """The whole way: cells, the pruned join that probes all of them, and the exact one."""
    metric, d = str(rng.choice(METRICS)), width(rng)
    queries, items = vectors(rng, rows(rng, 20), d), vectors(rng, max(1, rows(rng, 900)), d)
    constraints = Constraints(any_rule(rng, len(queries), len(items)) if rng.random() < 0.5 else None)
    k, cells = int(rng.choice([1, 10, 100])), int(rng.choice([1, 5, 300]))

    def join(isa: Any, cells: Any, k: Any) -> Any:
        k = min(k, 100_000) if isinstance(k, int) else k  # all slots are filled, with nothing: k costs memory
        os.environ[isa_module.ISA_VARIABLE] = str(isa)
        index = kernels.build_index(items, metric, cells=cells, query_sample=queries)
        join_cells(index, queries, k, radius=float(rng.choice([-2.0, 0.0, 3.0])), constraints=constraints)
        return join_cells(index, queries, k, constraints=constraints)

    def check(found: Any) -> None:
        assert_lists(found.positions, found.scores, reference(queries, items, k, metric, None, constraints))

    return Call(join, [isa, cells, k]), check


ENTRY_POINTS = {
    "join": fuzz_join,
    "eligible_counts": fuzz_count,
    "quantise": fuzz_quantise,
    "pack": fuzz_pack,
    "norms": fuzz_norms,
    "score_lists": fuzz_score_lists,
    "cell_sums": fuzz_cell_sums,
    "nearest_centres": fuzz_nearest_centres,
    "centre_values": fuzz_centre_values,
    "repack": fuzz_repack,
    "interval_masks": fuzz_interval_masks,
    "overlap_masks": fuzz_overlap_masks,
    "ceiling": fuzz_ceiling,
    "insert_candidates": fuzz_insert_candidates,
    "renew_lists": fuzz_renew_lists,
    "count_left": fuzz_count_left,
    "match_sorted_texts": fuzz_match_sorted_texts,
    "gather_texts": fuzz_gather_texts,
    "equal_rows": fuzz_equal_rows,
    "build_index": fuzz_index,
}


def fuzz(name: str, seconds: float, seed: int) -> Counter[str]:
    """Call one entry point until the time is up; half of the calls fit, and their answers are checked."""
    counts: Counter[str] = Counter()
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until:
        rng = np.random.default_rng([seed, number])
        isa = ISAS[number % len(ISAS)]
        try:
            call, check = ENTRY_POINTS[name](rng, isa)
            if number % 2 == 0:
                check(call.make())
                counts["right"] += 1
            else:
                scribbled = rng.random() < 0.3
                if not scribbled:
                    change_some(rng, call)
                try:
                    call.make(partial(scribble, rng, call) if scribbled else nothing)
                    counts["taken"] += 1
                except REFUSALS:
                    counts["refused"] += 1
        except Exception:
            traceback.print_exc()
            print(f"{name}: call {number} of seed {seed} on {isa}", file=sys.stderr, flush=True)
            counts["WRONG"] += 1
            if counts["WRONG"] > 20:
                break
        number += 1
    return counts


def main() -> int:
    """Fuzz the entry points named, or all; 1 where an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each entry point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", default=list(ENTRY_POINTS), metavar="entry point")
    given = parser.parse_args()
    np.seterr(all="ignore")
    wrong = 0
    for name in given.names:
        counts = fuzz(name, given.seconds, given.seed)
        wrong += counts["WRONG"]
        words = ", ".join(f"{counts[kind]:,} {kind}" for kind in ("right", "taken", "refused", "WRONG") if counts[kind])
        print(f"{name:16} {sum(counts.values()):9,} calls on {len(ISAS)} instruction sets: {words}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
