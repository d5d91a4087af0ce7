"""When `dense` prunes and when it scans everything: by counting, so that every run chooses alike."""

import numpy as np
import pytest

import nearcast
from nearcast.engines.base import Workload
from nearcast.engines.dense import worthwhile_cells
from nearcast.kernels import isa_info

pytestmark = pytest.mark.skipif(isa_info().taken == "numpy", reason="needs the native kernels")

K = 10
CELLS = {"cells": 500}  # so few items and queries would not be worth them


def clustered(n, seed, *, centers=200, dim=32):
    rng = np.random.default_rng([seed, 1])
    middles = np.random.default_rng(0).standard_normal((centers, dim)) * 3
    return (middles[rng.integers(centers, size=n)] + rng.standard_normal((n, dim))).astype(np.float32)


def true_recall(found, exact):
    return float(np.mean(found.scores >= exact.scores[:, -1:]))


def test_clustered_items_are_pruned_and_the_promise_is_kept_on_all_queries():
    items, queries = clustered(12_000, 1), clustered(6_000, 2)
    exact = nearcast.knn_join(queries, items, k=K)
    found = nearcast.knn_join(queries, items, k=K, recall=0.9, engine="dense", engine_settings=CELLS)
    assert "reach" in found.report.effort
    assert 0.9 <= true_recall(found, exact) < 1.0


def test_where_pruning_meets_most_items_all_of_them_are_scanned_instead():
    rng = np.random.default_rng(3)
    items = rng.standard_normal((12_000, 64)).astype(np.float32)  # no structure: every cell is near
    queries = rng.standard_normal((6_000, 64)).astype(np.float32)
    found = nearcast.knn_join(queries, items, k=K, recall=0.99, engine="dense", engine_settings=CELLS)
    assert found.report.effort == {"exact": 1}
    exact = nearcast.knn_join(queries, items, k=K)
    assert np.array_equal(found.positions, exact.positions)


def test_few_queries_an_exact_promise_or_queries_unknown_get_no_cells():
    sample = np.zeros((1, 8), np.float32)
    assert worthwhile_cells(100_000, Workload(1_000_000, K, 0.9, sample)) > 1
    assert worthwhile_cells(100_000, Workload(1_000_000, K, 1.0, sample)) == 1
    assert worthwhile_cells(100_000, Workload(100, K, 0.9, sample)) == 1
    assert worthwhile_cells(100_000, Workload(25_000, K, 0.95, sample)) == 1
    assert worthwhile_cells(400_000, Workload(100_000, K, 0.99, sample)) > 1
    assert worthwhile_cells(100_000, None) == 1


def test_two_runs_choose_the_same_effort_and_give_the_same_bytes():
    items, queries = clustered(12_000, 4), clustered(6_000, 5)
    settings = {"k": K, "recall": 0.95, "engine": "dense", "engine_settings": CELLS}
    one, two = (nearcast.knn_join(queries, items, threads=threads, **settings) for threads in (1, 2))
    assert one.report.effort == two.report.effort
    assert one.positions.tobytes() == two.positions.tobytes()
    assert one.scores.tobytes() == two.scores.tobytes()
