"""Spark with speculation on, whose executors have no native kernels: a session of its own."""

from __future__ import annotations

import pytest
from cluster_run import bytes_of, make_spec, write_inputs

import nearcast
from nearcast.errors import WorkerError
from nearcast.runners import make_runner
from runner_tasks import area, attempts, calls, committed, perform

pytestmark = pytest.mark.slow  # a session of its own


@pytest.fixture(scope="module")
def runner(spark_cluster):
    conf = spark_cluster.conf() | {
        "spark.speculation": "true",
        "spark.speculation.interval": "200ms",
        "spark.speculation.minTaskRuntime": "200ms",
        "spark.speculation.multiplier": "1.5",
        "spark.speculation.quantile": "0.5",
        "spark.executorEnv.NEARCAST_ISA": "numpy",
    }
    made = make_runner("spark", 16, options={"master": spark_cluster.url, "conf": conf})
    yield made
    made.close()


def test_1_of_8_calls_that_hangs_is_run_a_second_time_by_speculation_and_committed_once(runner, tmp_path):
    place, quiet = area(tmp_path / "slow"), area(tmp_path / "quiet")
    list(runner.run(perform, quiet, calls(8)))
    outcomes = list(runner.run(perform, place, calls(8, "hang first", victim=2, seconds=600)))
    assert len(outcomes) == 8
    assert attempts(place)["join/000002"] == 2
    assert sum(attempts(place).values()) <= 2 * 8
    assert committed(place, killed=None) == committed(quiet)


def test_executors_without_native_kernels_refuse_a_run_below_recall_1(runner, tmp_path):
    write_inputs(tmp_path)
    with pytest.raises(WorkerError, match=r"has no native kernels \(NEARCAST_ISA asks for it\)"):
        nearcast.run(make_spec(tmp_path, "refused", recall=0.9), runner=runner)


def test_executors_without_native_kernels_have_the_bytes_of_the_driver_at_recall_1(runner, tmp_path):
    write_inputs(tmp_path)
    alone = nearcast.run(make_spec(tmp_path, "alone")).snapshot
    assert bytes_of(nearcast.run(make_spec(tmp_path, "spark"), runner=runner).snapshot) == bytes_of(alone)
