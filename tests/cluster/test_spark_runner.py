"""The runner `spark` on a real cluster of a master and two workers: the contract, killed workers and executors."""

from __future__ import annotations

import pytest

from nearcast.errors import SpecError, WorkerError
from nearcast.runners import make_runner
from runner_contract import RunnerContract
from runner_tasks import area, attempts, calls, committed, perform


@pytest.fixture(scope="module")
def runner(spark_cluster):
    made = make_runner("spark", options={"master": spark_cluster.url, "conf": spark_cluster.conf()})
    yield made
    made.close()


class TestOnSpark(RunnerContract):
    """The suite."""


def test_calls_run_on_both_workers_with_the_cores_that_spark_reserved(runner, tmp_path):
    outcomes = list(runner.run(perform, area(tmp_path), calls(8, "describe", seconds=0.5)))
    assert len({outcome.facts["pid"] for outcome in outcomes}) >= 2
    assert {outcome.facts["threads"] for outcome in outcomes} == {1}


def test_2_of_12_calls_whose_python_worker_is_killed_by_sigkill_are_run_again_with_the_same_bytes(runner, tmp_path):
    place, quiet = area(tmp_path / "killed"), area(tmp_path / "quiet")
    list(runner.run(perform, quiet, calls(12)))
    outcomes = list(runner.run(perform, place, calls(12, "kill first", victims=[3, 8], times=1)))
    assert len(outcomes) == 12
    assert attempts(place) == {call.name: 2 if call.args["number"] in (3, 8) else 1 for call in calls(12)}
    assert committed(place, killed=2) == committed(quiet)


def test_a_call_that_kills_its_worker_in_each_of_4_attempts_is_an_error_that_names_the_call(runner, tmp_path):
    place = area(tmp_path)
    with pytest.raises(WorkerError, match=r"task join/000001 failed in all 4 attempts: Spark ended its job: .*crashed"):
        list(runner.run(perform, place, calls(3, "kill first", victims=[1], times=99)))
    assert attempts(place)["join/000001"] == 4


def test_12_calls_of_which_1_loses_the_jvm_of_its_executor_have_the_same_bytes(runner, tmp_path):
    place, quiet = area(tmp_path / "killed"), area(tmp_path / "quiet")
    list(runner.run(perform, quiet, calls(12)))
    outcomes = list(runner.run(perform, place, calls(12, "kill first", victims=[5], times=1, executor=True)))
    assert len(outcomes) == 12
    assert attempts(place)["join/000005"] == 2
    assert committed(place, killed=None) == committed(quiet)


def test_master_and_remote_together_and_unknown_options_are_errors():
    with pytest.raises(SpecError, match="takes master or remote, got both"):
        make_runner("spark", options={"master": "local", "remote": "sc://here"})
    with pytest.raises(SpecError, match="runner 'spark' has no option 'mastr'; did you mean 'master'"):
        make_runner("spark", options={"mastr": "local"})
