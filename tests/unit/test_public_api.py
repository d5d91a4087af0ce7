from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

import nearcast
import reference
from builders import METRICS, JoinCase, clustered, join_cases
from nearcast import errors
from nearcast.engines import ENGINES
from nearcast.errors import InputError, NearcastError, SpecError
from nearcast.join import knn_join
from nearcast.knn.constraints import Cap, Constraints


def test_all_lists_what_there_is():
    assert sorted(nearcast.__all__) == nearcast.__all__ == dir(nearcast)
    for name in nearcast.__all__:
        assert getattr(nearcast, name) is not None
    assert nearcast.__version__.count(".") == 2


def documented_names():
    """Every dotted name of the package that a page or a module mentions, and where."""
    root = Path(__file__).resolve().parents[2]
    others = ("renamed_modules.py", "tracing.py")  # old names only; attributes of spans
    sources = [path for path in (root / "src").rglob("*.py") if path.name not in others]
    pages = [*root.glob("*.md"), *(root / "docs").glob("*.md"), *(root / "examples").rglob("*.md")]
    found = {}
    for path in [*pages, *sources, *(root / "examples").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w/.-])nearcast((?:\.[A-Za-z_]\w*)+)", text):
            found.setdefault(name[1:], path.name)
        for names in re.findall(r"from nearcast import (.+)", text):
            found |= {name.strip(): path.name for name in re.sub(r" as \w+|#.*|[()]", "", names).split(",")}
    return found


@pytest.mark.filterwarnings("ignore:nearcast:DeprecationWarning")  # a warning mentions the earlier name
def test_every_name_that_the_documentation_mentions_is_there():
    names = documented_names()
    assert {"NearcastError", "open", "knn_join", "errors"} <= set(names)
    for dotted, page in names.items():
        there, module = nearcast, "nearcast"
        for name in dotted.split("."):
            module = f"{module}.{name}"
            if not hasattr(there, name):
                assert inspect.ismodule(there), f"{page} mentions nearcast.{dotted}"
                assert importlib.util.find_spec(module), f"{page} mentions nearcast.{dotted}"
                there = importlib.import_module(module)
            else:
                there = getattr(there, name)


def test_every_error_class_can_be_caught_by_its_name_in_the_package():
    for name in errors.__all__:
        assert getattr(nearcast, name) is getattr(errors, name)
        assert name in nearcast.__all__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'nearcast' has no attribute 'knn_jion'"):
        nearcast.knn_jion  # noqa: B018


def test_what_is_public_has_a_docstring():
    for name in nearcast.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(nearcast, name)), name


def test_after_the_first_arguments_all_are_named():
    kinds = inspect.signature(nearcast.knn_join).parameters.values()
    assert [p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD] == ["queries", "items"]


ITEMS = np.array([[1, 0], [0, 1], [3, 3]], np.float32)


def test_a_join_gives_positions_scores_lengths_and_a_report():
    found = nearcast.knn_join(ITEMS[:2], ITEMS, k=2)
    assert found.positions.tolist() == [[2, 0], [2, 1]]
    assert found.scores.tolist() == [[3, 1], [3, 1]]
    assert found.lengths.tolist() == [2, 2]
    assert (found.positions.dtype, found.scores.dtype, found.lengths.dtype) == (np.int64, np.float32, np.int64)
    assert found.report.engine in ENGINES
    assert found.report.recall == 1.0
    assert found.report.reached is None
    assert set(found.report.seconds) == {"build", "calibrate", "join"}


def test_a_result_is_frozen():
    with pytest.raises(AttributeError):
        nearcast.knn_join(ITEMS, ITEMS, k=1).positions = None


