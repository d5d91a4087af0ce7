"""Real servers for tests: a Redis of our own on a free port, and a proxy before it that cuts, delays and restores."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from needs import require_module

HERE = "127.0.0.1"
PATIENCE = 120.0  # seconds for a server to come up; much more than it ever takes
PORTS = range(20_000, 32_000)  # the system gives higher ones to connections, also while a server is restarted


def free_port() -> int:
    """A port that nobody listens on, and that no other process of these tests is given while this one lives."""
    claims = Path(tempfile.gettempdir()) / f"nearcast-test-ports-{os.getuid()}"
    claims.mkdir(exist_ok=True)
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        claim = os.open(claims / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)  # held until this process ends
        with contextlib.suppress(OSError), socket.socket() as found:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.bind((HERE, port))
            return port
        os.close(claim)
    raise AssertionError("every port for tests is taken")


def redis_program() -> str:
    """redis-server or valkey-server; skips the test where neither is installed."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    require_module("redis")
    return program


class RedisServer:
    """A Redis in a folder of its own, which can be stopped and started again."""

    def __init__(self, program: str, folder: Path, *settings: str) -> None:
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self._command = [program, "--bind", HERE, "--port", str(self.port), "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "no", *settings]
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its first database."""
        return f"redis://{HERE}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None, "it runs"
        return self._process.pid

    def start(self) -> RedisServer:
        """Start it and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "redis-server does not come up"
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HERE, self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(100)[:1] in (b"+", b"-")  # -NOAUTH is an answer too
        return False

    def kill(self) -> None:
        """Kill it at once; it keeps nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def redis_running(folder: Path, *settings: str) -> Iterator[RedisServer]:
    """A Redis with these settings for a while."""
    server = RedisServer(redis_program(), folder, *settings)
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for all tests of a session."""
    with redis_running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty database."""
    with socket.create_connection((HERE, redis_server.port), timeout=PATIENCE) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(100).startswith(b"+OK")
    return redis_server.url


class Proxy:
    """Passes bytes on to a port, until it is told to cut every connection, or to be slow."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server((HERE, 0))
        self.port = int(self._listener.getsockname()[1])
        self.delay = 0.0  # seconds that every answer waits
        self.bytes_until_cut: int | None = None  # of requests: then every connection is cut, as by `cut`
        self.requests_to_drop = 0  # so many are not passed on, and break their connection
        self._down = False
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection, and accept none that lasts."""
        self._down = True
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def drop(self) -> None:
        """Break every connection, but accept new ones."""
        self.cut()
        self.restore()

    def restore(self) -> None:
        """Be as at first."""
        self.delay, self.bytes_until_cut, self.requests_to_drop, self._down = 0.0, None, 0, False

    def close(self) -> None:
        """Stop listening."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                if self._down:
                    client.close()
                    continue
                server = socket.create_connection((HERE, self._target))
                self._open += [client, server]
                for source, sink, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=(source, sink, answers), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(1 << 16):
                if answers and self.delay:
                    time.sleep(self.delay)
                if not answers and self.bytes_until_cut is not None:
                    self.bytes_until_cut -= len(data)
                    if self.bytes_until_cut <= 0:
                        self.cut()
                        return
                if not answers and self.requests_to_drop:
                    self.requests_to_drop -= 1
                    sink.shutdown(socket.SHUT_RDWR)
                    return
                sink.sendall(data)


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    """A proxy before the Redis of the session."""
    made = Proxy(redis_server.port)
    yield made
    made.close()
