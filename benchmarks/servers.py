"""Start and stop redis-server and `nearcast serve`, each on one core, and measure their processor time."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

HERE = "127.0.0.1"
STARTING_SECONDS = 600  # an online index may have to be built first
STOPPING_SECONDS = 30


class Server:
    """A process that serves, and what it has used."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port
        self._looked_at = psutil.Process(process.pid)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def cpu_seconds(self) -> float:
        """Processor time that it and its children have taken so far, in user and system mode."""
        processes = [self._looked_at, *self._looked_at.children(recursive=True)]
        return sum(times.user + times.system for times in (p.cpu_times() for p in processes))


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as found:
        found.bind((HERE, 0))
        return int(found.getsockname()[1])


def cores() -> tuple[int, int]:
    """Return one core for the server and another for the client; the same core if there is only one."""
    if not hasattr(os, "sched_getaffinity"):
        return 0, 0
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def hold(core: int) -> None:
    """Pin this process and its children to a core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def on_core(core: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function, from a fresh process that is held to a core."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=hold, initargs=(core,)) as pool:
        return pool.submit(function, *arguments).result()


def stolen_seconds() -> float:
    """Processor time that a hypervisor has given to others although this machine wanted it, of its worst core."""
    return max(float(getattr(times, "steal", 0.0)) for times in psutil.cpu_times(percpu=True))


@contextlib.contextmanager
def redis_server(folder: Path, core: int) -> Iterator[Server]:
    """A Redis that keeps nothing on disk."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        sys.exit("redis-server is not installed (apt-get install redis-server); leave the parts that need it out")
    port = free_port()
    command = [program, "--bind", HERE, "--port", str(port), "--dir", str(folder), "--save", "", "--appendonly", "no"]
    with _running(command, port, folder / "redis.log", core) as server:
        yield server


@contextlib.contextmanager
def nearcast_server(words: Sequence[object], folder: Path, core: int | None, name: str = "serve") -> Iterator[Server]:
    """`nearcast serve` with these words, ready to be asked. core: the one that it is held to, if any."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("nearcast")), "serve", *map(str, words), "--port", str(port)]
    log = folder / f"{name}.log"
    with _running(command, port, log, core) as server:
        _wait(lambda: _is_ready(port), server.process, log)
        yield server


@contextlib.contextmanager
def _running(command: Sequence[str], port: int, log: Path, core: int | None) -> Iterator[Server]:
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, preexec_fn=lambda: core is None or hold(core))
    try:
        _wait(lambda: _listens(port), process, log)
        yield Server(process, port)
    finally:
        process.terminate()
        try:
            process.wait(STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(is_up: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while not is_up():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{' '.join(map(str, process.args))} does not come up:\n{log.read_text()[-2000:]}")  # type: ignore[arg-type]
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HERE, port), timeout=1):
        return True
    return False


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(HERE, port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False
