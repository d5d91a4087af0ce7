"""The cell index: exact at full reach, the same everywhere, and better with more reach."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from tests.kernels.vectors import METRICS, calibrate_radius, draw_vectors, join_cells, joins

from nearcast.kernels import build_index, index_arrays, measure_recall, numpy_fallback, restore_index


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=joins())
def test_full_reach_is_exact(native_isa, case):
    queries, items, k, metric, exclude, threads = case
    index = build_index(items, metric, cells=7, threads=threads, query_sample=queries)
    joined = join_cells(index, queries, k, exclude=exclude, threads=threads)
    positions, scores = numpy_fallback.join_exact(queries, items, k, metric, exclude)
    np.testing.assert_array_equal(joined.positions, positions)
    np.testing.assert_array_equal(joined.scores.view(np.uint32), scores.view(np.uint32))


def clustered(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, d))
    return (centres[rng.integers(40, size=n)] + 0.4 * rng.standard_normal((n, d))).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_every_instruction_set_thread_count_and_batch_gives_the_same_lists(metric, monkeypatch):
    from tests.kernels.conftest import ISAS

    items, queries = clustered(6000, 24, 1), clustered(300, 24, 2)
    lists = []
    for number, isa in enumerate(name for name in ISAS if name != "numpy"):
        monkeypatch.setenv("NEARCAST_ISA", isa)
        index = build_index(items, metric, cells=300, threads=1 + number % 3, query_sample=queries)
        joined = join_cells(index, queries, 10, radius=0.5, threads=3 - number % 3, memory_bytes=1 << (10 + 4 * number))
        lists.append(joined.positions)
    for other in lists[1:]:
        np.testing.assert_array_equal(lists[0], other)


@pytest.mark.parametrize("metric", METRICS)
def test_more_reach_finds_more_and_scores_are_true(native_isa, metric):
    items, queries = clustered(6000, 24, 1), clustered(200, 24, 2)
    index = build_index(items, metric, cells=100, query_sample=queries)
    truth, true_scores = numpy_fallback.join_exact(queries, items, 10, metric)
    recalls = []
    for reach in (-3.0, 0.0, 2.0, 6.0):
        joined = join_cells(index, queries, 10, radius=reach)
        recalls.append(measure_recall(joined.positions, truth))
        same = joined.positions == truth
        np.testing.assert_array_equal(joined.scores[same], true_scores[same])
    assert recalls == sorted(recalls)
    assert recalls[-1] > 0.99


def test_the_nearest_cells_give_the_threshold_for_the_other_initial_probes(native_isa):
    items, queries = clustered(10_000, 24, 1), clustered(200, 24, 2)
    index = build_index(items, "inner_product", cells=512, query_sample=queries)
    counters = join_cells(index, queries, 5, radius=-np.inf).counters
    assert 16 * counters["tile_rows"] > 100 * len(queries)  # items scanned
    assert counters["survivors"] < 64 * len(queries)  # a buffer holds 64 pairs before its first threshold


def test_calibration_reaches_the_recall():
    items, queries = clustered(6000, 24, 1), clustered(400, 24, 2)
    index = build_index(items, "inner_product", query_sample=queries)
    reach = calibrate_radius(index, queries[:200], 10, 0.95)
    truth = join_cells(index, queries[200:], 10).positions
    assert measure_recall(join_cells(index, queries[200:], 10, radius=reach).positions, truth) > 0.9


def test_one_giant_cell_of_equal_items(native_isa):
    items = np.ones((3000, 12), np.float16)
    items[:50] = draw_vectors(np.random.default_rng(0), 50, 12, np.float16, "plain")
    index = build_index(items, "l2", cells=20)
    joined = join_cells(index, items[:60], 5, radius=1.0)
    np.testing.assert_array_equal(joined.positions[-1], [50, 51, 52, 53, 54])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=joins())
@example(case=(np.ones((1, 3), np.float32), np.ones((0, 3), np.float32), 1, "inner_product", None, 1))
def test_over_a_later_table_the_index_holds_the_items_that_both_have(native_isa, case):
    queries, items, k, metric, exclude, threads = case
    rng = np.random.default_rng(len(items) + k)
    index = build_index(items, metric, cells=int(rng.integers(1, 9)), threads=threads, query_sample=queries)
    stays = rng.random(len(items)) < 0.8
    places = np.sort(rng.choice(2 * len(items) + 1, len(items), replace=False))  # among new ones
    later = draw_vectors(rng, 2 * len(items) + 1, items.shape[1], items.dtype, "plain")
    later[places] = items
    now = np.where(stays, places, -1)
    moved = restore_index(later, metric, index_arrays(index), now)
    joined = join_cells(moved, queries, k, exclude=exclude, threads=threads)
    old = None if exclude is None else find_old(now, exclude)
    positions, scores = numpy_fallback.join_exact(queries, items[stays], k, metric, old)
    kept = places[stays]
    np.testing.assert_array_equal(joined.scores.view(np.uint32), scores.view(np.uint32))
    if len(kept):
        np.testing.assert_array_equal(joined.positions, np.where(positions < 0, -1, kept[positions]))
    else:
        assert (joined.positions == -1).all()


def find_old(now: np.ndarray, exclude: np.ndarray) -> np.ndarray:
    """Return the number among the items that stay of each position in the later table, -1 for others."""
    kept = now[now >= 0].tolist()
    return np.array([kept.index(one) if one in kept else -1 for one in exclude.tolist()], np.int64)


def test_without_native_kernels_the_index_is_exact(monkeypatch):
    monkeypatch.setenv("NEARCAST_ISA", "numpy")
    items = clustered(200, 8, 1)
    joined = join_cells(build_index(items, "cosine"), items[:5], 3, radius=-4.0)
    np.testing.assert_array_equal(joined.positions, numpy_fallback.join_exact(items[:5], items, 3, "cosine")[0])


def test_a_missing_extension_leaves_the_twins():
    code = (
        "import sys; sys.modules['nearcast.kernels._native'] = None\n"
        "import numpy as np, nearcast\n"
        "from nearcast.kernels import isa_info\n"
        "eye = np.eye(3, dtype=np.float32)\n"
        "found = nearcast.knn_join(eye, eye, k=1, metric='l2')\n"
        "print(isa_info().taken, found.report.engine, found.positions.T)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "numpy exact [[0 1 2]]"
