"""The runner `spark` on a real cluster of a master and two workers: the contract, killed workers and executors."""

from __future__ import annotations

import pytest
from cluster_contract import ClusterContract

from nearcast.errors import SpecError
from nearcast.runners import make_runner
from runner_tasks import area, attempts, calls, committed, perform


@pytest.fixture(scope="module")
def runner(spark_runner):
    return spark_runner


class TestOnSpark(ClusterContract):
    """The suite."""

    lost = "Spark ended its job: .*crashed"


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
