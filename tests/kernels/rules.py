"""Random compiled rules, caps and least scores, and the join that sorts everything."""

import numpy as np
from hypothesis import strategies as st
from tests.kernels.vectors import draw_vectors

from nearcast.knn.constraints import Cap, Constraints
from nearcast.knn.eligible import AllOf, AnyOf, BitsetOverlap, Eligibility, Interval, ListOverlap, eligible_pairs
from nearcast.knn.scores import pair_scores
from nearcast.types import Metric


def interval(rng, n, m, n_codes=12):
    codes = rng.integers(-1, n_codes, size=m).astype(np.int32)
    low, high = (rng.integers(0, n_codes, size=n).astype(np.int32) for _ in range(2))
    return Interval(codes, low, high)


def overlap(rng, n, m, words=1, share=0.04, negated=False):
    def bits(rows):
        flags = rng.random((rows, words * 64)) < share
        return np.packbits(flags, axis=1, bitorder="little").view(np.uint64)

    return BitsetOverlap(bits(m), bits(n), negated)


def shared(rng, n, m, negated=False):
    def lists(rows):
        lengths = rng.integers(0, 5, size=rows)
        values = [np.sort(rng.choice(30, size=length, replace=False)) for length in lengths]
        flat = np.concatenate([*values, np.empty(0)]).astype(np.int32)
        return np.append(0, np.cumsum(lengths)), flat

    return ListOverlap(*lists(m), *lists(n), negated)


def rule(rng, n, m):
    makers = [interval, overlap, shared, lambda *a: overlap(*a, words=2, negated=True)]
    makers += [lambda *a: shared(*a, negated=True)]
    leaves = tuple(makers[rng.integers(len(makers))](rng, n, m) for _ in range(rng.integers(0, 5)))

    def tree(depth):
        if leaves and (depth == 0 or rng.random() < 0.4):
            return int(rng.integers(len(leaves)))
        kind = AllOf if rng.random() < 0.5 else AnyOf
        return kind(tuple(tree(depth - 1) for _ in range(rng.integers(0, 4) if depth > 0 else 0)))

    return Eligibility(n, m, leaves, tree(3))


def caps(rng, m):
    inner = rng.integers(-1, 20, size=m).astype(np.int32)
    outer = np.where(inner >= 0, inner // 4, -1).astype(np.int32)
    every = (Cap(inner, int(rng.integers(1, 4))), Cap(outer, int(rng.integers(1, 7))))
    return every[: rng.integers(0, 3)]


@st.composite
def constrained_joins(draw, most_items=900):
    """(queries, items, k, metric, exclude, constraints, threads)"""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d = draw(st.sampled_from([1, 5, 16, 33, 64]))
    n, m = draw(st.integers(0, 40)), draw(st.integers(1, most_items))
    queries, items = (draw_vectors(rng, rows, d, np.float32, "plain") for rows in (n, m))
    metric = draw(st.sampled_from(["inner_product", "cosine", "l2"]))
    least = None if draw(st.booleans()) else float(rng.normal()) * (1 if metric != "l2" else d)
    chosen = Constraints(rule(rng, n, m) if draw(st.booleans()) else None, caps(rng, m), least)
    exclude = rng.integers(-1, m, size=n) if draw(st.booleans()) else None
    return queries, items, draw(st.sampled_from([1, 3, 10, 50])), metric, exclude, chosen, draw(st.integers(1, 3))


def sorted_join(queries, items, k, metric, exclude, constraints, thresholds=None):
    """Score every pair, sort, and take what may be taken, one by one."""
    n, m = len(queries), len(items)
    positions, scores = np.full((n, k), -1, np.int64), np.full((n, k), -np.inf, np.float32)
    legal = np.ones((n, m), bool) if constraints.eligibility is None else eligible_pairs(constraints.eligibility)
    for row in range(n):
        own = pair_scores(np.repeat(queries[row : row + 1], m, axis=0), items, Metric(metric))
        taken: list[int] = []
        counts: list[dict[int, int]] = [{} for _ in constraints.caps]
        for item in np.lexsort((np.arange(m), -own)):
            if not legal[row, item] or (exclude is not None and exclude[row] == item):
                continue
            if constraints.min_score is not None and own[item] < np.float32(constraints.min_score):
                continue
            if thresholds is not None and own[item] < thresholds[row]:
                continue
            groups = [int(cap.groups[item]) for cap in constraints.caps]
            room = all(
                group < 0 or held.get(group, 0) < cap.most
                for cap, held, group in zip(constraints.caps, counts, groups, strict=True)
            )
            if room and len(taken) < k:
                taken.append(int(item))
                for held, group in zip(counts, groups, strict=True):
                    held[group] = held.get(group, 0) + 1
        positions[row, : len(taken)], scores[row, : len(taken)] = taken, own[taken]
    return positions, scores
