"""Shards of the items answer as one index: every engine, against the reference join of all items."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.rules import constrained_joins

from builders import METRICS, JoinCase, clustered, exact_join, join_cases
from nearcast.engines import ENGINES
from nearcast.engines.base import IndexSpec, JoinRequest, Resources, Workload
from nearcast.engines.sharded_index import SHARD_K, IndexShard, ShardedIndex
from nearcast.join.calibrate import QuerySample, calibrate
from nearcast.knn import item_shards
from nearcast.knn.constraints import FREE, Constraints
from nearcast.knn.item_shards import ShardLists, cut_items, merge_lists
from nearcast.types import ArrayVectors, FileVectors, Metric, Neighbors, RangeOfVectors
from needs import require_module

require_module("faiss", allow_module_level=True)

TWO = Resources(threads=2, memory_bytes=64 << 20)
every_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
every_metric = pytest.mark.parametrize("metric", METRICS)


def sharded(engine, items, metric, count, *, workload=None, log=None, **engine_settings):
    """Build an index per shard, and open them as one. log: notes each opening."""
    spec = IndexSpec(Metric(metric), engine.settings(**engine_settings))
    vectors = ArrayVectors(items)

    def opener(start, stop):
        index = engine.build(RangeOfVectors(vectors, start, stop), spec, TWO, workload=workload)

        def open_shard():
            if log is not None:
                log.append(start)
            return index

        return open_shard

    shards = [
        IndexShard(start, stop, opener(start, stop)) for start, stop in cut_items(len(items), count) if stop > start
    ]
    return ShardedIndex(shards, max_scan_share=engine.max_scan_share)


def join_exactly(index, queries, metric, k, exclude=None, constraints=FREE):
    request = JoinRequest(Metric(metric), k, exclude=exclude, constraints=constraints)
    return index.join(queries, request, index.operating_points(k)[-1], TWO)


def assert_same(found, true):
    assert found.positions.tolist() == true.positions.tolist()
    assert found.scores.view(np.int32).tolist() == true.scores.view(np.int32).tolist()


@pytest.mark.parametrize("engine", [ENGINES["dense"], ENGINES["exact"]], ids=["dense", "exact"])
@settings(max_examples=120)
@given(case=constrained_joins(most_items=300), count=st.integers(1, 9))
def test_at_recall_1_shards_give_the_lists_of_all_items_under_any_constraints(engine, case, count):
    queries, items, k, metric, exclude, constraints, _ = case
    found = join_exactly(sharded(engine, items, metric, count), queries, metric, k, exclude, constraints)
    true = exact_join(queries, ArrayVectors(items), k, Metric(metric), exclude=exclude, constraints=constraints)
    assert_same(found, true)


@every_engine
@settings(max_examples=40)
@given(case=join_cases(most_items=200, most_work=200_000), count=st.integers(1, 9))
def test_at_recall_1_every_engine_gives_the_lists_of_all_items_ties_and_long_lists_included(
    engine, case: JoinCase, count
):
    found = join_exactly(
        sharded(engine, case.items, case.metric, count), case.queries, case.metric, case.k, case.exclude
    )
    true = exact_join(case.queries, ArrayVectors(case.items), case.k, Metric(case.metric), exclude=case.exclude)
    if engine.exact:
        assert_same(found, true)
    else:  # faiss may miss near-ties
        assert (found.positions >= 0).tolist() == (true.positions >= 0).tolist()
        np.testing.assert_allclose(found.scores, true.scores, rtol=1e-4, atol=1e-2)


@every_engine
@every_metric
@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_minimum_score_holds_in_every_shard(engine, metric, count):
    items, queries = clustered(700, 8, seed=1), clustered(50, 8, seed=2)
    true = exact_join(queries, ArrayVectors(items), 30, Metric(metric))
    constraints = Constraints(min_score=float(np.median(true.scores[:, 10])))
    found = join_exactly(sharded(engine, items, metric, count), queries, metric, 30, constraints=constraints)
    wanted = exact_join(queries, ArrayVectors(items), 30, Metric(metric), constraints=constraints)
    assert found.scores.tolist() == wanted.scores.tolist()


def test_more_shards_than_items_leave_the_empty_ones_out():
    items = clustered(3, 4, seed=1)
    assert [stop - start for start, stop in cut_items(3, 9)] == [0, 0, 1, 0, 0, 1, 0, 0, 1]
    index = sharded(ENGINES["dense"], items, "l2", 9)
    assert len(index.shards) == 3
    assert_same(join_exactly(index, items, "l2", 5), exact_join(items, ArrayVectors(items), 5, Metric.L2))


@pytest.mark.parametrize(("n", "count"), [(0, 3), (1, 1), (10, 3), (8, 8), (1_000_003, 7)])
def test_shards_hold_every_item_once_and_differ_by_one_item_at_most(n, count):
    shards = cut_items(n, count)
    assert [start for start, _ in shards] == [0, *(stop for _, stop in shards[:-1])]
    assert shards[-1][1] == n
    assert max(stop - start for start, stop in shards) - min(stop - start for start, stop in shards) <= 1


def test_one_shard_is_open_at_a_time_and_the_open_one_is_used_again():
    items, queries = clustered(900, 8, seed=1), clustered(20, 8, seed=2)
    opened: list[int] = []
    index = sharded(ENGINES["dense"], items, "l2", 3, log=opened)
    points = index.operating_points(5)
    index.join(queries, JoinRequest(Metric.L2, 5), points[-1], TWO)
    assert opened == [0, 300, 600, 0, 300]
    assert index._opened[0] == 1


def test_progress_of_the_shards_is_that_of_one_join():
    items, queries = clustered(900, 8, seed=1), clustered(100, 8, seed=2)
    index, told = sharded(ENGINES["exact"], items, "l2", 3), []
    index.join(queries, JoinRequest(Metric.L2, 5), {}, TWO, lambda *step: told.append(step))
    assert told[-1] == ("join", 100, 100)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_merging_lists_under_caps_counts_a_group_of_two_shards_as_one():
    def lists(positions, scores, groups):
        return ShardLists(Neighbors(np.array([positions]), np.array([scores], np.float32)), (np.array([groups]),))

    parts = [lists([0, 1], [0.9, 0.1], [4, -1]), lists([5, 6], [0.8, 0.7], [4, 7])]
    merged = merge_lists(parts, 3, [1])
    assert merged.positions.tolist() == [[0, 6, 1]]


def build_calibrated(items, queries, count, recall, k):
    engine, request = ENGINES["dense"], JoinRequest(Metric.INNER_PRODUCT, k, recall)
    workload = Workload(request, 400_000, queries[:300])
    index = sharded(engine, items, "inner_product", count, workload=workload, cells=40)

    sample = QuerySample(
        queries[:600], request, exact_join(queries[:600], ArrayVectors(items), k, Metric.INNER_PRODUCT)
    )
    points = index.operating_points(k)
    calibration = calibrate(index, points, sample, TWO, n_choosing=300, n_queries=len(queries), n_report=300)
    return index, request, sample, calibration


@pytest.mark.parametrize("count", [1, 3, 8])
def test_below_recall_1_the_merged_lists_are_calibrated_and_reach_the_target_on_all_queries(count):
    items, queries = clustered(6000, 16, seed=1), clustered(1500, 16, seed=2)
    index, request, _, calibration = build_calibrated(items, queries, count, 0.9, 10)
    assert "reach" in calibration.params
    assert not index.is_exact(calibration.params)
    found = index.join(queries, request, calibration.params, TWO)
    true = exact_join(queries, ArrayVectors(items), 10, Metric.INNER_PRODUCT)
    assert np.mean(found.scores >= true.scores[:, -1:]) >= 0.9
    scanned = index.items_scanned(queries, request, calibration.params, TWO)
    assert scanned < 0.6 * len(items)
    assert index.is_cheaper(queries, request, calibration.params, TWO)


def test_shards_that_need_no_cells_answer_beside_shards_with_cells():
    items, queries = clustered(2000, 8, seed=1), clustered(60, 8, seed=2)
    engine, vectors = ENGINES["dense"], ArrayVectors(items)
    specs = [IndexSpec(Metric.L2, engine.settings(cells=cells)) for cells in (1, 12)]
    shards = [
        IndexShard(start, stop, lambda s=s, a=start, o=stop: engine.build(RangeOfVectors(vectors, a, o), s, TWO))
        for s, (start, stop) in zip(specs, cut_items(2000, 2), strict=True)
    ]
    index = ShardedIndex(shards, max_scan_share=engine.max_scan_share)
    points = index.operating_points(7)
    assert {"reach", "exact"} == {name for params in points for name in params}
    assert [index.is_exact(params) for params in (points[0], points[-1])] == [False, True]
    request = JoinRequest(Metric.L2, 7)
    near = index.join(queries, request, points[0], TWO)
    true = exact_join(queries, vectors, 7, Metric.L2)
    assert (near.positions[:, 0] >= 0).all()
    assert_same(index.join(queries, request, points[-1], TWO), true)
    assert index.items_scanned(queries, request, points[-1], TWO) >= 2000


def test_a_shorter_list_per_shard_is_a_search_parameter_and_not_exact():
    items, queries = clustered(2000, 8, seed=1), clustered(60, 8, seed=2)
    index = sharded(ENGINES["dense"], items, "l2", 4)
    last = index.operating_points(12)[-1]
    few = index.join(queries, JoinRequest(Metric.L2, 12), {**last, SHARD_K: 6}, TWO)
    true = exact_join(queries, ArrayVectors(items), 12, Metric.L2)
    assert not index.is_exact({**last, SHARD_K: 6})
    assert (few.positions >= 0).all()
    shares = np.mean([len(set(a) & set(b)) / 12 for a, b in zip(few.positions, true.positions, strict=True)])
    assert 0.8 < shares <= 1


@every_engine
def test_a_saved_index_has_a_folder_per_shard(engine, tmp_path):
    index = sharded(engine, clustered(400, 8, seed=1), "l2", 3)
    index.save(tmp_path, TWO)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000", "00001", "00002"]


def test_a_range_of_a_file_is_a_contiguous_view_of_its_map(tmp_path):
    items = clustered(50, 4, seed=1)
    np.save(tmp_path / "items.npy", items)
    part = RangeOfVectors(FileVectors.open(tmp_path / "items.npy"), 10, 30)
    assert (part.n, part.dim, part.dtype) == (20, 4, np.float32)
    assert part.whole().flags.c_contiguous
    assert not part.whole().flags.owndata
    assert not part.whole().flags.writeable
    assert part.whole().tolist() == items[10:30].tolist()
    assert part.read(5, 99).tolist() == items[15:30].tolist()
    assert part.take(np.array([19, 0])).tolist() == items[[29, 10]].tolist()


@pytest.mark.parametrize("limits", [(), (1,), (1, 2)])
def test_lists_are_merged_some_queries_at_a_time(limits, monkeypatch):
    rng = np.random.default_rng(5)
    parts = []
    for shard in range(3):
        lists = exact_join(clustered(7, 4, seed=1), ArrayVectors(clustered(9, 4, seed=shard)), 9, Metric.L2)
        positions = np.where(rng.random((7, 9)) < 0.2, -1, lists.positions + 9 * shard)
        positions = np.take_along_axis(positions, np.argsort(positions < 0, axis=1, kind="stable"), 1)
        scores = np.where(positions < 0, np.float32(-np.inf), -np.sort(-lists.scores, axis=1))
        groups = tuple(np.where(positions < 0, -1, positions % number) for number in (6, 3)[: len(limits)])
        parts.append(ShardLists(Neighbors(positions, scores), groups))
    found = []
    for slots in (1 << 20, 10, 1):
        monkeypatch.setattr(item_shards, "MERGED_SLOTS", slots)
        found.append(merge_lists(parts, 5, limits))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])
