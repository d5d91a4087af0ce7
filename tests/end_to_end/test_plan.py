"""`nearcast plan` without inputs: the cost of a run from its sizes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.shop import nearcast, succeed

from nearcast.join.cost_rates import PACKAGE_RATES

LARGE = ("--items", "100e6", "--queries", "50_000_000", "--dim", 128, "--k", 50, "--recall", 0.95)
WORKERS = ("--workers", 32, "--cores", 16, "--worker-memory", "64GB")


def planned(*words: object, cwd: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(succeed("plan", *words, "--json", cwd=cwd).stdout)
    return found


def test_the_cost_of_a_run_is_printed_from_its_sizes_alone(tmp_path: Path) -> None:
    text = succeed("plan", *LARGE, *WORKERS, cwd=tmp_path).stdout
    for words in ("join", "core-hours", "memory of a worker", "100,000,000 of 128 dimensions in", "32 workers"):
        assert words in text
    assert "cost" not in text
    assert list(tmp_path.iterdir()) == []


def test_prices_give_a_cost_by_kind(tmp_path: Path) -> None:
    prices = ("--price", "core-hour=0.04", "--price", "gb-month=0.02", "--price", "million-requests=0.4")
    text = succeed("plan", *LARGE, *WORKERS, *prices, cwd=tmp_path).stdout
    for words in ("cost", "a month of tables, indexes and snapshot", "results of tasks during the run"):
        assert words in text
    found = planned(*LARGE, *WORKERS, "--price", "core-hour=0.04", cwd=tmp_path)
    assert found["money"] == {
        "compute": pytest.approx(0.04 * found["core_hours"], rel=1e-3),
        "total": found["money"]["compute"],
    }


def test_json_has_each_stage_and_the_totals(tmp_path: Path) -> None:
    found = planned(*LARGE, *WORKERS, "--shards", 8, cwd=tmp_path)
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert list(stages) == ["ingest", "index", "calibrate", "join", "merge", "table", "measure"]
    assert (found["shards"], found["workers"], found["cores_per_worker"]) == (8, 32, 16)
    assert found["tasks"] == sum(stage["tasks"] for stage in stages.values())
    assert found["worker_memory_bytes"] == max(stage["memory_bytes"] for stage in stages.values())
    assert found["requests"] == sum(stage["requests"] for stage in stages.values())


def test_less_memory_of_a_worker_is_more_shards(tmp_path: Path) -> None:
    found = [planned(*LARGE, "--worker-memory", memory, cwd=tmp_path) for memory in ("1TB", "32GB", "8GB")]
    assert found[0]["shards"] == 1 < found[1]["shards"] < found[2]["shards"]
    assert found[2]["worker_memory_bytes"] <= 8e9


def test_smaller_components_need_less_memory(tmp_path: Path) -> None:
    half, full = (planned(*LARGE, "--shards", 1, "--dtype", kind, cwd=tmp_path) for kind in ("float16", "float32"))
    assert half["worker_memory_bytes"] < full["worker_memory_bytes"]


def test_rates_of_another_machine_are_used(tmp_path: Path) -> None:
    known = json.loads(PACKAGE_RATES.read_text(encoding="utf-8"))
    (tmp_path / "slow.json").write_text(json.dumps(known | {"scan_component": known["scan_component"] * 10}))
    slow = planned(*LARGE, *WORKERS, "--rates", "slow.json", cwd=tmp_path)
    assert slow["core_hours"] > 2 * planned(*LARGE, *WORKERS, cwd=tmp_path)["core_hours"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--items", "1e6"), "'queries' is missing"),
        (("--items", "1.5"), "'1.5' is not a whole number; write it like 100e6"),
        (("--items", "many"), "'many' is not a whole number"),
        ((*LARGE, "--price", "core-hour"), "'core-hour' is not a price; write it like core-hour=0.04"),
        ((*LARGE, "--price", "core-hour=-1"), "is not a price"),
        ((*LARGE, "--price", "gpu-hour=1"), "there is no price 'gpu-hour'"),
        ((*LARGE, "--worker-memory", "much"), "not an amount of memory"),
        ((*LARGE, "--shards", 0), "shards is 0"),
        ((*LARGE, "--dtype", "int8"), "dtype is 'int8'; write one of float16, float32, float64"),
        ((*LARGE, "--recall", 95), "recall is 95"),
        ((*LARGE, "--rates", "none.json"), "none.json cannot be read"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_with_exit_code_2(
    words: tuple[object, ...], said: str, tmp_path: Path
) -> None:
    done = nearcast("plan", *words, cwd=tmp_path)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
