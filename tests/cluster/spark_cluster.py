"""A Spark standalone cluster of a master and two workers, and a Spark Connect server on it, all on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from needs import require_module
from servers import HERE, free_port

TESTS = Path(__file__).resolve().parents[1]
PATIENCE = 300.0  # seconds for a server to come up; much more than it ever takes
QUICK = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]  # these JVMs live for a minute
WORKERS, CORES = 2, 3  # each worker has cores for three sessions: Connect, that of a module, and that of one test


def java() -> str:
    """The JVM; skips the test where there is none."""
    require_module("pyspark")
    program = shutil.which("java")
    if program is None:
        pytest.skip("java is not installed (apt-get install openjdk-17-jre-headless)")
    return program


class SparkCluster:
    """The processes of the cluster. `stop` ends all of them."""

    def __init__(self, folder: Path) -> None:
        import pyspark

        self.home = Path(pyspark.__path__[0])
        self.folder = folder
        self.url = f"spark://{HERE}:{free_port()}"
        self.remote = ""
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "SPARK_HOME": str(self.home),
            "SPARK_SCALA_VERSION": next(self.home.glob("jars/spark-core_*")).name.split("_")[1].split("-")[0],
            "SPARK_LOCAL_IP": HERE,
            "PYSPARK_PYTHON": sys.executable,
            "PYTHONPATH": str(TESTS),
        }

    def start(self) -> SparkCluster:
        """Start the master and the workers, and wait until the workers are registered."""
        port = self.url.rpartition(":")[2]
        place = ["--host", HERE, "--webui-port", "0", "--port", port]
        self._start("master", "org.apache.spark.deploy.master.Master", place)
        for number in range(WORKERS):
            host = f"127.0.0.{number + 1}"  # two hosts: speculation runs a task on another host
            place = ["--host", host, "--webui-port", "0", "--work-dir", str(self.folder / f"work{number}")]
            room = ["--cores", str(CORES), "--memory", "2g"]
            self._start(f"worker{number}", "org.apache.spark.deploy.worker.Worker", [*place, *room, self.url], host)
        self._wait(lambda: (self.folder / "master.log").read_text().count("Registering worker") == WORKERS)
        return self

    def start_connect(self) -> str:
        """Start a Spark Connect server on the cluster; return its URL."""
        if not self.remote:
            port = free_port()
            conf = {
                **self.conf(),
                "spark.connect.grpc.binding.port": str(port),
                "spark.connect.grpc.binding.address": HERE,
            }
            conf |= {"spark.driver.host": HERE, "spark.driver.bindAddress": HERE}
            options = [part for key, value in conf.items() for part in ("--conf", f"{key}={value}")]
            server = ["--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal"]
            self._start("connect", "org.apache.spark.deploy.SparkSubmit", ["--master", self.url, *options, *server])
            self._wait(lambda: answers(port))
            self.remote = f"sc://{HERE}:{port}"
        return self.remote

    def conf(self) -> dict[str, str]:
        """The configuration of a session: one core and one executor on each worker."""
        return {
            "spark.cores.max": str(WORKERS),
            "spark.executor.cores": "1",
            "spark.executor.memory": "512m",
            "spark.executor.extraJavaOptions": " ".join(QUICK),
            "spark.executorEnv.PYTHONPATH": str(TESTS),
            "spark.driver.host": HERE,
            "spark.driver.bindAddress": HERE,
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.sql.shuffle.partitions": "2",
        }

    def stop(self) -> None:
        """End all processes; the executors end with their workers."""
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name: str, program: str, arguments: list[str], host: str = HERE) -> None:
        jars = f"{self.home / 'conf'}:{self.home / 'jars'}/*"
        environment = {**self.environment, "SPARK_LOCAL_IP": host}
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [java(), *QUICK, "-Xmx512m", *MODULES, "-cp", jars, program, *arguments]
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))

    def _wait(self, is_up: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_up():
            dead = [process.args for process in self.processes if process.poll() is not None]
            assert not dead, [path.read_text()[-2000:] for path in self.folder.glob("*.log")]
            assert time.monotonic() < deadline, [path.read_text()[-2000:] for path in self.folder.glob("*.log")]
            time.sleep(0.1)


def answers(port: int) -> bool:
    """Whether somebody listens on a port."""
    with contextlib.suppress(OSError), socket.create_connection((HERE, port), timeout=1):
        return True
    return False


# What spark-class adds for Java 17: Spark uses parts of the JDK that modules hide.
MODULES = [
    "-XX:+IgnoreUnrecognizedVMOptions",
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in (
            *("java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.util"),
            *("java.util.concurrent", "java.util.concurrent.atomic", "sun.nio.ch", "sun.nio.cs", "sun.security.action"),
            *("sun.util.calendar", "jdk.internal.ref"),
        )
    ),
    "-Djdk.reflect.useDirectMethodHandle=false",
    "-Dio.netty.tryReflectionSetAccessible=true",
]
