"""An S3 server for tests: moto on a free port of 127.0.0.1, which can be stopped and started again.

Import the fixtures `s3_server` (one server for a session) and `s3_url` (an empty folder in its bucket) where needed.
A restarted server has lost its objects, unless it is restarted with `keep=True`: then it has them before it listens.
"""

from __future__ import annotations

import contextlib
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from needs import require_module
from servers import HERE, PATIENCE, free_port

BUCKET = "bucket"
PROCESS = Path(__file__).with_name("s3_process.py")


class S3Server:
    """A server with one bucket. `environment` is what a process needs to reach it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._log = folder / "moto.log"
        self._kept = folder / "moto.objects"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://{HERE}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return environment_of(self.endpoint)

    def start(self, objects: dict[str, bytes] | None = None) -> S3Server:
        """Start it with these objects in its bucket and wait until it answers."""
        self._kept.write_bytes(pickle.dumps(objects or {}))
        command = [sys.executable, str(PROCESS), str(self.port), BUCKET, str(self._kept)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "moto does not come up"
            time.sleep(0.05)
        return self

    def kill(self) -> None:
        """Kill it at once; its objects are lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self, *, keep: bool = False, pause: float = 0.0) -> None:
        """End it at once, wait, and start it on the same port: empty, or with every object that it had."""
        kept = {}
        if keep and self._process is not None:
            self._process.send_signal(signal.SIGUSR1)
            self._process.wait(PATIENCE)
            kept = pickle.loads(self._kept.read_bytes())
        self.kill()
        time.sleep(pause)
        self.start(kept)

    def list_names(self) -> list[str]:
        """Return the names of all objects of the bucket."""
        with reach(self.endpoint):
            import obstore
            from obstore.store import S3Store

            return [each["path"] for chunk in obstore.list(S3Store(BUCKET)) for each in chunk]

    def read_all(self) -> dict[str, bytes]:
        """Return all objects of the bucket."""
        with reach(self.endpoint):
            import obstore
            from obstore.store import S3Store

            store = S3Store(BUCKET)
            keys = [each["path"] for chunk in obstore.list(store) for each in chunk]
            return {key: bytes(obstore.get(store, key).bytes()) for key in keys}

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HERE, self.port), timeout=1):
            return True
        return False


def environment_of(endpoint: str) -> dict[str, str]:
    """Return the variables by which a process reaches an S3 server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1",
    }


@contextlib.contextmanager
def reach(endpoint: str) -> Iterator[None]:
    """Set the variables of an endpoint for a while."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment_of(endpoint).items():
            patched.setenv(name, value)
        yield


@contextlib.contextmanager
def s3_running(folder: Path) -> Iterator[S3Server]:
    """A server for a while."""
    require_module("moto")
    require_module("obstore")
    server = S3Server(folder)
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests of a session."""
    with s3_running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty folder in the bucket; the environment leads there."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"


__all__ = ["BUCKET", "S3Server", "environment_of", "reach", "s3_running", "s3_server", "s3_url"]
