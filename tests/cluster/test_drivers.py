"""Drivers of runs on real clusters: one that is killed and continued by another, and two at once on one plan."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from cluster_run import bytes_of, make_spec, write_inputs

import nearcast
from nearcast.api.distributed import plan_run
from nearcast.table.snapshot import list_snapshots

PATIENCE = 300.0  # seconds; much more than a run ever takes
RUN = """
import json, sys
import nearcast
from nearcast.runners import make_runner
name, options, spec = sys.argv[1], *map(json.loads, sys.argv[2:])
nearcast.run(spec, runner=make_runner(name, options=options))
"""
GATHER = """
import json, os, sys
from nearcast.api.distributed import gather_run
from nearcast.runners import make_runner
name, options, work = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
if name == "ray":
    import ray
    variables = {key: value for key, value in os.environ.items() if key.startswith(("AWS_", "NEARCAST_"))}
    ray.init(address=options["address"], runtime_env={"env_vars": variables}, logging_level="WARNING")
print(gather_run(work, runner=make_runner(name, options=options)).snapshot.name)
"""
SHARDS = {"run": {"shards": 3}}  # so that stages have several tasks


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def on_this_machine(inputs):
    return nearcast.run(make_spec(inputs, "undisturbed")).snapshot


def options_of(name, request, variables=()):
    """The options of a runner of this name; environment variables of its workers."""
    cluster = request.getfixturevalue(f"{name}_cluster")
    if name == "ray":
        return {"address": cluster.address}
    return {
        "master": cluster.url,
        "conf": cluster.conf() | {f"spark.executorEnv.{key}": os.environ[key] for key in variables},
    }


def start(script, *words, output=subprocess.PIPE, **variables):
    command = [sys.executable, "-c", script, *(word if isinstance(word, str) else json.dumps(word) for word in words)]
    return subprocess.Popen(command, env=os.environ | variables, stdout=output, stderr=output, text=True)


@pytest.mark.parametrize("name", [pytest.param("spark", marks=pytest.mark.slow), "ray"])
def test_a_run_whose_driver_is_killed_by_sigkill_is_continued_with_the_same_bytes(
    name, inputs, on_this_machine, request
):
    spec = make_spec(inputs, f"{name} killed", **SHARDS)
    with (inputs / f"{name} driver.log").open("w") as log:  # a pipe that nobody reads would fill up
        driver = start(RUN, name, options_of(name, request), spec, output=log)
    work, deadline = inputs / f"{name} killed" / "small" / "work", time.monotonic() + PATIENCE
    while not any(work.glob("index/*/manifest.json")):
        assert driver.poll() is None, (inputs / f"{name} driver.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    assert driver.returncode == -signal.SIGKILL
    assert list_snapshots(inputs / f"{name} killed", "small") == []
    snapshot = nearcast.run(spec, runner=request.getfixturevalue(f"{name}_runner")).snapshot
    assert bytes_of(snapshot) == bytes_of(on_this_machine)


@pytest.mark.slow
def test_two_drivers_at_once_on_one_plan_make_one_snapshot_with_the_same_bytes(
    inputs, on_this_machine, request, s3_url, tmp_path, monkeypatch
):
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "workers"))
    variables = [key for key in os.environ if key.startswith(("AWS_", "NEARCAST_"))]
    plan_run(make_spec(inputs, "", **SHARDS) | {"out": f"{s3_url}/out"}, f"{s3_url}/work")
    drivers = [
        start(GATHER, name, options_of(name, request, variables), f"{s3_url}/work", NEARCAST_CACHE=str(tmp_path / name))
        for name in ("spark", "ray")
    ]
    told = [driver.communicate(timeout=PATIENCE) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], told
    assert {out.split()[-1] for out, _ in told} == {"000001"}
    [snapshot] = list_snapshots(f"{s3_url}/out", "small")
    hashes = [
        {path: facts for path, facts in one.manifest.as_dict()["files"].items() if path.endswith(".parquet")}
        for one in (snapshot, *list_snapshots(inputs / "undisturbed", "small"))
    ]
    assert hashes[0] == hashes[1]
