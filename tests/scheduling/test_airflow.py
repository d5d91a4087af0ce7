"""The example for Airflow, parsed by the real Airflow, which lives in an environment of its own (`make airflow`)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
AIRFLOW = Path(os.environ.get("NEARCAST_AIRFLOW", ROOT / ".airflow" / "bin" / "python"))

pytestmark = pytest.mark.skipif(
    not AIRFLOW.is_file(),
    reason="Airflow is not installed (make airflow, or set NEARCAST_AIRFLOW to the python of one)",
)


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Airflow makes of the example, and what its commands make of exit codes."""
    return parse(ROOT / "examples" / "scheduling" / "nearcast_shop.py", 14, tmp_path_factory)


@pytest.fixture(scope="module")
def parsed_cluster(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same of the example with several workers."""
    return parse(ROOT / "examples" / "cluster" / "airflow_cluster.py", 16, tmp_path_factory)


def parse(example: Path, codes: int, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("dags")
    shutil.copy(example, folder)
    home = tmp_path_factory.mktemp("airflow")
    words = [str(HERE / "parse_dag.py"), str(folder), json.dumps(list(range(codes)))]
    found: dict[str, Any] = json.loads(run_airflow(words, home).splitlines()[-1])
    return found


def run_airflow(words: list[str], home: Path) -> str:
    """Run a script with Airflow's own Python; return its standard output."""
    done = subprocess.run(
        [str(AIRFLOW), *words],
        env=os.environ | {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_is_a_dag_without_errors(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    assert list(parsed["dags"]) == ["nearcast_shop"]


def test_it_refreshes_then_monitors_and_makes_up_for_no_missed_day(parsed: dict[str, Any]) -> None:
    dag = parsed["dags"]["nearcast_shop"]
    assert dag["tasks"] == {"refresh": ["monitor"], "monitor": []}
    assert dag["catchup"] is False
    assert dag["max_active_runs"] == 1


def test_only_what_may_pass_by_itself_is_tried_again(parsed: dict[str, Any]) -> None:
    said = {int(code): outcome for code, outcome in parsed["outcomes"].items()}
    assert said[0] == "success"
    assert said[5] == "AirflowSkipException"
    assert {code for code, outcome in said.items() if outcome == "AirflowFailException"} == {2, 3, 4, 9, 10, 13}
    assert {code for code, outcome in said.items() if outcome == "AirflowException"} == {1, 6, 7, 8, 11, 12}


def test_the_example_with_workers_plans_maps_gathers_and_publishes(parsed_cluster: dict[str, Any]) -> None:
    assert parsed_cluster["errors"] == {}
    dag = parsed_cluster["dags"]["nearcast_cluster"]
    assert dag["tasks"] == {"plan": ["work"], "work": ["gather"], "gather": ["publish"], "publish": []}
    assert dag["max_active_runs"] == 1


def test_the_example_with_workers_tries_again_what_may_pass(parsed_cluster: dict[str, Any]) -> None:
    said = {int(code): outcome for code, outcome in parsed_cluster["outcomes"].items()}
    assert said[0] == "success"
    assert {code for code, outcome in said.items() if outcome == "AirflowFailException"} == {2, 3, 4, 7, 9, 10, 13}
    assert {code for code, outcome in said.items() if outcome == "AirflowException"} == {1, 5, 6, 8, 11, 12, 14, 15}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the operators of deploy/airflow make of exit codes."""
    operators = ROOT / "deploy" / "airflow" / "nearcast_operator.py"
    folder = tmp_path_factory.mktemp("operators")
    words = [HERE / "run_operator.py", folder, operators, json.dumps(list(range(19)))]
    done = run_airflow([str(word) for word in words], tmp_path_factory.mktemp("airflow"))
    found: dict[str, Any] = json.loads(done.splitlines()[-1])
    return found


def test_an_operator_returns_the_result_and_tries_again_only_what_may_pass(executed: dict[str, Any]) -> None:
    said = {int(code): outcome for code, outcome in executed["outcomes"].items()}
    assert said[0] == {"version": 7}
    assert said[5].startswith("AirflowSkipException")
    failed = {code for code, outcome in said.items() if str(outcome).startswith("AirflowFailException")}
    assert failed == {2, 3, 4, 7, 8, 9, 10, 13, 16, 17, 18}
    assert said[10] == "AirflowFailException: exit code 10: why"
    assert said[11] == "AirflowException: exit code 11: why; trying again continues the work"


def test_an_operator_runs_the_command_of_its_spec(executed: dict[str, Any]) -> None:
    assert executed["commands"]["refresh"] == ["refresh", "shop.toml", "--quiet", "--json"]
    assert executed["commands"]["monitor"] == ["monitor", "shop.toml", "--fail-on", "any", "--quiet", "--json"]
    assert executed["fields"]["NearcastRefreshOperator"] == ["spec", "command", "environment"]
