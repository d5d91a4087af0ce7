"""What the runners of clusters do beside the contract: two workers with a core each, which are killed."""

from __future__ import annotations

import pytest

from nearcast import machine
from nearcast.errors import WorkerError
from runner_contract import RunnerContract
from runner_tasks import area, attempts, calls, committed, perform


class ClusterContract(RunnerContract):
    lost: str  # what the error of a worker that died in each attempt says

    def test_calls_run_on_both_workers_with_the_cores_that_the_engine_reserved(self, runner, tmp_path):
        outcomes = list(runner.run(perform, area(tmp_path), calls(8, "meet", processes=2)))
        assert len({outcome.facts["pid"] for outcome in outcomes}) >= 2
        assert {outcome.facts["threads"] for outcome in outcomes} == {1}

    def test_the_only_call_of_a_stage_has_the_cores_of_both_workers_if_its_host_has_them(self, runner, tmp_path):
        reserved, alone = (
            next(runner.run(perform, area(tmp_path / str(n)), calls(n, "describe"))).facts for n in (2, 1)
        )
        assert reserved["threads"] == 1
        assert alone["threads"] == min(2, machine.default_threads())
        assert alone["memory"] < 1.5 * reserved["memory"]  # memory is as the engine reserved it

    def test_2_of_12_calls_whose_worker_is_killed_by_sigkill_are_run_again_with_the_same_bytes(self, runner, tmp_path):
        place, quiet = area(tmp_path / "killed"), area(tmp_path / "quiet")
        list(runner.run(perform, quiet, calls(12)))
        outcomes = list(runner.run(perform, place, calls(12, "kill first", victims=[3, 8], times=1)))
        assert len(outcomes) == 12
        assert attempts(place) == {call.name: 2 if call.args["number"] in (3, 8) else 1 for call in calls(12)}
        assert committed(place, killed=2) == committed(quiet)

    def test_a_call_that_kills_its_worker_in_each_of_4_attempts_is_an_error_that_names_the_call(self, runner, tmp_path):
        place = area(tmp_path)
        with pytest.raises(WorkerError, match=f"task join/000001 failed in all 4 attempts: {self.lost}"):
            list(runner.run(perform, place, calls(3, "kill first", victims=[1], times=99)))
        assert attempts(place)["join/000001"] == 4
