"""Whole runs on a real Spark cluster and a real Ray cluster: the bytes of a run on this machine alone."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from functools import cache

import psutil
import pytest
from cluster_run import RULES, bytes_of, make_spec, write_inputs

import nearcast
from builders import write_parquet
from nearcast.errors import InputError
from nearcast.runners import make_runner

CASES = {
    "recall 1": {},
    "recall 0.9": {"recall": 0.9},
    "rules and caps": RULES,
    "3 shards": {"run": {"shards": 3}},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def on_this_machine(inputs):
    """The bytes of each case, run in this process; at recall 1, shards do not change them."""
    return cache(lambda case: bytes_of(nearcast.run(make_spec(inputs, f"local {case}", **CASES[case])).snapshot))


QUICK = (
    "rules and caps"  # of the cases on a cluster; the others are slow tests, as are runs in processes of this machine
)
SLOW = pytest.mark.slow
ALL_CASES = [pytest.param(case, marks=() if case == QUICK else SLOW) for case in CASES]


@pytest.fixture(scope="module", params=[pytest.param("processes", marks=SLOW), "ray", "spark"])
def runner(request):
    """A runner of two workers."""
    if request.param != "processes":
        yield request.getfixturevalue(f"{request.param}_runner")
        return
    with closing(make_runner("processes", 2)) as made:
        yield made


@pytest.mark.parametrize("case", ALL_CASES)
def test_a_run_has_the_bytes_of_a_run_on_this_machine(runner, inputs, on_this_machine, case):
    spec = make_spec(inputs, f"{runner.name} {case}", **CASES[case])
    assert bytes_of(nearcast.run(spec, runner=runner).snapshot) == on_this_machine(case)


@pytest.fixture(scope="module")
def changed_inputs(tmp_path_factory):
    """The inputs of the next night."""
    folder = tmp_path_factory.mktemp("changed")
    write_inputs(folder, changed=40)
    return folder


@SLOW
@pytest.mark.parametrize("case", [case for case in CASES if case != "recall 0.9"])
def test_an_incremental_run_has_the_bytes_of_a_full_run_on_this_machine(runner, inputs, changed_inputs, case, tmp_path):
    settings = {**CASES[case], "run": {**CASES[case].get("run", {}), "incremental": True}}
    for folder in (inputs, changed_inputs):
        full = nearcast.run(make_spec(folder, str(tmp_path / "full"), **CASES[case])).snapshot
        snapshot = nearcast.run(make_spec(folder, str(tmp_path / "out"), **settings), runner=runner).snapshot
    mode = snapshot.manifest.run.incremental
    assert mode["incremental"], mode["reason"]
    assert bytes_of(snapshot) == bytes_of(full)


class Twice:
    """Runs every call of another runner twice at once."""

    def __init__(self, runner):
        self._runner = runner
        self.name, self.on_this_host = f"{runner.name} twice", runner.on_this_host
        self.ended = 0

    def run(self, perform, area, calls):
        seen = set()
        for outcome in self._runner.run(perform, area, [call for call in calls for _ in range(2)]):
            self.ended += 1
            if outcome.name not in seen:
                seen.add(outcome.name)
                yield outcome

    def close(self):
        self._runner.close()


@SLOW
def test_a_run_whose_every_task_is_run_twice_at_once_has_the_same_bytes(runner, inputs, on_this_machine):
    twice = Twice(runner)
    snapshot = nearcast.run(make_spec(inputs, f"{runner.name} twice", recall=0.9), runner=twice).snapshot
    assert bytes_of(snapshot) == on_this_machine("recall 0.9")
    assert twice.ended % 2 == 0
    print(f"{twice.ended} attempts of {twice.ended // 2} tasks on {runner.name}")


def test_bad_input_that_a_worker_finds_is_an_input_error_of_the_driver_with_the_place(runner, inputs):
    spec = make_spec(inputs, f"{runner.name} bad")
    write_parquet(inputs / "twice.parquet", ["a", "b", "a"], [[1.0] * 16] * 3)
    spec["items"] = {"path": str(inputs / "twice.parquet")}
    with pytest.raises(InputError, match=r"(?s)twice\.parquet.*row"):
        nearcast.run(spec, runner=runner)


def test_a_run_of_which_up_to_3_workers_are_killed_by_sigkill_has_the_same_bytes(runner, inputs, on_this_machine):
    killed, stop = [], threading.Event()
    thread = threading.Thread(target=kill_workers, args=(runner.name, killed, stop))
    thread.start()
    try:
        snapshot = nearcast.run(make_spec(inputs, f"{runner.name} killed", recall=0.9), runner=runner).snapshot
    finally:
        stop.set()
        thread.join()
    assert bytes_of(snapshot) == on_this_machine("recall 0.9")
    print(f"{len(killed)} workers killed on {runner.name}")


def kill_workers(name, killed, stop):
    """SIGKILL the youngest worker, three times or until the run has ended."""
    while len(killed) < 3 and not stop.wait(0.4):
        workers = [process for process in descendants() if is_worker(name, process)]
        if workers:
            victim = max(workers, key=lambda process: process.create_time())
            killed.append(victim.pid)
            victim.kill()


def descendants():
    """All processes below this one: clusters are its children, too."""
    return [process for process in psutil.Process(os.getpid()).children(recursive=True) if process.is_running()]


def is_worker(name, process):
    try:
        line = " ".join(process.cmdline())
        if name == "processes":
            return "nearcast.runners.process_worker" in line
        if name == "ray":
            return line.startswith("ray::perform_on_ray")
        return "pyspark.daemon" in line and "pyspark.daemon" in " ".join(process.parent().cmdline())
    except psutil.Error:
        return False