@settings(max_examples=60)
@given(join_cases(most_items=200, most_work=100_000))
def test_the_default_join_is_bitwise_that_of_the_reference(case: JoinCase):
    found = nearcast.knn_join(case.queries, case.items, k=case.k, metric=case.metric)
    positions, scores = reference.join(case.queries, case.items, case.k, case.metric)
    assert found.positions.tolist() == positions.tolist()
    assert found.scores.view(np.int32).tolist() == scores.view(np.int32).tolist()
    assert found.lengths.tolist() == (positions >= 0).sum(axis=1).tolist()


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_lists_are_short_where_k_is_above_the_items(engine):
    found = nearcast.knn_join(ITEMS, ITEMS, k=5, metric="l2", engine=engine, exclude_self=True)
    assert found.lengths.tolist() == [2, 2, 2]
    assert found.positions[:, 2:].tolist() == [[-1] * 3] * 3


def test_queries_beyond_the_items_have_no_self_to_exclude():
    queries = np.concatenate([ITEMS, ITEMS])
    found = nearcast.knn_join(queries, ITEMS, k=1, metric="l2", exclude_self=True)
    assert found.positions.ravel().tolist() == [1, 0, 0, 0, 1, 2]


def test_no_queries_give_no_lists():
    assert nearcast.knn_join(ITEMS[:0], ITEMS, k=2).positions.shape == (0, 2)


def test_lists_and_other_layouts_are_arrays_too():
    expected = nearcast.knn_join(ITEMS, ITEMS, k=2).positions.tolist()
    given = [
        ITEMS.tolist(),
        np.asfortranarray(ITEMS),
        np.repeat(ITEMS, 2, axis=0)[::2],
        ITEMS.astype(np.float64),
        ITEMS.astype(">f4"),
    ]
    for vectors in given:
        assert nearcast.knn_join(vectors, vectors, k=2).positions.tolist() == expected


def test_float64_is_rounded_to_float32():
    found = nearcast.knn_join(np.array([[0.1]]), np.array([[1.0]]), k=1)
    assert found.scores.tolist() == [[np.float32(0.1)]]


def test_the_arrays_given_are_not_changed():
    queries, items = clustered(300, 8, seed=1), clustered(500, 8, seed=2)
    before = queries.copy(), items.copy()
    for engine in ENGINES:
        nearcast.knn_join(queries, items, k=3, metric="cosine", engine=engine)
    assert (queries == before[0]).all()
    assert (items == before[1]).all()


