"""Rows are assigned to their nearest centres, and centres valued, as NumPy does it, on every instruction set."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.conftest import EMULATED, ISAS
from tests.kernels.test_kernels_index import clustered
from tests.kernels.vectors import METRICS, coarsen, draw_vectors

from nearcast.engines.dense import EXACT, PROBE_RADII, DenseIndex, DenseSettings
from nearcast.kernels import add_exact_layout, build_index, numpy_fallback, quantize
from nearcast.kernels import isa as isa_module
from nearcast.knn.constraints import Cap, Constraints
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.measure.recall import recall_per_query
from nearcast.types import Neighbors

TWO = Resources(2, 1 << 28)


def round_rows(vectors: np.ndarray, isa: str) -> quantize.Codes:
    rotation = quantize.make_rotation(vectors, "inner_product")
    return quantize.round_vectors(vectors, rotation, quantize.ITEM_LEVELS, isa, 1)


def pack(codes: quantize.Codes, blocks: np.ndarray, offsets: np.ndarray | None, isa: str) -> quantize.PackedItems:
    order, tiles = quantize.order_in_blocks(blocks, np.zeros(len(blocks)), int(blocks.max(initial=0)) + 1)
    return quantize.pack_items(codes, order, tiles, offsets, isa, 1)


def expected_values(rows: quantize.Codes, centres: quantize.PackedItems) -> np.ndarray:
    """(rows, places) float32 values, NaN for an empty place."""
    codes = centres.codes.reshape(-1, centres.width // 4, 16, 4).transpose(0, 2, 1, 3).reshape(-1, centres.width)
    sums = rows.codes.astype(np.int64) @ (codes.astype(np.int64) - 128).T
    values = sums.astype(np.float32) * centres.scales
    if centres.offsets is not None:
        weights = (1 / np.where(rows.scales > 0, rows.scales, 1)).astype(np.float32)
        values += centres.offsets * weights[:, None]
    return values


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), grouped=st.booleans())
def test_rows_go_to_the_best_centre_of_their_best_groups(native_isa, seed, grouped):
    rng = np.random.default_rng(seed)
    d, n, n_centres = int(rng.choice([3, 16, 50, 128])), int(rng.integers(1, 200)), int(rng.integers(1, 90))
    shape = str(rng.choice(["plain", "heavy_tailed", "spiky"]))
    rows = round_rows(draw_vectors(rng, n, d, np.float32, shape), native_isa)
    centres = round_rows(draw_vectors(rng, n_centres, d, np.float32, shape), native_isa)
    offsets = rng.standard_normal(n_centres) if rng.random() < 0.5 else None
    n_groups = int(rng.integers(1, 20)) if grouped else 1
    group_of = rng.integers(n_groups, size=n_centres)
    group_of[0] = n_groups - 1
    packed = pack(centres, group_of, offsets, native_isa)
    tops, probes = None, int(rng.integers(1, 6))
    coarse = coarsen(rows)
    values = expected_values(coarse, packed)
    if grouped:
        tops = pack(
            round_rows(draw_vectors(rng, n_groups, d, np.float32, shape), native_isa),
            np.zeros(n_groups, int),
            None,
            native_isa,
        )
        ranked = expected_values(coarse, tops)[:, :n_groups]
        best = np.argsort(-ranked, axis=1, kind="stable")[:, :probes]
        of_place = np.repeat(np.arange(n_groups), np.diff(packed.block_tiles.astype(int)) * 16)
        chosen = (best[:, :, None] == of_place).any(axis=1)
        values = np.where(chosen, values, np.nan)
    values = np.where(np.isnan(values), -np.inf, values)
    expected = np.where(np.isinf(values.max(axis=1)), quantize.NO_ITEM, packed.order[values.argmax(axis=1)])
    positions, levels = rng.integers(n, size=2 * n).astype(np.uint32), int(rng.choice([63, 127]))
    rows = coarse if levels == 63 else rows
    found = isa_module.native().nearest_centres(
        native_isa,
        rows.codes,
        rows.scales,
        levels,
        positions,
        packed.native,
        None if tops is None else tops.native,
        probes,
        2,
    )
    np.testing.assert_array_equal(found, expected[positions])


def test_centres_have_the_same_values_everywhere(native_isa):
    rng = np.random.default_rng(5)
    rows = coarsen(round_rows(draw_vectors(rng, 203, 40, np.float32, "plain"), native_isa))
    packed = pack(
        round_rows(draw_vectors(rng, 70, 40, np.float32, "plain"), native_isa),
        np.arange(70) // 50,
        rng.random(70),
        native_isa,
    )
    found = isa_module.native().centre_values(native_isa, quantize.native_queries(rows), packed.native, 2)
    np.testing.assert_array_equal(found, expected_values(rows, packed))


@pytest.mark.parametrize("metric", METRICS)
def test_cells_merged_into_one_block_hold_the_same_codes(native_isa, metric):
    items = draw_vectors(np.random.default_rng(2), 700, 20, np.float16, "heavy_tailed")
    index = build_index(items, metric, cells=9)
    merged = add_exact_layout(index).exact
    for name in ("scales", "offsets"):
        placed = []
        for packed in (index.packed, merged):
            values = getattr(packed, name)
            real = packed.order != quantize.NO_ITEM
            placed.append(None if values is None else values[real][np.argsort(packed.order[real])])
        np.testing.assert_array_equal(*placed)
    codes = quantize.round_vectors(items, index.rotation, quantize.ITEM_LEVELS, native_isa, 1)
    np.testing.assert_array_equal(numpy_fallback.pack(codes.codes, merged.order).reshape(-1), merged.codes)


CONSTRAINTS = {
    "free": lambda rng, n, m: Constraints(),
    "caps": lambda rng, n, m: Constraints(caps=(Cap(rng.integers(80, size=m).astype(np.int32), 1),)),
    "minimum score": lambda rng, n, m: Constraints(min_score=1.0),
}


QUICK = dict(zip(CONSTRAINTS, METRICS, strict=True))  # of the emulated tiles, which take ten times as long
CASES = [
    pytest.param(isa, metric, kind, marks=pytest.mark.slow if isa == EMULATED and QUICK[kind] != metric else ())
    for isa in ISAS
    for metric in METRICS
    for kind in CONSTRAINTS
    if isa != "numpy"
]


@pytest.mark.parametrize(("native_isa", "metric", "kind"), CASES, indirect=["native_isa"])
def test_predicted_recall_and_tiles_are_those_of_the_joins(native_isa, metric, kind):
    rng = np.random.default_rng(3)
    items, queries = clustered(5000, 24, 1), clustered(150, 24, 2)
    index = build_index(items, metric, cells=300, query_sample=queries)
    constraints = CONSTRAINTS[kind](rng, len(queries), len(items))
    request = JoinRequest(metric, 10, exclude=rng.integers(-1, 40, size=len(queries)), constraints=constraints)
    exact = index.join(queries, request, resources=TWO)
    truth = Neighbors(exact.positions, exact.scores)
    points = [{"reach": radius} for radius in PROBE_RADII[::9]] + [EXACT]
    dense = DenseIndex(index, DenseSettings())
    found = dense.count_found(queries, request, truth, points, TWO)
    free = JoinRequest(metric, 10)
    for point, counts in zip(points, found, strict=True):
        joined = dense.join(queries, request, point, TWO)
        shares = recall_per_query(joined.scores, truth)
        predicted = np.where(truth.lengths > 0, counts / np.maximum(truth.lengths, 1), 1)
        if kind == "caps":  # an item of a group may stand in for a missed one that scores higher
            assert predicted.mean() <= shares.mean() + 0.005
        else:  # the join may drop a few items that it scans
            assert abs(predicted.mean() - shares.mean()) < 0.005
        if point != EXACT:
            output = dense._scan(queries, free, point, TWO, per_job=512)
            assert dense.items_scanned(queries, free, point, TWO) == 16 * output.counters["tile_rows"] / len(queries)
