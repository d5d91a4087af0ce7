"""The contract of an engine, one suite for all of them. A new engine is a row in ENGINES and passes this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import reference
from builders import METRICS, JoinCase, clustered, generator, join_cases, write_parquet
from nearcast import knn_join
from nearcast.engines import ENGINES, choose_engine
from nearcast.engines.base import IndexSpec, JoinRequest, JoinShape, Resources
from nearcast.errors import DamagedError, SpecError, TargetError
from nearcast.join.run import run_generator
from nearcast.spec import parse_model
from nearcast.types import ArrayVectors, FileVectors, Metric, no_progress
from needs import require_module

require_module("faiss", allow_module_level=True)

every_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
every_metric = pytest.mark.parametrize("metric", METRICS)
ONE, TWO = Resources(threads=1, memory_bytes=64 << 20), Resources(threads=2, memory_bytes=64 << 20)


@dataclass
class Built:
    """An open index, and the metric of its joins."""

    index: Any
    metric: Metric

    def operating_points(self, k):
        return self.index.operating_points(k)


def build(engine, items, metric, *, seed=0, resources=TWO, **engine_settings):
    items = items if hasattr(items, "read") else ArrayVectors(items)
    spec = IndexSpec(Metric(metric), engine.settings(**engine_settings), seed)
    return Built(engine.build(items, spec, resources), spec.metric)


def join(built, queries, k, *, params=None, exclude=None, resources=TWO, progress=no_progress):
    params = built.operating_points(k)[-1] if params is None else params
    return built.index.join(queries, JoinRequest(built.metric, k, exclude=exclude), params, resources, progress)


def same(left, right):
    return (
        left.positions.tolist() == right.positions.tolist()
        and left.scores.view(np.int32).tolist() == right.scores.view(np.int32).tolist()
    )


def assert_agrees_up_to_ties(found, case):
    """As good as the truth at every rank, scored by the definition, in order, each item once, none excluded."""
    every = reference.all_scores(case.queries, case.items, case.metric)
    positions, scores = reference.join(case.queries, case.items, case.k, case.metric, case.exclude)
    filled = found.positions >= 0
    assert found.positions.dtype == np.int64
    assert found.scores.dtype == np.float32
    assert filled.tolist() == (positions >= 0).tolist()
    assert (found.scores[~filled] == -np.inf).all()
    for row in range(case.n):
        listed = found.positions[row, filled[row]]
        own = found.scores[row, filled[row]]
        assert len(set(listed.tolist())) == len(listed)
        assert own.view(np.int32).tolist() == every[row, listed].view(np.int32).tolist()
        assert np.lexsort((listed, -own)).tolist() == list(range(len(listed)))
        if case.exclude is not None:
            assert case.exclude[row] not in listed
        assert own == pytest.approx(scores[row, filled[row]], rel=0, abs=tolerance(case, row))


def tolerance(case, row):
    """What float32 sums in any order can be off by: engines may prefer the wrong one of two so near to each other."""
    if case.metric == "cosine":
        return 1e-5
    q = np.linalg.norm(case.queries[row].astype(np.float64))
    x = np.linalg.norm(case.items.astype(np.float64), axis=1).max()
    return 1e-5 * ((q + x) ** 2 if case.metric == "l2" else q * x) + 1e-30


@every_engine
@settings(max_examples=60)
@given(case=join_cases(most_items=600, most_work=400_000))
def test_at_full_effort_an_engine_agrees_with_the_reference_up_to_ties(engine, case: JoinCase):
    index = build(engine, case.items, case.metric)
    assert_agrees_up_to_ties(join(index, case.queries, case.k, exclude=case.exclude), case)


@every_engine
@every_metric
def test_hundreds_of_copies_of_an_item_do_not_hide_the_others(engine, metric):
    case = JoinCase(3, 20, 1200, 12, 40, metric, "float32", "float32", "copies", excludes=True)
    assert_agrees_up_to_ties(join(build(engine, case.items, metric), case.queries, 40, exclude=case.exclude), case)


@every_engine
@every_metric
def test_copies_do_not_cut_the_other_items_off_from_a_search_of_some_effort(engine, metric):
    items, queries = clustered(1500, 16, seed=1), clustered(100, 16, seed=2)
    items[np.random.default_rng(3).permutation(1500)[:700]] = items[0]
    index = build(engine, items, metric)
    points = index.operating_points(10)
    found = join(index, queries, 10, params=points[max(0, len(points) - 2)])
    true = reference.join(queries, items, 10, metric)[1]
    assert np.mean(found.scores >= true[:, -1:] - 1e-4 * np.abs(true[:, -1:])) > 0.97


@every_engine
@every_metric
@pytest.mark.parametrize("effort", [0, -1], ids=["least effort", "full effort"])
def test_whatever_the_effort_scores_are_true_and_lists_are_in_order(engine, metric, effort):
    items, queries = clustered(1500, 16, seed=1), clustered(60, 16, seed=2)
    index = build(engine, items, metric)
    exclude = np.arange(60)
    found = join(index, queries, 10, params=index.operating_points(10)[effort], exclude=exclude)
    every = reference.all_scores(queries, items, metric)
    for row in range(60):
        listed = found.positions[row][found.positions[row] >= 0]
        own = found.scores[row, : len(listed)]
        assert own.tolist() == every[row, listed].tolist()
        assert np.lexsort((listed, -own)).tolist() == list(range(len(listed)))
        assert row not in listed
        assert len(set(listed.tolist())) == len(listed)


@every_engine
@every_metric
def test_an_index_that_was_saved_and_opened_gives_the_same_answers(engine, metric, tmp_path):
    items, queries = clustered(1500, 16, seed=1), clustered(80, 16, seed=2)
    items[700:800] = items[5]
    np.save(tmp_path / "items.npy", items)
    stored = FileVectors.open(tmp_path / "items.npy")
    built = build(engine, stored, metric)
    folder = tmp_path / "index"
    folder.mkdir()
    built.index.save(folder, TWO)
    spec = IndexSpec(Metric(metric), engine.settings())
    opened = Built(engine.open(folder, stored, spec), spec.metric)
    assert list(opened.operating_points(10)) == list(built.operating_points(10))
    for params in (built.operating_points(10)[0], built.operating_points(10)[-1]):
        assert same(join(built, queries, 10, params=params), join(opened, queries, 10, params=params))


@every_engine
def test_a_damaged_index_is_told_as_damage_with_the_way_out(engine, tmp_path):
    items = ArrayVectors(clustered(300, 8, seed=1))
    build(engine, items, "l2").index.save(tmp_path, TWO)
    saved = [path for path in tmp_path.iterdir() if path.is_file()]
    assert bool(saved) == engine.persists_index
    for path in saved:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DamagedError, match="run again"):
            engine.open(tmp_path, items, IndexSpec(Metric.L2, engine.settings()))
        path.write_bytes(whole)


@every_engine
@every_metric
def test_two_builds_give_the_same_answers(engine, metric):
    items, queries = clustered(2500, 16, seed=1), clustered(80, 16, seed=2)
    first, second = build(engine, items, metric, resources=ONE), build(engine, items, metric, resources=TWO)
    points = first.operating_points(10)
    assert list(second.operating_points(10)) == list(points)
    for params in (points[0], points[len(points) // 2], points[-1]):
        assert same(join(first, queries, 10, params=params), join(second, queries, 10, params=params))


@every_engine
@every_metric
def test_a_join_depends_neither_on_threads_nor_on_memory(engine, metric):
    items, queries = clustered(1500, 16, seed=1), clustered(300, 16, seed=2)
    index = build(engine, items, metric)
    for params in (index.operating_points(10)[0], index.operating_points(10)[-1]):
        whole = join(index, queries, 10, params=params, resources=TWO)
        assert same(whole, join(index, queries, 10, params=params, resources=ONE))
        assert same(whole, join(index, queries, 10, params=params, resources=Resources(2, 1 << 20)))


@every_engine
@pytest.mark.parametrize("k", [1, 10, 100, 5000])
def test_efforts_grow_and_the_last_is_full(engine, k):
    items = clustered(1500, 8, seed=1)
    index = build(engine, items, "l2")
    points = list(index.operating_points(k))
    assert len(points) >= 1
    assert len({tuple(sorted(e)) for e in points}) == 1  # one engine, one way to say it
    for name in points[0]:
        values = [params[name] for params in points]
        assert values == sorted(set(values))
        assert all(type(value) is int for value in values)
    case = JoinCase(1, 20, 1500, 8, min(k, 50), "l2", "float32", "float32", "gaussian", excludes=False)
    object.__setattr__(case, "items", items)
    assert_agrees_up_to_ties(join(index, case.queries, case.k, params=points[-1]), case)


@every_engine
@every_metric
def test_at_full_effort_equal_items_at_the_end_of_a_list_go_to_the_smaller_position(engine, metric):
    rng = np.random.default_rng(5)
    items = rng.integers(-1, 2, size=(600, 3)).astype(np.float32)  # few distinct vectors: many ties
    items[(items == 0).all(axis=1)] = 1
    queries = rng.integers(-2, 3, size=(40, 3)).astype(np.float32) + 0.5
    index = build(engine, items, metric)
    for k in (1, 3, 10, 599):
        found = join(index, queries, k, params=index.operating_points(k)[-1])
        positions, scores = reference.join(queries, items, k, metric)
        assert (found.scores == scores).all()
        assert (found.positions == positions).all()


@every_engine
@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("seed", range(3))
def test_at_full_effort_no_digits_are_lost_where_large_numbers_cancel(engine, metric, seed):
    rng = np.random.default_rng(seed)
    far = 3000 * rng.normal(size=16)
    items = (far + rng.normal(size=(500, 16))).astype(np.float32)
    queries = (far + rng.normal(size=(20, 16))).astype(np.float32)
    if metric == "inner_product":
        queries[:, ::2] *= -1
    index = build(engine, items, metric)
    found = join(index, queries, 5, params=index.operating_points(5)[-1])
    positions, scores = reference.join(queries, items, 5, metric)
    assert (found.scores == scores).all()
    assert (found.positions == positions).all()


@every_engine
def test_more_effort_finds_more(engine):
    items, queries = clustered(4000, 24, seed=1, clusters=400), clustered(200, 24, seed=2, clusters=400)
    index = build(engine, items, "l2")
    true = reference.join(queries, items, 10, "l2")[1]
    points = index.operating_points(10)
    reached = [
        np.mean(join(index, queries, 10, params=params).scores >= true[:, -1:] - 1e-4)
        for params in (points[0], points[len(points) // 2], points[-1])
    ]
    assert reached == sorted(reached)
    assert reached[-1] == 1.0
    if not engine.exact:
        assert reached[0] < 1.0


@every_engine
@pytest.mark.parametrize("m", [1, 2, 3])
@every_metric
def test_a_handful_of_items_is_enough(engine, m, metric):
    items = np.arange(1, 2 * m + 1, dtype=np.float32).reshape(m, 2)
    found = join(build(engine, items, metric), items, 5, exclude=np.full(m, 0))
    assert found.lengths.tolist() == [m - 1] * m
    assert 0 not in found.positions
    assert (found.scores[:, m - 1 :] == -np.inf).all()


@every_engine
def test_no_queries_give_no_lists(engine):
    index = build(engine, np.ones((5, 3), np.float32), "l2")
    found = join(index, np.empty((0, 3), np.float32), 4)
    assert found.positions.shape == found.scores.shape == (0, 4)


@every_engine
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "uint8"])
def test_zero_vectors_are_items_and_queries_like_any_other(engine, dtype):
    items = np.array([[0, 0], [1, 0], [0, 0], [2, 0]], dtype)
    index = build(engine, items, "cosine")
    found = join(index, items[:2], 4)
    assert found.positions.tolist() == [[0, 1, 2, 3], [1, 3, 0, 2]]
    assert found.scores.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]


@every_engine
def test_progress_is_told_for_the_join_up_to_the_last_query(engine):
    told = []
    index = build(engine, clustered(300, 8, seed=1), "l2")
    join(index, clustered(100, 8, seed=2), 3, progress=lambda *step: told.append(step))
    assert told[-1] == ("join", 100, 100)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@every_engine
@every_metric
@pytest.mark.parametrize(("m", "queries"), [(1, 1), (50, 10), (3000, 100_000)])
def test_an_estimate_names_its_stages_and_is_never_negative(engine, metric, m, queries):
    items = ArrayVectors(clustered(m, 16, seed=1))
    shape = JoinShape(JoinRequest(Metric(metric), 10), n_items=m, n_queries=queries, dim=16, item_bytes=4)
    found = engine.estimate(shape, items, engine.settings(), TWO)
    assert "join" in found.seconds
    assert set(found.seconds) <= {"build", "join"}
    assert all(seconds >= 0 for seconds in found.seconds.values())
    assert found.memory_bytes >= 0
    assert found.disk_bytes >= 0


@every_engine
def test_an_unknown_setting_is_refused_with_the_known_ones(engine):
    with pytest.raises(SpecError, match=f"engine_settings of {engine.name}: unknown key 'nonsense'"):
        parse_model(engine.settings, {"nonsense": 1}, f"engine_settings of {engine.name}")


@every_engine
def test_settings_have_defaults_and_are_described(engine):
    assert engine.settings() == engine.settings()
    for name, field in engine.settings.model_fields.items():
        assert field.description, name


FORCED = [
    ("faiss-ivf", {"nprobe": 3}, {"nprobe": 3}),
    ("faiss-ivf", {"nlist": 5, "nprobe": 99}, {"nprobe": 5}),
    ("faiss-hnsw", {"ef_search": 17}, {"ef_search": 17}),
    ("faiss-hnsw", {"ef_search": 10_000}, {"ef_search": 500}),
]


@pytest.mark.parametrize(("name", "engine_settings", "params"), FORCED)
def test_a_forced_effort_is_the_only_one(name, engine_settings, params):
    index = build(ENGINES[name], clustered(500, 8, seed=1), "l2", **engine_settings)
    assert [dict(e) for e in index.operating_points(10)] == [params]


@pytest.mark.parametrize(("name", "engine_settings", "params"), FORCED)
def test_recall_1_is_refused_where_the_forced_effort_leaves_items_out(name, engine_settings, params):
    items, queries = clustered(500, 8, seed=1), clustered(300, 8, seed=2)
    given = {"k": 10, "metric": "l2", "engine": name, "engine_settings": engine_settings}
    if params in ({"nprobe": 5}, {"ef_search": 500}):  # all there is
        exact = knn_join(queries, items, k=10, metric="l2", engine="exact")
        assert knn_join(queries, items, **given).positions.tolist() == exact.positions.tolist()
        return
    with pytest.raises(SpecError, match=rf"recall is 1, and .* force {next(iter(params))} = .* leave that out"):
        knn_join(queries, items, **given)


@pytest.mark.parametrize("n", [1, 30, 300])
def test_a_forced_effort_is_measured_and_a_broken_promise_is_told(n):
    items, queries = clustered(2000, 8, seed=1, clusters=300), clustered(n, 8, seed=2, clusters=300)
    forced = {"engine": "faiss-ivf", "engine_settings": {"nlist": 400, "nprobe": 1}}
    hasty = knn_join(queries, items, k=50, recall=0.99, **forced).report
    assert hasty.reached < 0.9
    assert any("nprobe = 1 reaches recall" in warning for warning in hasty.warnings)
    assert knn_join(queries, items, k=50, recall=0.01, **forced).report.warnings == ()


def test_no_sample_proves_recall_1_of_an_effort_that_leaves_items_out(tmp_path):
    """A run whose sampled queries show no miss, and with all of them the same run, which is proof."""
    write_parquet(tmp_path / "items.parquet", range(400), clustered(400, 8, seed=1).tolist())
    told = {}
    for sample in (20, 400):
        forced = {"engine": "faiss-ivf", "engine_settings": {"nlist": 8, "nprobe": 7}, "recall": 1.0}
        spec = generator(name=f"s{sample}", **forced, measure={"sample": sample}, out=str(tmp_path / "out"))
        try:
            snapshot = run_generator(spec, tmp_path).snapshot
        except TargetError as error:
            snapshot = error.snapshot
        told[sample] = (snapshot.manifest.measures["recall"], snapshot.manifest.target.met)
    assert told == {20: (1.0, False), 400: (1.0, True)}


CHANGING = [
    ("faiss-ivf", {"nlist": 7}),
    ("faiss-ivf", {"train_rows_per_cell": 2}),
    ("faiss-hnsw", {"m": 4}),
    ("faiss-hnsw", {"ef_construction": 5}),
]


@pytest.mark.parametrize(("name", "engine_settings"), CHANGING)
def test_every_setting_of_an_index_changes_what_little_effort_finds(name, engine_settings):
    items, queries = clustered(2000, 24, seed=1, clusters=300), clustered(200, 24, seed=2, clusters=300)
    usual, changed = (build(ENGINES[name], items, "l2", **given) for given in ({}, engine_settings))
    assert not same(*(join(index, queries, 10, params=index.operating_points(10)[0]) for index in (usual, changed)))


def test_the_seed_changes_the_cells_of_ivf():
    items, queries = clustered(2000, 24, seed=1, clusters=300), clustered(200, 24, seed=2, clusters=300)
    one, other = (build(ENGINES["faiss-ivf"], items, "l2", seed=seed) for seed in (0, 1))
    assert not same(*(join(index, queries, 10, params={"nprobe": 1}) for index in (one, other)))


@every_engine
def test_an_engine_is_found_by_its_name(engine):
    assert choose_engine(engine.name) is ENGINES[engine.name] is engine
    assert engine.metrics <= frozenset(Metric)


def test_auto_is_one_of_the_engines():
    assert choose_engine("auto") in ENGINES.values()


def test_an_unknown_engine_is_refused_with_a_suggestion_or_with_all_of_them():
    with pytest.raises(SpecError, match=r"engine is 'faiss_ivf': .*did you mean 'faiss-ivf'\?"):
        choose_engine("faiss_ivf")
    with pytest.raises(SpecError, match="engines are auto, dense, exact, faiss-hnsw, faiss-ivf"):
        choose_engine("zzz")
