"""Worker processes that are killed, and a driver that is killed: real processes and real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nearcast.errors import WorkerError
from nearcast.runners.base import TaskCall
from nearcast.runners.processes import ProcessRunner
from runner_tasks import area, attempts, calls, committed, perform

TESTS = Path(__file__).resolve().parents[1]
PATIENCE = 180.0  # seconds


def test_two_of_twelve_calls_killed_by_sigkill_are_run_by_new_workers_with_the_same_bytes(tmp_path):
    place, quiet = area(tmp_path / "killed"), area(tmp_path / "quiet")
    with ProcessRunner(2) as runner:
        list(runner.run(perform, quiet, calls(12)))
        outcomes = list(runner.run(perform, place, calls(12, "kill first", victims=[3, 8], times=1)))
    assert len(outcomes) == 12
    assert attempts(place) == {call.name: 2 if call.args["number"] in (3, 8) else 1 for call in calls(12)}
    assert committed(place, killed=2) == committed(quiet)


def test_a_call_that_ends_its_worker_in_each_of_4_attempts_is_an_error_with_call_and_signal(tmp_path):
    place = area(tmp_path)
    with (
        ProcessRunner(2) as runner,
        pytest.raises(
            WorkerError,
            match=r"task join/000001 failed in all 4 attempts: its worker process was ended by SIGKILL, prob",
        ),
    ):
        list(runner.run(perform, place, calls(3, "kill first", victims=[1], times=99)))
    assert attempts(place)["join/000001"] == 4


def test_an_exception_of_a_task_is_an_error_with_its_class_and_the_traceback_of_the_worker(tmp_path):
    with (
        ProcessRunner(1) as runner,
        pytest.raises(
            WorkerError, match="task join/000001 failed in all 4 attempts: ArithmeticError: an inv"
        ) as caught,
    ):
        list(runner.run(perform, area(tmp_path), calls(3, "crash", victim=1)))
    assert "in _crash" in caught.value.__notes__[0]


def test_workers_divide_the_cores_and_the_memory_and_live_for_all_stages_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARCAST_THREADS", "7")
    monkeypatch.setenv("NEARCAST_MEMORY", "1200MB")
    with ProcessRunner(3) as runner:
        stages = [list(runner.run(perform, area(tmp_path), calls(6, "meet", processes=3))) for _ in range(2)]
    facts = [outcome.facts for stage in stages for outcome in stage]
    assert {fact["threads"] for fact in facts} == {2}
    assert {fact["memory"] for fact in facts} == {400_000_000}
    assert len({fact["pid"] for fact in facts}) == 3
    assert os.getpid() not in {fact["pid"] for fact in facts}


def test_a_stage_of_one_call_has_all_cores_and_the_whole_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARCAST_THREADS", "6")
    monkeypatch.setenv("NEARCAST_MEMORY", "1200MB")
    with ProcessRunner(3) as runner:
        stages = [list(runner.run(perform, area(tmp_path), calls(n, "describe"))) for n in (6, 1, 2)]
    assert [{(one.facts["threads"], one.facts["memory"]) for one in stage} for stage in stages] == [
        {(2, 400_000_000)},
        {(6, 1_200_000_000)},
        {(3, 600_000_000)},
    ]


def test_there_are_no_more_threads_than_cores_however_many_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARCAST_THREADS", "2")
    with ProcessRunner(4) as runner:
        outcomes = list(runner.run(perform, area(tmp_path), calls(4, "describe")))
    assert {outcome.facts["threads"] for outcome in outcomes} == {1}


def test_close_leaves_no_process(tmp_path):
    runner = ProcessRunner(2)
    pids = {outcome.facts["pid"] for outcome in runner.run(perform, area(tmp_path), calls(8, "meet", processes=2))}
    runner.close()
    runner.close()
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


DRIVER = """
import json, sys
from pathlib import Path
from nearcast.runners.processes import ProcessRunner
from runner_tasks import area, calls, perform
runner = ProcessRunner(2)
for outcome in runner.run(perform, area(Path(sys.argv[1])), calls(2)):
    print(outcome.facts["pid"], flush=True)
list(runner.run(perform, area(Path(sys.argv[1]) / "long"), calls(2, seconds=60)))
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_two_workers_in_the_middle_of_a_task_end_with_their_driver(tmp_path, end):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        text=True,
    )
    with driver:
        wait_for(lambda: len(list((tmp_path / "long" / "results" / "join").glob(".attempt-*"))) == 2)
        workers = psutil.Process(driver.pid).children()
        assert len(workers) == 2
        driver.send_signal(end)
        driver.wait(PATIENCE)
    wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))


def test_a_task_that_prints_or_reads_standard_input_disturbs_nothing(tmp_path, capfd):
    with ProcessRunner(1) as runner:
        outcomes = list(runner.run(perform, area(tmp_path), [TaskCall("join/000000", "talk", {})]))
    assert outcomes[0].facts == {"read": ""}
    assert json.dumps({"outcome": "mine"}) in capfd.readouterr().err


def test_a_function_that_no_worker_can_import_is_refused_before_a_worker_starts(tmp_path):
    with ProcessRunner(1) as runner:
        with pytest.raises(
            WorkerError, match=r"workers import the task function by its name, got .*<lambda>; define it"
        ):
            list(runner.run(lambda place, call: None, area(tmp_path), calls(1)))
        assert runner._pool == []


def wait_for(is_true):
    deadline = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
