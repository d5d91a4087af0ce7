"""The number of passes that a memory budget needs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from builders import generator
from nearcast.engines import ENGINES, choose_engine
from nearcast.engines.base import JoinRequest, JoinShape
from nearcast.join.passes import (
    FIXED_BYTES,
    LIBRARY_BYTES,
    SMALLEST_SHARD,
    budget_of_process,
    bytes_of_pass,
    count_passes,
)
from nearcast.join.shard_plan import choose_shards
from nearcast.knn.query_splits import count_split_rows
from nearcast.types import Metric

GB = 10**9
SHAPE = JoinShape(JoinRequest(Metric.INNER_PRODUCT, 50, 0.95), 5_000_000, 1_000_000, 128, 2)
DENSE = choose_engine("dense")


def passes(shape: JoinShape, memory: int, engine=DENSE) -> int:
    return count_passes(engine, engine.settings(), shape, memory)


def need(shape: JoinShape, shards: int) -> int:
    return bytes_of_pass(DENSE, DENSE.settings(), shape, shards)


@pytest.mark.parametrize("shape", [SHAPE, replace(SHAPE, request=JoinRequest(Metric.L2, 10)), replace(SHAPE, dim=768)])
@pytest.mark.parametrize("memory", [GB // 2, GB, 2 * GB, 4 * GB])
def test_as_few_passes_as_fit_the_budget(shape: JoinShape, memory: int) -> None:
    found = passes(shape, memory)
    assert need(shape, found) <= memory
    assert found == 1 or need(shape, found - 1) > memory


def test_items_that_fit_are_joined_at_once_and_more_memory_is_never_more_passes() -> None:
    assert passes(replace(SHAPE, n_items=100_000), GB) == 1
    counts = [passes(SHAPE, memory * GB // 4) for memory in range(1, 40)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1


def test_a_budget_below_the_floor_ends_at_the_smallest_shards() -> None:
    assert passes(SHAPE, FIXED_BYTES // 2) == -(-SHAPE.n_items // SMALLEST_SHARD)
    assert passes(replace(SHAPE, n_items=0), 0) == 1


def test_attributes_of_rules_need_passes_too() -> None:
    ruled = replace(SHAPE, n_items=500_000, attribute_bytes=(0, 1_000))
    assert passes(replace(ruled, attribute_bytes=(0, 0)), GB) == 1
    assert passes(ruled, GB) == 2  # for one shard, the rules are compiled for all queries
    assert passes(replace(ruled, attribute_bytes=(5_000, 0)), GB) > 2


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "exact"])
def test_every_engine_with_an_index_is_cut(name: str) -> None:
    assert passes(SHAPE, GB, ENGINES[name]) > 1
    assert passes(SHAPE, 100 * GB, ENGINES[name]) == 1


def test_the_engine_that_streams_is_never_cut() -> None:
    assert passes(SHAPE, FIXED_BYTES, choose_engine("exact")) == 1


def test_a_worker_has_its_own_budget_or_its_share() -> None:
    def budget(**tables):
        return budget_of_process(generator(**tables), 8 * GB)

    assert budget() == budget(memory="8GB") == 8 * GB
    assert budget(run={"worker_memory": "2GB"}) == 2 * GB
    assert budget(run={"runner": "processes"}) == 4 * GB
    assert budget(run={"runner": "processes", "workers": 4}) == 2 * GB
    assert budget(memory="8GB", run={"runner": "processes", "workers": 4}) == 8 * GB


@pytest.mark.parametrize(("k", "dim"), [(1_000, 128), (50, 2_048), (1, 4)])
def test_the_buffers_of_a_join_are_those_of_a_task(k: int, dim: int) -> None:
    shape = replace(SHAPE, request=JoinRequest(Metric.INNER_PRODUCT, k, 0.95), dim=dim, n_items=100_000)
    rows = count_split_rows(shape.n_queries, dim, k)
    working = DENSE.estimate_sizes(shape, DENSE.settings()).working_bytes
    assert 12 * k * rows < working < (40 * k + 8 * dim + 1_000) * rows + (32 << 20)


def test_a_process_that_held_memory_before_the_run_joins_in_more_passes() -> None:
    def count(base_bytes: int, budget: int) -> int:
        meter = SimpleNamespace(base_bytes=base_bytes, budget_bytes=budget)
        run = SimpleNamespace(engine=DENSE, settings=DENSE.settings(), spec=generator(), meter=meter)
        return choose_shards(run, run.spec, SHAPE)

    for budget in (GB, 2 * GB, 3 * GB):
        usual, more = count(80 << 20, budget), count(600 << 20, budget)
        assert usual == passes(SHAPE, budget) <= more
        sizes = DENSE.estimate_sizes(replace(SHAPE, n_items=-(-SHAPE.n_items // more)), DENSE.settings())
        assert (600 << 20) + LIBRARY_BYTES + max(sizes.memory_bytes, sizes.working_bytes) <= budget
    assert count(600 << 20, GB) > count(80 << 20, GB)
    assert count(600 << 20, 100 * GB) == 1
