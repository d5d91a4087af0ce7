"""A join of arrays whose index is larger than its memory: built and joined in shards, with the same answer."""

from __future__ import annotations

import numpy as np
import pytest

import nearcast
from builders import clustered, exact_join
from nearcast.join.passes import SMALLEST_SHARD
from nearcast.types import ArrayVectors, Metric

N, K = 2 * SMALLEST_SHARD + 100, 10
LITTLE = "8MB"


@pytest.fixture(scope="module")
def arrays():
    return clustered(300, 8, seed=2), clustered(N, 8, seed=1)


def test_at_recall_1_the_lists_are_those_of_all_items(arrays):
    queries, items = arrays
    found = nearcast.knn_join(queries, items, k=K, metric="l2", memory=LITTLE)
    true = exact_join(queries, ArrayVectors(items), K, Metric.L2)
    assert found.positions.tolist() == true.positions.tolist()
    assert found.scores.tolist() == true.scores.tolist()


def test_below_recall_1_the_merged_lists_reach_the_target(arrays):
    queries, items = arrays
    settings = {"cells": 32}
    found = nearcast.knn_join(queries, items, k=K, recall=0.9, engine="dense", engine_settings=settings, memory=LITTLE)
    true = exact_join(queries, ArrayVectors(items), K, Metric.INNER_PRODUCT)
    hits = [len(set(ours) & set(best)) for ours, best in zip(found.positions, true.positions, strict=True)]
    assert np.mean(hits) >= 0.9 * K


def test_the_exact_engine_needs_no_shards(arrays, monkeypatch):
    monkeypatch.setattr("nearcast.join.build_array_index.ShardedIndex", None)
    queries, items = arrays
    assert nearcast.knn_join(queries[:5], items, k=3, engine="exact", memory=LITTLE).lengths.tolist() == [3] * 5
