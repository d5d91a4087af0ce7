"""Near-duplicate groups: all that a chain of pairs connects, as comparing every pair with every other finds."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearcast.engines.base import Resources
from nearcast.knn.scores import pair_scores
from nearcast.measure import near_duplicates
from nearcast.measure.near_duplicates import group_near_duplicates, merge_groups
from nearcast.types import ArrayVectors, Metric, as_score, no_progress

RESOURCES = Resources(1, 1 << 30)


def groups_of(vectors, least):
    return group_near_duplicates(ArrayVectors(vectors), least, RESOURCES, no_progress).tolist()


def reference(vectors, least):
    """The transitive closure of all pairs, by walking from each item."""
    n = len(vectors)
    one, other = np.divmod(np.arange(n * n), n)
    near = (pair_scores(vectors[one], vectors[other], Metric.COSINE) >= as_score(least)).reshape(n, n)
    groups, number = [-1] * n, 0
    for first in range(n):
        reached, walk = {first}, [first]
        while walk:
            walk = sorted({int(other) for item in walk for other in np.flatnonzero(near[item])} - reached)
            reached.update(walk)
        if groups[first] < 0 and len(reached) > 1:
            for item in reached:
                groups[item] = number
            number += 1
    return groups


def direction(degrees):
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


@st.composite
def crowds(draw):
    """Stacks of copies, scaled copies and near copies, chains, and vectors alone, in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dim = draw(st.integers(2, 5))
    rows = [np.zeros((draw(st.integers(0, 2)), dim))]
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.sampled_from([1, 2, 31, 32, 33, 34, 65, 90]))
        centre = rng.normal(size=dim)
        kind = draw(st.sampled_from(["copies", "scaled", "near", "chain"]))
        if kind == "chain":
            angles = np.arange(count) * draw(st.sampled_from([0.5, 5.0, 12.0]))
            rows.append(np.array([[*direction(a), *[0.0] * (dim - 2)] for a in angles]))
        else:
            noise = rng.normal(size=(count, dim)) * (draw(st.sampled_from([1e-6, 0.02, 0.1])) if kind == "near" else 0)
            rows.append((centre + noise) * (rng.uniform(1, 3, size=(count, 1)) if kind == "scaled" else 1))
    vectors = np.concatenate(rows).astype(draw(st.sampled_from([np.float32, np.float16])))
    return vectors[rng.permutation(len(vectors))]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(crowds(), st.sampled_from([0.9, 0.98, 0.9999, 1.0]), st.sampled_from([1, 256]), st.sampled_from([7, 1 << 15]))
def test_groups_are_the_transitive_closure_of_all_pairs(vectors, least, leaders, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "LEADERS", leaders)
        patch.setattr(near_duplicates, "FIRST_ROWS", block)
        patch.setattr(near_duplicates, "BLOCK_ROWS", block)
        assert groups_of(vectors, least) == reference(vectors, least)


def test_stacks_of_copies_are_linked_by_their_vectors():
    vectors = np.array([direction(0)] * 40 + [direction(9.5)] * 40 + [direction(90)], np.float32)
    assert groups_of(vectors, 0.98) == [0] * 80 + [-1]


def test_a_chain_is_followed_to_its_end():
    vectors = np.array([direction(a) for a in np.linspace(0, 180, 2000)], np.float32)
    assert groups_of(vectors, 0.99999) == [0] * 2000


def test_vectors_of_zeros_are_like_nothing():
    assert groups_of(np.array([[0, 0], [0, 0], [1, 1], [2, 2]], np.float32), 0.5) == [-1, -1, 0, 0]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_vectors(n):
    assert groups_of(np.ones((n, 4), np.float32), 0.9) == ([0, 0] if n == 2 else [-1] * n)


@pytest.mark.parametrize("noise", [0.0, 0.001])
def test_a_hundred_thousand_copies_take_no_matrix_of_their_pairs(noise):
    rng = np.random.default_rng(1)
    vectors = (rng.normal(size=16) + noise * rng.normal(size=(100_000, 16))).astype(np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert groups_of(vectors, 0.98) == [0] * 100_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


def test_groups_are_merged_by_their_links():
    labels = merge_groups(np.arange(7), np.array([5, 1, 2, 6]), np.array([1, 2, 2, 5]))
    assert labels.tolist() == [0, 1, 1, 3, 4, 1, 1]
