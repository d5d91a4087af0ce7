from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nearcast.errors import SpecError
from nearcast.join.cost_rates import PACKAGE_RATES, CostRates, read_rates
from nearcast.join.cost_table import (
    CostTable,
    JobSizes,
    Prices,
    compute_costs,
    cost_of_shard,
    fit_shards,
)
from nearcast.join.passes import FIXED_BYTES

JOB = JobSizes(10_000_000, 5_000_000, 128, 50, recall=0.95, workers=8, cores=4)
FREE = {"task": 0.0, "transfer_byte": 0.0, "join_slot": 0.0}  # rates without overhead


def costs(job: JobSizes, prices: Prices | None = None, **changed: Any) -> CostTable:
    rates = read_rates().model_copy(update=changed)
    return compute_costs(job, cost_of_shard(job, rates), rates, prices)


def seconds(job: JobSizes, stage: str, **changed: Any) -> float:
    return {s.stage: s.core_seconds for s in costs(job, **changed).stages}[stage]


def names(job: JobSizes) -> list[str]:
    return [stage.stage for stage in costs(job).stages]


def test_the_stages_are_those_that_the_run_has() -> None:
    assert names(replace(JOB, recall=1.0)) == ["ingest", "index", "join", "table", "measure"]
    assert names(JOB) == ["ingest", "index", "calibrate", "join", "table", "measure"]
    assert names(replace(JOB, recall=1.0, shards=3)) == ["ingest", "index", "join", "merge", "table", "measure"]
    assert names(replace(JOB, recall=1.0, scored=True, selects=True)) == [
        *("ingest", "score", "index", "join", "choose", "table", "measure"),
    ]


def test_a_small_table_is_ingested_by_one_task_and_a_join_has_a_task_per_split_and_shard() -> None:
    small = {s.stage: s.tasks for s in costs(replace(JOB, n_items=5000, n_queries=3000)).stages}
    assert small["ingest"] == small["index"] == small["join"] == small["table"] == small["measure"] == 1
    tasks = {shards: {s.stage: s.tasks for s in costs(replace(JOB, shards=shards)).stages} for shards in (1, 4)}
    assert tasks[4]["join"] == 4 * tasks[1]["join"]
    assert tasks[4]["index"] == 4
    assert tasks[4]["merge"] == tasks[1]["join"]


def test_at_recall_1_the_join_costs_the_same_however_the_items_are_cut() -> None:
    exact = replace(JOB, recall=1.0)
    assert seconds(replace(exact, shards=8), "join", **FREE) == pytest.approx(seconds(exact, "join", **FREE))
    assert seconds(replace(exact, n_queries=2 * JOB.n_queries), "join", **FREE) == pytest.approx(
        2 * seconds(exact, "join", **FREE)
    )


def test_below_recall_1_more_shards_cost_more_and_a_query_costs_less_than_in_proportion_to_the_items() -> None:
    assert seconds(replace(JOB, shards=8), "join", **FREE) > 1.5 * seconds(JOB, "join", **FREE)
    grown = seconds(replace(JOB, n_items=4 * JOB.n_items), "join", **FREE) / seconds(JOB, "join", **FREE)
    assert 1.2 < grown < 3


def test_a_run_with_more_workers_takes_less_time_and_as_many_core_hours() -> None:
    few, many = costs(replace(JOB, workers=2), **FREE), costs(replace(JOB, workers=64), **FREE)
    assert many.core_hours == pytest.approx(few.core_hours)
    assert many.wall_seconds < few.wall_seconds
    few_join, many_join = (next(s for s in table.stages if s.stage == "join") for table in (few, many))
    assert many_join.wall_seconds(64, 4) < few_join.wall_seconds(2, 4) / 20
    assert costs(replace(JOB, cores=8), **FREE).wall_seconds == pytest.approx(costs(JOB, **FREE).wall_seconds / 2)


