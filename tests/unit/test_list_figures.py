"""Figures of sampled lists: the same numbers whatever block of queries is compared at a time."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from nearcast.measure.list_figures import compare_lists, concat_figures, cut_blocks
from nearcast.measure.sampled_recall import SampledLists
from nearcast.types import ArrayVectors, Neighbors


def lists_of(rng, n, k, n_items):
    """Lists with ties, copies and empty slots, best first."""
    positions = np.array([rng.choice(n_items, k, replace=False) for _ in range(n)]).reshape(n, k)
    scores = -np.sort(-rng.integers(0, 8, (n, k)) / 4, axis=1).astype(np.float32)
    empty = np.arange(k) >= rng.integers(0, k + 1, n)[:, None]
    return np.where(empty, -1, positions), np.where(empty, np.float32(-np.inf), scores)


@pytest.mark.parametrize("most_slots", [1, 40, 10_000])
def test_lists_compared_in_blocks_have_the_figures_of_all_at_once(most_slots):
    rng = np.random.default_rng(1)
    items = ArrayVectors(rng.integers(0, 2, (50, 2)).astype(np.float32))
    lists, truth = SampledLists(*lists_of(rng, 30, 14, 50)), Neighbors(*lists_of(rng, 30, 12, 50))

    def compare(rows):
        some = SampledLists(lists.positions[rows], lists.scores[rows])
        true = Neighbors(truth.positions[rows], truth.scores[rows])
        return compare_lists(some, true, items, lambda listed: listed % 3 == 0)

    whole = compare(slice(None))
    parts = concat_figures([compare(rows) for rows in cut_blocks(30, 14, most_slots)])
    for field in fields(whole):
        one, other = getattr(whole, field.name), getattr(parts, field.name)
        if field.name == "extremes":
            one, other = (one.min(), one.max()), (other.min(), other.max())
        assert np.array_equal(one, other), field.name
    assert 0 < whole.new[:, 1].sum() < whole.new[:, 0].sum() < whole.new[:, [0, 2]].sum()
