"""The contract of a runner, one suite for all of them. A new runner is a row in RUNNERS and passes this.

The runners of clusters pass it in tests/cluster.
"""

from __future__ import annotations

import os

import pytest

from nearcast.errors import SpecError
from nearcast.runners import make_runner
from runner_contract import RunnerContract
from runner_tasks import area, calls, perform


@pytest.fixture(params=["local", "processes"], scope="module")
def runner(request):
    """One runner for all tests: a failed run must leave it usable."""
    made = make_runner(request.param)
    yield made
    made.close()


class TestOnThisMachine(RunnerContract):
    """The suite, on runners that need nothing but Python."""


def test_an_unknown_runner_is_an_error_with_a_suggestion():
    with pytest.raises(SpecError, match="got 'proceses'; did you mean 'processes'"):
        make_runner("proceses")


@pytest.mark.parametrize("name", ["local", "processes"])
def test_an_unknown_option_is_an_error(name):
    with pytest.raises(SpecError, match=f"runner '{name}' has no option 'nodes'; it has no options"):
        make_runner(name, options={"nodes": 3})


def test_a_local_runner_has_one_worker():
    with pytest.raises(SpecError, match="runner 'local' has one worker, got 3; use 'processes'"):
        make_runner("local", 3)
    with pytest.raises(SpecError, match="workers must be at least 1, got 0"):
        make_runner("processes", 0)


def test_local_runs_in_this_process_and_raises_what_a_task_raises(tmp_path):
    runner = make_runner("local")
    assert {outcome.facts["pid"] for outcome in runner.run(perform, area(tmp_path), calls(3))} == {os.getpid()}
    with pytest.raises(ArithmeticError, match="an invariant is broken"):
        list(runner.run(perform, area(tmp_path / "b"), calls(3, "crash", victim=1)))
