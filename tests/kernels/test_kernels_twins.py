"""Each native kernel against its NumPy twin."""

import numpy as np
import pytest
from tests.kernels.vectors import DTYPES, METRICS, draw_vectors

from nearcast.kernels import isa as isa_module
from nearcast.kernels import numpy_fallback, quantize
from nearcast.knn.scores import norms, pair_scores
from nearcast.types import Metric


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 7, 16, 50, 128, 300])
@pytest.mark.parametrize("metric", METRICS)
def test_rounding_agrees_bit_by_bit(native_isa, dtype, d, metric):
    vectors = draw_vectors(np.random.default_rng(d), 90, d, dtype, "plain")
    rotation = quantize.make_rotation(vectors, metric)
    native = quantize.round_vectors(vectors, rotation, 127, native_isa, 2)
    twin = quantize.round_vectors(vectors, rotation, 127, "numpy", 1)
    for name in ("codes", "scales", "residuals", "norms"):
        np.testing.assert_array_equal(getattr(native, name), getattr(twin, name), err_msg=name)


def test_rounding_keeps_inner_products_within_the_residuals(native_isa):
    vectors = draw_vectors(np.random.default_rng(0), 50, 100, np.float32, "spiky")
    rotation = quantize.make_rotation(vectors, "inner_product")
    codes = quantize.round_vectors(vectors, rotation, 127, native_isa, 1)
    rounded = codes.scales[:, None] * codes.codes
    off = np.abs(rounded @ rounded.T - vectors.astype(np.float64) @ vectors.T.astype(np.float64))
    lengths = np.linalg.norm(rounded, axis=1)
    bound = codes.residuals[:, None] * lengths + codes.norms[:, None] * codes.residuals
    assert (off <= bound * (1 + 1e-9) + 1e-9).all()


def test_packing_agrees(native_isa):
    codes = np.random.default_rng(1).integers(-127, 128, (70, 32)).astype(np.int8)
    order = np.full(80, quantize.NO_ITEM, np.uint32)
    order[:70] = np.random.default_rng(2).permutation(70)
    native = isa_module.native().pack(codes, order, 2)
    np.testing.assert_array_equal(native, numpy_fallback.pack(codes, order))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [1, 15, 16, 17, 128, 333])
def test_scores_agree_bit_by_bit(native_isa, dtype, metric, d):
    rng = np.random.default_rng(3)
    queries, items = draw_vectors(rng, 6, d, dtype, "plain"), draw_vectors(rng, 40, d, dtype, "heavy_tailed")
    starts = np.arange(0, 6 * 40 + 1, 40, dtype=np.uint64)
    positions = np.tile(np.arange(40, dtype=np.uint32), 6)
    lengths = isa_module.native().norms(native_isa, items, 1)
    np.testing.assert_array_equal(lengths, norms(items))
    number = METRICS.index(metric)
    native = isa_module.native().score_lists(native_isa, number, queries, items, starts, positions, lengths, 2)
    pairs = np.repeat(queries, 40, axis=0), np.tile(items, (6, 1))
    twin = pair_scores(*pairs, Metric(metric))
    np.testing.assert_array_equal(native.view(np.uint32), twin.view(np.uint32))
