"""The runner `ray` on a real cluster of two nodes: the contract of a runner, and workers that are killed."""

from __future__ import annotations

import pytest

from nearcast.errors import SpecError, WorkerError
from nearcast.runners import make_runner
from runner_contract import RunnerContract
from runner_tasks import area, attempts, calls, committed, perform


@pytest.fixture(scope="module")
def runner(ray_cluster):
    import ray

    made = make_runner("ray", options={"address": ray_cluster.address})
    yield made
    made.close()
    ray.shutdown()


class TestOnRay(RunnerContract):
    """The suite."""


def test_calls_run_on_both_nodes_with_the_cores_that_ray_reserved(runner, tmp_path):
    outcomes = list(runner.run(perform, area(tmp_path), calls(8, "describe", seconds=0.5)))
    assert len({outcome.facts["pid"] for outcome in outcomes}) >= 2
    assert {outcome.facts["threads"] for outcome in outcomes} == {1}


def test_2_of_12_calls_whose_worker_is_killed_by_sigkill_are_run_again_with_the_same_bytes(runner, tmp_path):
    place, quiet = area(tmp_path / "killed"), area(tmp_path / "quiet")
    list(runner.run(perform, quiet, calls(12)))
    outcomes = list(runner.run(perform, place, calls(12, "kill first", victims=[3, 8], times=1)))
    assert len(outcomes) == 12
    assert attempts(place) == {call.name: 2 if call.args["number"] in (3, 8) else 1 for call in calls(12)}
    assert committed(place, killed=2) == committed(quiet)


def test_a_call_that_kills_its_worker_in_each_of_4_attempts_is_an_error_that_names_the_call(runner, tmp_path):
    place = area(tmp_path)
    with pytest.raises(WorkerError, match="task join/000001 failed in all 4 attempts: its Ray worker was lost"):
        list(runner.run(perform, place, calls(3, "kill first", victims=[1], times=99)))
    assert attempts(place)["join/000001"] == 4


def test_an_unknown_option_is_an_error():
    with pytest.raises(SpecError, match="runner 'ray' has no option 'adress'; did you mean 'address'"):
        make_runner("ray", options={"adress": "auto"})
