"""A join of arrays whose index is larger than its memory: built and joined in shards, with the same answer."""

from __future__ import annotations

import numpy as np
import pytest
from tests.kernels import rules as random_rules

import nearcast
from builders import clustered, exact_join
from nearcast.engines import query_parts
from nearcast.join.passes import SMALLEST_SHARD
from nearcast.knn.constraints import Constraints
from nearcast.knn.eligible import Eligibility
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


@pytest.mark.parametrize("engine", ["dense", "exact"])
def test_many_queries_are_joined_some_at_a_time(engine, monkeypatch):
    queries, items = clustered(500, 8, seed=3), clustered(900, 8, seed=1)
    monkeypatch.setattr(query_parts, "BATCH_ROWS", 64)
    told, found = [], []
    rule = Eligibility(500, 900, (random_rules.interval(np.random.default_rng(2), 500, 900),), 0)
    for memory in ("16KB", "1GB"):
        joined = nearcast.knn_join(
            *(queries, items),
            k=K,
            engine=engine,
            memory=memory,
            exclude_self=True,
            constraints=Constraints(rule),
            progress=lambda *step: told.append(step),
        )
        found.append(joined)
    assert found[0].positions.tolist() == found[1].positions.tolist()
    assert found[0].scores.tolist() == found[1].scores.tolist()
    assert ("join", 500, 500) in told
