"""Reserves: updated night after night, they give the lists of a full join, bit for bit, also under constraints."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.knn.constraints import FREE, Cap, Constraints
from nearcast.knn.eligible import Eligibility, Interval
from nearcast.knn.exact_join import exact_join
from nearcast.knn.join_request import JoinRequest
from nearcast.knn.reserve_lists import (
    Reserve,
    ReserveShape,
    are_enough,
    cut_reserve,
    make_reserve,
    plan_reserve,
    update_reserve,
)
from nearcast.types import EMPTY_POSITION, ArrayVectors, Metric, Neighbors

DIM = 3


@dataclass
class Shop:
    """Items by id: a vector, a brand within a maker, and a country; queries buy in one country or in all."""

    vectors: np.ndarray  # (ids, dim); ids that are not `listed` have one too
    brands: np.ndarray
    countries: np.ndarray
    listed: np.ndarray
    stamps: np.ndarray  # changes with every change of an item

    def constraints(self, kinds: frozenset[str], queries: int) -> Constraints:
        listed = np.flatnonzero(self.listed)
        caps = ()
        if "cap" in kinds:
            caps += (Cap(self.brands[listed].astype(np.int32), 2),)
        if "nested" in kinds:
            makers = np.where(self.brands < 0, -1, self.brands // 2)
            caps += (Cap(makers[listed].astype(np.int32), 3),)
        rule = None
        if "rule" in kinds:
            country = np.arange(queries) % 3
            low, high = np.where(country == 2, 0, country), np.where(country == 2, 1, country)
            leaf = Interval(self.countries[listed].astype(np.int32), low.astype(np.int32), high.astype(np.int32))
            rule = Eligibility(queries, len(listed), (leaf,), 0)
        if not kinds:
            return FREE
        return Constraints(rule, caps, 1.0 if "score" in kinds else None)


def join(shop: Shop, queries: np.ndarray, request: JoinRequest) -> Neighbors:
    return exact_join(queries, ArrayVectors(shop.vectors[np.flatnonzero(shop.listed)]), request)


def relax(request: JoinRequest, shape: ReserveShape) -> JoinRequest:
    pairs = zip(request.constraints.caps, shape.relaxed, strict=True)
    caps = tuple(Cap(cap.groups, most) for cap, most in pairs)
    return replace(request, k=shape.width, constraints=replace(request.constraints, caps=caps))


def change(shop: Shop, rng: np.random.Generator, share: float) -> Shop:
    """Return the shop after a night: some items come, go, move, or get another brand or country."""
    n = len(shop.listed)
    new = Shop(*(np.array(part) for part in vars(shop).values()))
    touched = np.flatnonzero(rng.random(n) < share)
    new.stamps[touched] += 1
    new.vectors[touched] = rng.integers(-2, 3, (len(touched), DIM)).astype(np.float32)
    new.brands[touched], new.countries[touched] = rng.integers(-1, 6, len(touched)), rng.integers(0, 2, len(touched))
    new.listed[rng.random(n) < share / 2] ^= True
    new.listed[0] = True
    return new


def find_moves(old: Shop, new: Shop) -> tuple[np.ndarray, np.ndarray]:
    """Return the new position of each old one, -1 for a removed or changed item, and the fresh new positions."""
    same = old.listed & new.listed & (old.stamps == new.stamps)
    places = np.cumsum(new.listed) - 1
    now = np.where(same, places, EMPTY_POSITION)[old.listed]
    return now, np.flatnonzero(~same[new.listed])


def update(reserve: Reserve, old: Shop, new: Shop, queries: np.ndarray, request: JoinRequest, shape: ReserveShape):
    now, fresh = find_moves(old, new)
    slots = reserve.known.best.positions
    moved = np.where(slots == EMPTY_POSITION, EMPTY_POSITION, now[slots])
    edges = np.concatenate([[0], np.maximum.accumulate(now + 1)])[reserve.known.bound_edges]
    wide = relax(request, shape)
    constraints = wide.constraints
    part = replace(
        constraints,
        eligibility=None if constraints.eligibility is None else constraints.eligibility.of_items(fresh),
        caps=tuple(Cap(cap.groups[fresh], cap.most) for cap in constraints.caps),
    )
    vectors = new.vectors[np.flatnonzero(new.listed)][fresh]
    lists = exact_join(queries, ArrayVectors(vectors), replace(wide, constraints=part))
    filled = lists.positions != EMPTY_POSITION
    lists.positions[filled] = fresh[lists.positions[filled]]
    enough = are_enough(reserve, moved != EMPTY_POSITION, shape)
    updated, complete = update_reserve(reserve, (moved, edges), lists, shape, request.constraints.find_groups)
    assert complete[enough].all(), "new items never make a list incomplete"
    return updated, complete


KINDS = [
    frozenset(kinds)
    for kinds in (
        (),
        ("rule",),
        ("score",),
        ("cap",),
        ("cap", "nested"),
        ("rule", "score", "cap"),
        ("rule", "score", "cap", "nested"),
    )
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 1 << 30), st.integers(1, 4), st.sampled_from([0.02, 0.1, 0.3]))
def test_lists_of_updated_reserves_are_those_of_a_full_join_after_every_night(kinds, seed, k, share):
    rng = np.random.default_rng(seed)
    n, metric = int(rng.integers(1, 60)), Metric.INNER_PRODUCT
    shop = Shop(
        rng.integers(-2, 3, (n, DIM)).astype(np.float32),
        rng.integers(-1, 6, n),
        rng.integers(0, 2, n),
        (rng.random(n) < 0.8) | (np.arange(n) == 0),
        np.zeros(n, np.int64),
    )
    queries = rng.integers(-2, 3, (9, DIM)).astype(np.float32)
    request = JoinRequest(metric, k, constraints=shop.constraints(kinds, len(queries)))
    planned = plan_reserve(k, request.constraints.max_per_group)
    shape = replace(planned, width=k + 3 if planned.relaxed == planned.max_per_group else 2 * k + 4)  # short: they fail
    reserve = make_reserve(join(shop, queries, relax(request, shape)), shape, request.constraints.find_groups)
    for _ in range(4):
        new = change(shop, rng, share)
        request = replace(request, constraints=new.constraints(kinds, len(queries)))
        reserve, complete = update(reserve, shop, new, queries, request, shape)
        full = join(new, queries, request)
        lists = cut_reserve(reserve, shape)
        np.testing.assert_array_equal(lists.positions[complete], full.positions[complete])
        np.testing.assert_array_equal(lists.scores[complete], full.scores[complete])
        joined = make_reserve(join(new, queries, relax(request, shape)), shape, request.constraints.find_groups)
        np.testing.assert_array_equal(cut_reserve(joined, shape).positions, full.positions)
        reserve = replace_rows(reserve, joined, ~complete)
        shop = new


def replace_rows(reserve: Reserve, joined: Reserve, rows: np.ndarray) -> Reserve:
    """Return the reserves, with those of some queries joined in full."""
    for mine, theirs in (
        (reserve.known.best.positions, joined.known.best.positions),
        (reserve.known.best.scores, joined.known.best.scores),
        (reserve.known.bound_scores, joined.known.bound_scores),
        (reserve.known.bound_edges, joined.known.bound_edges),
    ):
        mine[rows] = theirs[rows]
    reserve.labels[:, rows], reserve.proving[:, rows] = joined.labels[:, rows], joined.proving[:, rows]
    return reserve


def test_most_lists_of_a_small_change_stay_complete():
    rng = np.random.default_rng(5)
    n, k = 2_000, 10
    shop = Shop(
        rng.normal(size=(n, DIM)).astype(np.float32),
        rng.integers(0, 300, n),
        np.zeros(n, np.int64),
        np.ones(n, bool),
        np.zeros(n, np.int64),
    )
    queries = rng.normal(size=(50, DIM)).astype(np.float32)
    request = JoinRequest(Metric.COSINE, k, constraints=shop.constraints(frozenset({"cap"}), 50))
    shape = plan_reserve(k, request.constraints.max_per_group)
    reserve = make_reserve(join(shop, queries, relax(request, shape)), shape, request.constraints.find_groups)
    new = change(shop, rng, 0.01)
    request = replace(request, constraints=new.constraints(frozenset({"cap"}), 50))
    assert update(reserve, shop, new, queries, request, shape)[1].mean() > 0.9


@pytest.mark.parametrize("limits", [(), (1,), (3,), (2, 5)])
def test_a_reserve_is_wide_enough_for_its_list(limits):
    shape = plan_reserve(50, limits)
    assert shape.width >= 75
    assert not limits or shape.width * limits[0] >= 75 * shape.relaxed[0]