def test_every_worker_downloads_the_shards_that_it_joins_with() -> None:
    read = {
        workers: {s.stage: s.read_bytes for s in costs(replace(JOB, shards=4, workers=workers)).stages}["join"]
        for workers in (8, 16, 100_000)
    }
    assert read[16] == pytest.approx(2 * read[8])
    assert read[100_000] < 100_000 / 16 * read[16]  # more workers than tasks: each has a task with one shard


def test_the_number_of_shards_is_the_smallest_that_fits_the_memory_of_a_worker() -> None:
    memory = 2 << 30
    shards = fit_shards(JOB, memory)
    assert shards > 1

    def need(count: int) -> int:
        stages = {s.stage: s.memory_bytes for s in costs(replace(JOB, shards=count)).stages}
        return max(stages["index"], stages["join"])

    assert need(shards) <= memory < need(shards - 1)
    assert fit_shards(JOB, 1 << 40) == 1
    assert costs(replace(JOB, shards=shards)).memory_bytes >= FIXED_BYTES


def test_money_is_counted_for_what_has_a_price() -> None:
    assert costs(JOB).money() == {}
    assert "money" not in costs(JOB).as_dict()
    table = costs(JOB, Prices(core_hour=2.0))
    assert table.money() == {"compute": pytest.approx(2 * table.core_hours)}
    table = costs(JOB, Prices(gb_month=3.0, million_requests=5.0))
    assert set(table.money()) == {"storage_month", "work_storage", "requests"}
    assert table.money()["storage_month"] == pytest.approx(3 * table.kept_bytes / 1e9)
    assert table.money()["requests"] == pytest.approx(5 * table.requests / 1e6)
    assert table.as_dict()["money"]["total"] == pytest.approx(sum(table.money().values()), abs=1e-3)


def test_a_join_of_a_table_with_itself_stores_it_once() -> None:
    job = replace(JOB, n_queries=JOB.n_items)
    assert costs(replace(job, self_join=True)).kept_bytes < costs(job).kept_bytes
    assert seconds(replace(job, self_join=True), "ingest", **FREE) == pytest.approx(seconds(job, "ingest", **FREE) / 2)


@pytest.mark.parametrize("rate", [name for name in CostRates.model_fields if name not in ("measured_on", "join_items")])
def test_each_rate_changes_the_costs(rate: str) -> None:
    job = replace(JOB, shards=2, selects=True)
    more = getattr(read_rates(), rate) * 2 + 0.1
    assert costs(job, **{rate: more}).core_hours > costs(job).core_hours


def test_the_growth_of_the_join_starts_at_the_measured_items() -> None:
    grows = {"join_growth": 0.5, "join_items": float(JOB.n_items), "join_factor": 2.0}
    fixed = {"join_growth": 0.0, "join_factor": 1.0}
    assert seconds(JOB, "join", **FREE, **grows) == pytest.approx(2 * seconds(JOB, "join", **FREE, **fixed), rel=1e-6)


def test_a_rates_file_is_read_and_its_faults_are_named(tmp_path: Any) -> None:
    known = json.loads(PACKAGE_RATES.read_text(encoding="utf-8"))
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(known | {"task": 7.0}))
    assert read_rates(path).task == 7.0
    for text, words in (
        (json.dumps(known | {"taks": 1.0}), "unknown key 'taks'; did you mean 'task'?"),
        (json.dumps(known | {"task": -1.0}), "task is -1.0"),
        (json.dumps({k: v for k, v in known.items() if k != "task"}), "'task' is missing"),
        ("{", "cannot be read"),
        ("[]", "is no table of rates"),
    ):
        path.write_text(text)
        with pytest.raises(SpecError, match=r"rates\.json") as caught:
            read_rates(path)
        assert words in str(caught.value)
    with pytest.raises(SpecError, match=r"scale\.py"):
        read_rates(tmp_path / "missing.json")