@pytest.mark.parametrize("engine", ["faiss-ivf", "faiss-hnsw"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_promise_below_one_is_kept_with_less_than_full_effort(engine, metric):
    items, queries = clustered(5000, 16, seed=1, clusters=200), clustered(1000, 16, seed=2, clusters=200)
    true = nearcast.knn_join(queries, items, k=10, metric=metric, engine="exact")
    found = nearcast.knn_join(queries, items, k=10, metric=metric, engine=engine, recall=0.9)
    bar = true.scores[:, -1:] - 1e-5 * np.abs(true.scores[:, -1:])
    reached = np.mean(found.scores >= bar)
    assert reached >= 0.9
    assert found.report.reached == pytest.approx(reached, abs=0.02)
    assert found.report.reached_low <= found.report.reached
    assert found.report.recall == 0.9
    full = nearcast.knn_join(queries[:1], items, k=10, metric=metric, engine=engine).report.params
    (name,) = full
    assert found.report.params[name] < full[name]


@pytest.mark.parametrize("engine", ["faiss-ivf", "faiss-hnsw"])
def test_a_promise_of_one_is_full_effort(engine):
    items, queries = clustered(1000, 16, seed=1), clustered(300, 16, seed=2)
    found = nearcast.knn_join(queries, items, k=10, engine=engine, recall=1.0)
    exact = nearcast.knn_join(queries, items, k=10, engine="exact")
    assert found.report.reached is None
    assert found.scores == pytest.approx(exact.scores, rel=1e-5)


class RecordingEngine:
    """The exact engine, and what it was asked for."""

    name, metrics, exact, settings = "recording", ENGINES["exact"].metrics, True, ENGINES["exact"].settings

    def __init__(self):
        self.asked = {}

    def build(self, items, spec, resources, *, workload, progress):
        self.asked |= {"metric": spec.metric, "seed": spec.seed, "resources": resources, "progress": progress}
        return ENGINES["exact"].build(items, spec, resources, progress=progress)


@pytest.fixture
def recording(monkeypatch):
    engine = RecordingEngine()
    monkeypatch.setattr(knn_join, "choose_engine", lambda _: engine)
    return engine


def test_threads_memory_seed_and_progress_reach_the_engine(recording):
    def progress(stage, done, total):
        pass

    nearcast.knn_join(ITEMS, ITEMS, k=1, threads=3, memory="64MB", seed=5, progress=progress)
    assert recording.asked["resources"].threads == 3
    assert recording.asked["resources"].memory_bytes == 64_000_000
    assert recording.asked["seed"] == 5
    assert recording.asked["progress"] is progress
    nearcast.knn_join(ITEMS, ITEMS, k=1, memory=1 << 25)
    assert recording.asked["resources"].memory_bytes == 1 << 25
    assert recording.asked["resources"].threads >= 1


def test_every_argument_changes_something():
    items = clustered(3000, 16, seed=1, clusters=300)
    queries = items[:400]
    usual = {"k": 5, "metric": "inner_product", "engine": "faiss-ivf", "recall": 0.8}
    changes = {
        "k": 6,
        "metric": "l2",
        "engine": "faiss-hnsw",
        "recall": 0.99,
        "engine_settings": {"nlist": 9},
        "exclude_self": True,
        "constraints": Constraints(min_score=20.0),
        "seed": 9,
    }

    def outcome(**arguments):
        found = nearcast.knn_join(queries, items, **usual | arguments)
        return found.positions.tolist(), found.report.engine, dict(found.report.params), found.report.recall

    first = outcome()
    assert first == outcome()
    for name, value in changes.items():
        assert outcome(**{name: value}) != first, name
    unseen = {"queries", "items", "threads", "memory", "progress"}  # those have their own tests
    assert set(changes) | unseen == set(inspect.signature(nearcast.knn_join).parameters)


def test_constraints_are_honoured_by_a_join_of_arrays():
    items = clustered(500, 8, seed=2)
    held = Constraints(caps=(Cap(np.arange(500, dtype=np.int32) % 5, 1),), min_score=-50.0)
    found = nearcast.knn_join(items[:20], items, k=10, metric="l2", constraints=held)
    assert (found.lengths <= 5).all()
    for listed, scores in zip(found.positions, found.scores, strict=True):
        real = listed[listed >= 0]
        assert len({int(item) % 5 for item in real}) == len(real)
        assert (scores[: len(real)] >= -50).all()


def test_constraints_for_other_items_or_of_crossing_groups_are_refused():
    items = clustered(50, 8, seed=3)
    with pytest.raises(InputError, match=r"caps\[0\] has groups of shape"):
        nearcast.knn_join(items, items, k=1, constraints=Constraints(caps=(Cap(np.zeros(3, np.int32), 1),)))
    inner, outer = np.arange(50, dtype=np.int32) // 2, (np.arange(50, dtype=np.int32) + 1) // 2
    with pytest.raises(SpecError, match="must lie within each other"):
        nearcast.knn_join(items, items, k=1, constraints=Constraints(caps=(Cap(inner, 1), Cap(outer, 1))))


def test_threads_and_memory_do_not_change_the_answer():
    items, queries = clustered(3000, 16, seed=1), clustered(400, 16, seed=2)
    for engine in ENGINES:
        first, second = (
            nearcast.knn_join(queries, items, k=5, engine=engine, recall=0.9, **given)
            for given in ({"threads": 1, "memory": "2GB"}, {"threads": 2, "memory": "20MB"})
        )
        assert first.positions.tolist() == second.positions.tolist()
        assert first.report.params == second.report.params


def test_the_old_name_of_search_parameters_works_and_warns():
    report = nearcast.knn_join(ITEMS, ITEMS, k=1).report
    with pytest.warns(DeprecationWarning, match=r"JoinReport\.effort is now JoinReport\.params"):
        assert report.effort == report.params


def test_progress_is_told_up_to_the_last_query():
    told = []
    nearcast.knn_join(ITEMS, ITEMS, k=1, progress=lambda *step: told.append(step))
    assert told[-1] == ("join", 3, 3)


BAD_ARRAYS = [
    (ITEMS, np.ones((2, 3)), ["queries have 2 components", "items 3"]),
    (ITEMS, np.ones(2), ["items must have shape (count, dimension), got (2,)"]),
    (np.ones((1, 2, 2)), ITEMS, ["queries must have shape", "got (1, 2, 2)"]),
    (np.ones((2, 0)), np.ones((2, 0)), ["queries must have shape", "got (2, 0)"]),
    (ITEMS, ITEMS[:0], ["items are empty"]),
    (ITEMS, ITEMS.astype(np.int64), ["items must be float16, float32, float64, int8 or uint8, got int64"]),
    (ITEMS.astype(complex), ITEMS, ["queries must be", "got complex128"]),
    (ITEMS > 0, ITEMS, ["queries must be", "got bool"]),
    (np.array([["a", "b"]]), ITEMS, ["queries must be float16"]),
    (np.array([[1, 0], [np.nan, 0]]), ITEMS, ["row 1 of queries holds NaN"]),
    (ITEMS, np.array([[1, 0], [0, 1], [0, np.inf]], np.float16), ["row 2 of items holds NaN or infinity"]),
    (ITEMS, np.array([[1e300, 0]]), ["row 0 of items", "1e18"]),
    (ITEMS, [[1.0], [2.0, 3.0]], ["items"]),
    (None, ITEMS, ["queries"]),
]


@pytest.mark.parametrize(
    ("queries", "items", "words"), BAD_ARRAYS, ids=[words[0] + str(i) for i, (_, _, words) in enumerate(BAD_ARRAYS)]
)
def test_arrays_that_cannot_be_joined_are_refused(queries, items, words):
    with pytest.raises(InputError) as caught:
        nearcast.knn_join(queries, items, k=1)
    for word in words:
        assert word in str(caught.value)


def test_the_row_of_a_bad_vector_is_counted_through_the_whole_array():
    items = np.ones((70_000, 1), np.float32)
    items[69_999] = np.nan
    with pytest.raises(InputError, match="row 69999 of items"):
        nearcast.knn_join(items[:1], items, k=1)


BAD_SETTINGS = [
    ({"k": 0}, "k must be at least 1, got 0"),
    ({"k": -3}, "k must be at least 1, got -3"),
    ({"metric": "dot"}, "metric must be one of inner_product, cosine, l2, got 'dot'"),
    ({"recall": 0}, "recall must be in (0, 1], got 0"),
    ({"recall": 1.5}, "recall must be in (0, 1], got 1.5; write 0.015 for 1.5%"),
    ({"recall": float("nan")}, "recall must be in (0, 1], got nan"),
    ({"engine": "fais-ivf"}, "did you mean 'faiss-ivf'?"),
    ({"engine": "faiss-ivf", "engine_settings": {"nlists": 3}}, "unknown key 'nlists'; did you mean 'nlist'?"),
    ({"engine": "faiss-ivf", "engine_settings": {"nlist": 0}}, "nlist is 0"),
    ({"engine": "exact", "engine_settings": {"m": 3}}, "engine_settings of exact: unknown key 'm'"),
    ({"memory": "lots"}, "memory is 'lots': it is not an amount"),
    ({"threads": 0}, "threads must be at least 1, got 0"),
    ({"threads": -1}, "threads must be at least 1, got -1"),
    ({"seed": -1, "engine": "faiss-ivf"}, "seed must be at least 0, got -1"),
]


@pytest.mark.parametrize(("given", "words"), BAD_SETTINGS, ids=[words for _, words in BAD_SETTINGS])
def test_settings_that_make_no_sense_are_refused(given, words):
    with pytest.raises(SpecError) as caught:
        nearcast.knn_join(ITEMS, ITEMS, **{"k": 1} | given)
    assert words in str(caught.value)


def test_every_refusal_is_a_nearcast_error():
    assert issubclass(InputError, NearcastError)
    assert issubclass(SpecError, NearcastError)
