"""The exact join gives the referee's lists, bit by bit, on every instruction set."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from tests.kernels.vectors import DTYPES, METRICS, draw_vectors, join_exact, joins

from nearcast.errors import SpecError
from nearcast.kernels import isa_info, numpy_fallback

FIXTURE_ONCE = [HealthCheck.function_scoped_fixture]


def assert_same(joined, truth):
    positions, scores = truth
    np.testing.assert_array_equal(joined.positions, positions)
    np.testing.assert_array_equal(joined.scores.view(np.uint32), scores.view(np.uint32))


@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURE_ONCE)
@given(case=joins())
def test_any_join_equals_the_referee(native_isa, case):
    queries, items, k, metric, exclude, threads = case
    joined = join_exact(queries, items, k, metric, exclude=exclude, threads=threads)
    assert_same(joined, numpy_fallback.join_exact(queries, items, k, metric, exclude))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_metric_and_type(isa, metric, dtype):
    rng = np.random.default_rng(1)
    queries, items = draw_vectors(rng, 30, 50, dtype, "plain"), draw_vectors(rng, 2000, 50, dtype, "plain")
    assert_same(
        join_exact(queries, items, 20, metric, threads=2), numpy_fallback.join_exact(queries, items, 20, metric)
    )


@pytest.mark.parametrize("metric", METRICS)
def test_thousands_of_equal_items_go_by_position(native_isa, metric):
    rng = np.random.default_rng(2)
    items = np.repeat(draw_vectors(rng, 4, 24, np.float32, "plain")[1:2], 5000, axis=0)
    items[77] += 1
    queries = draw_vectors(rng, 10, 24, np.float32, "plain")
    assert_same(join_exact(queries, items, 30, metric), numpy_fallback.join_exact(queries, items, 30, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_far_from_the_origin_the_bound_still_holds(native_isa, metric):
    rng = np.random.default_rng(3)
    items = (rng.standard_normal((3000, 40)) * 0.01 + 100).astype(np.float32)
    queries = (rng.standard_normal((20, 40)) * 0.01 + 100).astype(np.float32)
    assert_same(join_exact(queries, items, 10, metric), numpy_fallback.join_exact(queries, items, 10, metric))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-12, 1e12, 1e17])
@pytest.mark.parametrize("metric", METRICS)
def test_tiny_and_huge_vectors(native_isa, metric, size):
    rng = np.random.default_rng(4)
    items = (rng.standard_normal((500, 8)) * size).astype(np.float32)
    queries = (rng.standard_normal((9, 8)) * size).astype(np.float32)
    assert_same(join_exact(queries, items, 10, metric), numpy_fallback.join_exact(queries, items, 10, metric))


def test_the_widest_vectors(native_isa):
    rng = np.random.default_rng(5)
    queries, items = draw_vectors(rng, 5, 4096, np.float16, "plain"), draw_vectors(rng, 300, 4096, np.float16, "plain")
    assert_same(join_exact(queries, items, 7, "l2"), numpy_fallback.join_exact(queries, items, 7, "l2"))


def test_threads_and_memory_change_nothing(native_isa):
    rng = np.random.default_rng(6)
    queries, items = draw_vectors(rng, 500, 20, np.float32, "plain"), draw_vectors(rng, 3000, 20, np.float32, "plain")
    one = join_exact(queries, items, 10, "cosine")
    three = join_exact(queries, items, 10, "cosine", threads=3, memory_bytes=1)
    assert_same(three, (one.positions, one.scores))


def test_progress_ends_at_all_queries(native_isa):
    seen = []
    vectors = np.eye(8, dtype=np.float32)
    join_exact(vectors, vectors, 1, "inner_product", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (8, 8)


def test_what_progress_raises_comes_out(native_isa):
    def stop(done, total):
        raise KeyboardInterrupt

    vectors = np.eye(8, dtype=np.float32)
    with pytest.raises(KeyboardInterrupt):
        join_exact(vectors, vectors, 1, "inner_product", progress=stop)


def test_nan_is_refused(native_isa):
    items = np.ones((4, 3), np.float32)
    items[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"items\[2\]"):
        join_exact(items[:1], items, 1, "l2")


def test_an_unknown_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setenv("NEARCAST_ISA", "mmx")
    with pytest.raises(SpecError, match="mmx"):
        isa_info()
