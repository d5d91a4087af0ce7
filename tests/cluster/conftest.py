"""Clusters for the tests in this folder: started once, on loopback, in a network namespace of their own."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from namespace import enter_namespace
from spark_cluster import SparkCluster, java

from nearcast.runners import make_runner
from nearcast.runners.base import Runner
from needs import require_module

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in this folder. Libraries of a cluster warn of each other; that is not what is tested."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("cluster")
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session", autouse=True)
def _own_network() -> None:
    refusal = enter_namespace()
    if refusal is not None:
        pytest.skip(refusal)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"


@pytest.fixture(scope="session")
def spark_cluster(_own_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    """A master and two workers."""
    java()
    cluster = SparkCluster(tmp_path_factory.mktemp("spark"))
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def ray_cluster(_own_network: None) -> Iterator[Any]:
    """Two nodes with a core each."""
    require_module("ray")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(TESTS)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        small = {"num_cpus": 1, "object_store_memory": 80_000_000}
        cluster = Cluster(initialize_head=True, head_node_args=small)
        try:
            cluster.add_node(**small)
            cluster.wait_for_nodes(timeout=300)
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def spark_runner(spark_cluster: SparkCluster) -> Iterator[Runner]:
    """The runner, with a session of its own."""
    runner = make_runner("spark", options={"master": spark_cluster.url, "conf": spark_cluster.conf()})
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def ray_runner(ray_cluster: Any) -> Iterator[Runner]:
    """The runner, connected to the cluster of this process."""
    import ray

    runner = make_runner("ray", options={"address": ray_cluster.address})
    yield runner
    runner.close()
    ray.shutdown()
