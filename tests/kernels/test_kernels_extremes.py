"""Vectors at the ends of what float32 holds: every join gives what sorting all pairs by float64 scores gives."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.rules import sorted_join
from tests.kernels.vectors import METRICS, join_cells, join_exact

import nearcast
from nearcast.errors import InputError, SpecError
from nearcast.kernels import build_index, numpy_fallback
from nearcast.knn.constraints import FREE

FIXTURE_ONCE = [HealthCheck.function_scoped_fixture]
POWERS = (-45, -42, -38, -30, -25, -19, -10, 0, 10, 17)


def assert_same(found, truth):
    positions, scores = found.positions, found.scores
    np.testing.assert_array_equal(positions, truth[0])
    np.testing.assert_array_equal(scores.view(np.uint32), truth[1].view(np.uint32))


def assert_exact(queries, items, k, metric):
    """Every native join, the NumPy join and a plain float64 computation agree."""
    truth = sorted_join(queries, items, k, metric, None, FREE)
    assert_same(join_exact(queries, items, k, metric), truth)
    for cells in (1, 9):
        assert_same(join_cells(build_index(items, metric, cells=cells), queries, k), truth)
    positions, scores = numpy_fallback.join_exact(queries, items, k, metric)
    np.testing.assert_array_equal(positions, truth[0])
    np.testing.assert_array_equal(scores, truth[1])
    every = plain_scores(queries, items, metric)
    kept = truth[0] >= 0
    assert kept.sum(axis=1).tolist() == [min(k, len(items))] * len(queries)
    wanted = np.take_along_axis(every, np.maximum(truth[0], 0), 1)
    np.testing.assert_allclose(truth[1][kept], wanted[kept].astype(np.float32), rtol=3e-7, atol=1e-44)


def plain_scores(queries, items, metric):
    q, x = queries.astype(np.float64), items.astype(np.float64)
    if metric == "l2":
        return -((q[:, None, :] - x[None, :, :]) ** 2).sum(axis=2)
    products = (q[:, None, :] * x[None, :, :]).sum(axis=2)
    if metric == "cosine":
        lengths = np.sqrt((q * q).sum(axis=1))[:, None] * np.sqrt((x * x).sum(axis=1))[None, :]
        return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return products


@st.composite
def extreme_tables(draw):
    """(queries, items): each group of rows of a magnitude of its own, on an offset that may be far larger."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d = draw(st.sampled_from([1, 3, 16, 65]))

    def table(rows):
        powers = draw(st.lists(st.sampled_from(POWERS), min_size=1, max_size=3))
        values = rng.standard_normal((rows, d)) * 10.0 ** np.asarray(powers)[rng.integers(len(powers), size=rows), None]
        if draw(st.booleans()):
            values += 10.0 ** draw(st.sampled_from(POWERS))
        values[rng.random(rows) < 0.1] = 0
        return values.astype(draw(st.sampled_from([np.float32, np.float32, np.float16])))

    with np.errstate(over="ignore"):
        queries, items = (
            np.nan_to_num(table(rows), posinf=6e4, neginf=-6e4) for rows in (7, draw(st.integers(1, 400)))
        )
    return queries, items


@settings(max_examples=30, deadline=None, suppress_health_check=FIXTURE_ONCE)
@given(tables=extreme_tables(), metric=st.sampled_from(METRICS), k=st.sampled_from([1, 10, 500]))
def test_any_magnitudes_give_what_sorting_all_pairs_gives(native_isa, tables, metric, k):
    assert_exact(*tables, k, metric)


def scaled_rows(power, rows=slice(0, 1000), n=3000, d=24):
    items = np.random.default_rng(5).standard_normal((n, d)).astype(np.float32)
    items[rows] *= np.float32(10.0**power)
    return items


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("power", [-45, -39, -30, -20, 17])
def test_a_third_of_the_items_far_smaller_or_larger_than_the_rest(metric, power):
    items = scaled_rows(power)
    queries = items[[0, 5, 999, 1000, 2000]]
    assert_exact(queries, items, 20, metric)
    index = build_index(items, metric, cells=300)  # so many that centres are grouped
    assert_same(join_cells(index, queries, 20), sorted_join(queries, items, 20, metric, None, FREE))


CASES = {  # queries, items
    "one denormal item": ([[1e-42] * 3], [[1e-42] * 3]),
    "one item, far": ([[1e17] * 3], [[1e-42] * 3]),
    "opposite ends": ([[6e17, 0]], [[-6e17, 0]]),
    "opposite ends, the longest": ([[1e18, 0], [-1e18, 0]], [[-1e18, 0], [1e18, 0], [0, 1e18]]),
    "all zero": ([[0.0] * 4], [[0.0] * 4] * 5),
    "all equal": ([[3.0] * 4], [[3.0] * 4] * 40),
    "one dimension": ([[1e-40], [1e17]], [[1e17], [-1e17], [1e-40], [0.0]]),
    "a zero query among long items": ([[0.0, 0.0], [1e-27, 0.0]], [[1e5, 0], [-1e5, 0], [0, 1e5], [0, -1e5]] * 30),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("engine", ["exact", "dense"])
def test_single_cases_at_the_ends(case, metric, engine):
    queries, items = (np.array(side, np.float32) for side in case)
    assert_exact(queries, items, 3, metric)
    found = nearcast.knn_join(queries, items, k=3, metric=metric, engine=engine)
    truth = sorted_join(queries, items, 3, metric, None, FREE)
    np.testing.assert_array_equal(found.positions, truth[0])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("metric", METRICS)
def test_whole_numbers_at_the_ends(native_isa, metric, dtype):
    info = np.iinfo(dtype)
    rng = np.random.default_rng(6)
    items = rng.choice(np.array([info.min, info.max, 0, 1], dtype), size=(200, 70))
    assert_exact(items[:5], items, 10, metric)


@pytest.mark.parametrize("d", [1, 2, 15, 16, 17, 63, 64, 65, 1000, 4095, 4096])
def test_any_number_of_dimensions(native_isa, d):
    rng = np.random.default_rng(7)
    items = (rng.standard_normal((40, d)) * 10.0 ** rng.integers(-40, 17, size=(40, 1))).astype(np.float32)
    for metric in METRICS:
        assert_exact(items[:2], items, 50, metric)


def test_more_dimensions_than_the_kernels_take_are_refused_with_the_engine_that_takes_them():
    wide = np.random.default_rng(8).standard_normal((20, 4097)).astype(np.float32)
    with pytest.raises(SpecError, match="at most 4,096 dimensions, got 4,097; set engine"):
        nearcast.knn_join(wide, wide, k=1, engine="dense")
    assert nearcast.knn_join(wide, wide, k=1, engine="exact").positions[:, 0].tolist() == list(range(20))
    with pytest.raises(SpecError, match="at most 268,435,456"):
        nearcast.knn_join(wide, wide, k=2**40)


@pytest.mark.parametrize("engine", ["exact", "dense"])
@pytest.mark.parametrize("value", [1.1e18, 1e30, 3e38, 1e39, np.inf, np.nan])
def test_vectors_that_are_too_long_are_refused_by_name(engine, value):
    long = np.array([[0.0, 1.0], [value, 0.0]])
    for tables in ((long, np.ones((3, 2))), (np.ones((3, 2)), long)):
        with pytest.raises(InputError, match=r"row 1 of .* longer than 1e\+?18"):
            nearcast.knn_join(*tables, k=1, engine=engine)
