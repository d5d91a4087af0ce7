"""Sharing out a table of a given size, against trying every way of sharing it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.overfetch.budget import allocate_slots, compute_hull_edges


@st.composite
def curves(draw):
    """Up to three falling curves with up to six slots, and weights."""
    n, k = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    drops = np.array(draw(st.lists(st.integers(0, 9), min_size=n * k, max_size=n * k)), float).reshape(n, k)
    short = 1 - np.cumsum(np.concatenate([np.zeros((n, 1)), drops], axis=1), axis=1) / max(1.0, drops.sum())
    return short, np.array(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)), float)


def value(short, weights, lengths):
    return sum(w * row[length] for w, row, length in zip(weights, short, lengths, strict=True))


def best_value(short, weights, slots):
    n, width = short.shape
    every = (lengths for lengths in itertools.product(range(width), repeat=n) if sum(lengths) <= slots)
    return min(value(short, weights, lengths) for lengths in every)


def edges_of(short, weights):
    at = np.broadcast_to(np.arange(short.shape[1]), short.shape)
    return compute_hull_edges(short, at, np.zeros(len(short), np.int64)).scale(weights)


@settings(max_examples=200, deadline=None)
@given(made=curves(), slots=st.integers(0, 18))
def test_what_is_lost_against_trying_everything_is_less_than_one_edge(made, slots):
    short, weights = made
    lengths = allocate_slots(short, slots, weights=weights)
    assert lengths.sum() <= slots
    best, found = best_value(short, weights, slots), value(short, weights, lengths)
    largest = edges_of(short, weights).gains.max(initial=0.0)
    assert best - 1e-9 <= found
    assert found == pytest.approx(best) or found < best + largest


@settings(max_examples=200, deadline=None)
@given(made=curves())
def test_where_an_edge_ends_nothing_is_lost_at_all(made):
    short, weights = made
    edges = edges_of(short, weights)
    order = np.lexsort((edges.queries, -edges.prices))
    for slots in np.cumsum(edges.slots[order]).tolist():
        lengths = allocate_slots(short, slots, weights=weights)
        assert value(short, weights, lengths) == pytest.approx(best_value(short, weights, slots), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(made=curves(), slots=st.integers(0, 18))
def test_curves_that_bend_one_way_are_shared_out_as_well_as_can_be_at_every_size(made, slots):
    short, weights = made
    drops = -np.sort(np.diff(short, axis=1), axis=1)  # the largest first: every edge is a single slot
    bent = 1 - np.cumsum(np.concatenate([np.zeros((len(short), 1)), drops], axis=1), axis=1)
    lengths = allocate_slots(bent, slots, weights=weights)
    assert value(bent, weights, lengths) == pytest.approx(best_value(bent, weights, slots), abs=1e-9)


def test_the_first_slots_that_help_nothing_are_sold_with_those_that_do():
    short = np.array([[1.0, 1.0, 0.1, 0.1], [1.0, 0.8, 0.7, 0.65]])
    assert allocate_slots(short, 2).tolist() == [2, 0]
    assert allocate_slots(short, 3).tolist() == [2, 1]
    assert allocate_slots(short, 1).tolist() == [0, 1]  # the dear edge does not fit, the cheap one does


def test_slots_that_help_nobody_stay_unsold():
    assert allocate_slots(np.array([[1.0, 0.0, 0.0, 0.0]]), 3).tolist() == [1]
    assert allocate_slots(np.array([[1.0, 0.0]]), 5, weights=np.zeros(1)).tolist() == [0]
