"""Pairs of many queries and few items that reach a threshold: those of a score of every pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import join_cases

from nearcast.kernels.scan_thresholds import scan_thresholds
from nearcast.knn.find_pairs import find_pairs
from nearcast.knn.join_request import Resources
from nearcast.knn.scores import pair_scores
from nearcast.types import ArrayVectors, Metric


@pytest.mark.parametrize("find", [find_pairs, scan_thresholds])
@settings(max_examples=60, deadline=None)
@given(join_cases(most_items=60), st.integers(0, 50))
def test_the_pairs_are_those_of_all_scores_whatever_the_threshold(find, case, rank):
    metric, queries, items = Metric(case.metric), case.queries, case.items
    n, m = len(queries), len(items)
    rows, columns = np.divmod(np.arange(n * m), m)
    scores = pair_scores(queries[rows], items[columns], metric).reshape(n, m)
    ordered = np.sort(scores, axis=1)[:, ::-1]
    thresholds = ordered[:, min(rank, m - 1)].copy()  # ties with the threshold are the hard case
    thresholds[::3], thresholds[1::5] = -np.inf, np.inf
    found = list(find(ArrayVectors(queries), items, thresholds, metric, Resources(2)))
    row, column, score = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert (np.diff(row) >= 0).all()
    expected = np.argwhere(scores >= thresholds[:, None])
    assert sorted(zip(row.tolist(), column.tolist(), strict=True)) == [tuple(pair) for pair in expected.tolist()]
    assert (score == scores[row, column]).all()
