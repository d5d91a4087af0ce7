"""When `dense` prunes and when it scans everything: by counting, so that every run chooses alike."""

from dataclasses import replace

import numpy as np
import pytest

import nearcast
from nearcast.engines.base import IndexSpec, JoinRequest, Resources, Workload
from nearcast.engines.dense import DenseEngine, choose_cells
from nearcast.kernels import isa_info
from nearcast.types import ArrayVectors, Metric

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
    assert "reach" in found.report.params
    assert 0.9 <= true_recall(found, exact) < 1.0


def test_where_pruning_meets_most_items_all_of_them_are_scanned_instead():
    rng = np.random.default_rng(3)
    items = rng.standard_normal((12_000, 64)).astype(np.float32)  # no structure: every cell is near
    queries = rng.standard_normal((6_000, 64)).astype(np.float32)
    found = nearcast.knn_join(queries, items, k=K, recall=0.99, engine="dense", engine_settings=CELLS)
    assert found.report.params == {"exact": 1}
    exact = nearcast.knn_join(queries, items, k=K)
    assert np.array_equal(found.positions, exact.positions)


def long_tailed(n, seed, *, dim=24):
    """Of very different lengths, as word vectors are: under L2 many cells are near a query."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, dim)) * rng.lognormal(0, 0.4, (n, 1))).astype(np.float32)


def test_cells_that_are_there_are_used_where_half_of_the_items_are_met_and_not_where_most_are():
    items, queries = long_tailed(12_000, 6), long_tailed(500, 7)
    index = DenseEngine().build(
        ArrayVectors(items),
        IndexSpec(Metric.L2, DenseEngine.settings(cells=100)),
        resources := Resources(2, 1 << 28),
        workload=Workload(request := JoinRequest(Metric.L2, K, 0.99), len(queries), queries),
    )
    reaches = range(0, 150, 10)  # what is met grows with them, past the bound
    shares = {
        reach: index.items_scanned(queries, request, {"reach": reach}, resources) / len(items) for reach in reaches
    }
    half = [reach for reach, share in shares.items() if 0.4 < share < DenseEngine.max_scan_share]
    most = [reach for reach, share in shares.items() if share > DenseEngine.max_scan_share]
    assert half
    assert most
    assert all(index.is_cheaper(queries, request, {"reach": reach}, resources) for reach in half)
    assert not any(index.is_cheaper(queries, request, {"reach": reach}, resources) for reach in most)


def test_how_many_items_are_met_does_not_depend_on_threads_or_memory():
    items, queries = long_tailed(6_000, 8), long_tailed(700, 9)
    index = DenseEngine().build(
        ArrayVectors(items),
        IndexSpec(Metric.L2, DenseEngine.settings(cells=60)),
        Resources(1, 1 << 28),
    )
    request, resources = JoinRequest(Metric.L2, K), [Resources(n, m) for n in (1, 2) for m in (1 << 20, 1 << 28)]
    scanned = {index.items_scanned(queries, request, {"reach": 100}, some) for some in resources}
    assert len(scanned) == 1


def test_few_queries_an_exact_promise_or_queries_unknown_get_no_cells():
    sample = np.zeros((1, 8), np.float32)

    def workload(n_queries, recall):
        return Workload(JoinRequest(Metric.L2, K, recall), n_queries, sample)

    assert choose_cells(100_000, workload(1_000_000, 0.9)) > 1
    assert choose_cells(100_000, workload(1_000_000, 1.0)) == 1
    assert choose_cells(100_000, workload(100, 0.9)) == 1
    assert choose_cells(100_000, workload(8_000, 0.95)) == 1
    assert choose_cells(100_000, workload(25_000, 0.95)) > 1
    assert choose_cells(400_000, workload(100_000, 0.99)) > 1
    assert choose_cells(100_000, None) == 1


def test_two_runs_choose_the_same_effort_and_give_the_same_bytes():
    items, queries = clustered(12_000, 4), clustered(6_000, 5)
    settings = {"k": K, "recall": 0.95, "engine": "dense", "engine_settings": CELLS}
    one, two = (nearcast.knn_join(queries, items, threads=threads, **settings) for threads in (1, 2))
    assert one.report.params == two.report.params
    assert one.positions.tobytes() == two.positions.tobytes()
    assert one.scores.tobytes() == two.scores.tobytes()


def test_with_known_thresholds_cells_are_cheaper_for_fewer_items():
    queries = np.zeros((1, 8), np.float32)
    bounded = JoinRequest(Metric.COSINE, 10, recall=0.95, thresholds=np.zeros(1, np.float32))
    assert choose_cells(20_000, Workload(bounded, 100_000, queries)) > 1
    assert choose_cells(20_000, Workload(bounded, 1_000, queries)) == 1
    assert choose_cells(4_000, Workload(bounded, 100_000, queries)) == 1
    assert choose_cells(20_000, Workload(replace(bounded, recall=1.0), 100_000, queries)) == 1
    assert choose_cells(20_000, Workload(replace(bounded, thresholds=None), 100_000, queries)) == 1
