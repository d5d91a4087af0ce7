"""Scoring lists natively gives the bytes that `knn.scores` defines."""

import numpy as np
import pytest
from tests.kernels.vectors import DTYPES, METRICS, draw_vectors

from nearcast.kernels import compute_norms, list_scorer
from nearcast.knn.scores import norms, pair_scores
from nearcast.types import Metric


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_scores_of_lists_are_those_of_the_definition_to_the_bit(isa, metric, dtype):
    rng = np.random.default_rng(5)
    queries, items = draw_vectors(rng, 4, 70, np.float32, "plain"), draw_vectors(rng, 50, 70, dtype, "heavy_tailed")
    positions = rng.integers(50, size=23)
    scorer = list_scorer(items, Metric(metric))
    for row in range(4):
        found = scorer.scores(queries[row : row + 1], positions)
        true = pair_scores(np.repeat(queries[row : row + 1], 23, axis=0), items[positions], Metric(metric))
        np.testing.assert_array_equal(found.view(np.uint32), true.view(np.uint32))


def test_no_items_have_no_scores(isa):
    items = np.eye(3, dtype=np.float32)
    assert list_scorer(items, Metric.L2).scores(items[:1], np.empty(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 16, 70, 8193])
def test_lengths_of_vectors_are_those_of_the_definition_to_the_bit(isa, dim, dtype):
    vectors = draw_vectors(np.random.default_rng(5), 9, dim, dtype, "heavy_tailed")
    np.testing.assert_array_equal(compute_norms(vectors).view(np.uint64), norms(vectors).view(np.uint64))
