"""The number of passes that a memory budget needs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import generator
from nearcast.engines import ENGINES, choose_engine
from nearcast.engines.base import JoinRequest, JoinShape
from nearcast.join.passes import FIXED_BYTES, SMALLEST_SHARD, budget_of_process, bytes_of_pass, count_passes
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
