"""A DynamoDB server for tests: moto on a free port of 127.0.0.1."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from needs import require_module
from servers import HERE, PATIENCE, free_port

REGION, TABLE = "eu-west-1", "candidates"
# One request at a time: moto restores a copy of all tables when a transaction fails, and would undo those beside it.
PROGRAM = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple(sys.argv[1], int(sys.argv[2]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class DynamoServer:
    """A server, and a plain client of it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._log = folder / "moto.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://{HERE}:{self.port}"

    @property
    def url(self) -> str:
        """The URL of a store there."""
        return f"dynamodb://{REGION}/{TABLE}?endpoint={self.endpoint}&create=true"

    def client(self) -> Any:
        """A plain client."""
        return require_module("boto3").client("dynamodb", region_name=REGION, endpoint_url=self.endpoint)

    def start(self) -> DynamoServer:
        """Start it and wait until it answers."""
        command = [sys.executable, "-c", PROGRAM, HERE, str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.client().list_tables()
                return self
            except Exception:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, "moto does not come up"
                time.sleep(0.05)

    def items(self, partition: str) -> list[dict[str, Any]]:
        """The items of a partition."""
        pages = self.client().get_paginator("scan").paginate(TableName=TABLE)
        return [item for page in pages for item in page["Items"] if item["p"]["B"] == partition.encode()]

    def kill(self) -> None:
        """Kill it at once; its tables are lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def dynamodb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamoServer]:
    """One server for all tests of a session."""
    require_module("boto3")
    require_module("moto")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in CREDENTIALS.items():
            patched.setenv(name, value)
        server = DynamoServer(tmp_path_factory.mktemp("dynamodb"))
        try:
            yield server.start()
        finally:
            server.kill()


@pytest.fixture
def dynamodb_url(dynamodb_server: DynamoServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store without a table."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    client = dynamodb_server.client()
    if TABLE in client.list_tables()["TableNames"]:
        client.delete_table(TableName=TABLE)
    return dynamodb_server.url
