"""What every runner does, as a class of tests: a subclass in a test module with a fixture `runner` runs them."""

from __future__ import annotations

import pytest

from nearcast.errors import InputError, StorageError, WorkerError
from nearcast.runners.call_messages import restore_error
from nearcast.runners.worker import describe_worker
from runner_tasks import area, attempts, calls, committed, perform


class RunnerContract:
    @pytest.mark.parametrize("n", [1, 2, 17])
    def test_each_call_is_run_once_and_its_outcome_is_told_once(self, runner, tmp_path, n):
        place = area(tmp_path, **describe_worker())
        outcomes = list(runner.run(perform, place, calls(n)))
        names = [call.name for call in calls(n)]
        assert sorted(outcome.name for outcome in outcomes) == names
        assert attempts(place) == dict.fromkeys(names, 1)
        assert sorted(committed(place)) == names
        assert {outcome.name: outcome.facts["number"] for outcome in outcomes} == {
            call.name: call.args["number"] for call in calls(n)
        }
        assert all(outcome.error is None and outcome.seconds > 0 and outcome.peak_bytes > 0 for outcome in outcomes)

    def test_no_calls_are_no_work(self, runner, tmp_path):
        assert list(runner.run(perform, area(tmp_path), [])) == []

    def test_bad_input_is_an_outcome_with_class_and_exit_code_and_ends_the_run(self, runner, tmp_path):
        place = area(tmp_path)
        outcomes = list(runner.run(perform, place, calls(400, "refuse", victim=2)))
        refused = [outcome for outcome in outcomes if outcome.error is not None]
        assert [outcome.name for outcome in refused] == ["join/000002"]
        assert outcomes[-1] == refused[0]
        error = restore_error(refused[0].error)
        assert isinstance(error, InputError)
        assert "row 7 of items.parquet has a vector of 3 values" in str(error)
        assert refused[0].error["exit_code"] == 3
        assert attempts(place)["join/000002"] == 1  # another attempt would meet it again
        assert len(attempts(place)) < 400

    def test_after_bad_input_the_rest_can_be_run_by_the_same_runner(self, runner, tmp_path):
        place = area(tmp_path)
        list(runner.run(perform, place, calls(6, "refuse", victim=1)))
        outcomes = list(runner.run(perform, place, calls(6)))
        assert len(outcomes) == len(committed(place, killed=None)) == 6

    def test_a_fault_that_passes_is_tried_again(self, runner, tmp_path):
        place = area(tmp_path)
        outcomes = list(runner.run(perform, place, calls(3, "fail first", times=2)))
        assert sorted(outcome.name for outcome in outcomes) == [call.name for call in calls(3)]
        assert attempts(place) == {call.name: 3 for call in calls(3)}

    def test_a_fault_that_does_not_pass_keeps_its_class_and_names_the_call_and_the_attempts(self, runner, tmp_path):
        place = area(tmp_path)
        with pytest.raises(StorageError, match="task join/000000 failed in all 4 attempts: the bucket is slow"):
            list(runner.run(perform, place, calls(1, "fail first", times=99)))
        assert attempts(place) == {"join/000000": 4}

    def test_a_worker_of_another_version_refuses(self, runner, tmp_path):
        place = area(tmp_path, **describe_worker() | {"version": "0.0.9"})
        with pytest.raises(
            WorkerError, match=r"the plan was made by 0\.0\.9; install nearcast 0\.0\.9 on every worker"
        ):
            list(runner.run(perform, place, calls(2)))
        assert not (tmp_path / "results").exists()

    def test_a_worker_with_other_kernels_refuses_unless_the_plan_says_any(self, runner, tmp_path):
        other = {"native": "numpy", "numpy": "native"}[describe_worker()["kernels"]]
        with pytest.raises(WorkerError, match="below recall 1 its results would differ"):
            list(runner.run(perform, area(tmp_path, kernels=other), calls(2)))
        assert len(list(runner.run(perform, area(tmp_path, kernels="any"), calls(2)))) == 2

    def test_calls_that_were_done_before_are_not_done_again(self, runner, tmp_path):
        place = area(tmp_path)
        list(runner.run(perform, place, calls(4)))
        before = committed(place)
        list(runner.run(perform, place, calls(4)))
        assert committed(place) == before

    def test_every_call_twice_at_once_commits_once_and_gives_equal_bytes(self, runner, tmp_path):
        once, twice = area(tmp_path / "once"), area(tmp_path / "twice")
        list(runner.run(perform, once, calls(8)))
        doubled = [call for call in calls(8, seconds=0.02) for _ in range(2)]
        outcomes = list(runner.run(perform, twice, doubled))
        assert len(outcomes) == 16
        assert committed(twice) == committed(once)

    def test_a_caller_that_stops_reading_leaves_the_runner_usable(self, runner, tmp_path):
        place = area(tmp_path)
        first = next(iter(runner.run(perform, place, calls(20, seconds=0.01))))
        assert first.error is None
        assert len(list(runner.run(perform, place, calls(20)))) == 20
        assert len(committed(place, killed=None)) == 20
