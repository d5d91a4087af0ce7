"""A real `nearcast serve` on a free port, for tests that ask it over real connections."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.end_to_end.shop import NEARCAST, environment

PATIENCE = 180.0  # seconds for what takes less than one


class Service:
    """A running service: its address, what it has said, and how to stop it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.port = 0

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def said(self) -> str:
        """What it has written to standard error."""
        return self._log.read_text(encoding="utf-8")

    def get(self, path: str, **more: Any) -> httpx.Response:
        """Ask on a connection of its own."""
        return httpx.get(self.url + path, timeout=PATIENCE, trust_env=False, **more)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        """Ask with JSON, on a connection of its own."""
        return httpx.post(self.url + path, json=body, timeout=PATIENCE, trust_env=False, **more)

    def metric(self, line: str) -> float:
        """The value of a line of the metrics."""
        found = [text for text in self.get("/metrics").text.splitlines() if text.startswith(f"{line} ")]
        return float(found[0].rpartition(" ")[2])

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to stop, and wait until it has. Returns its exit code."""
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    def began(self) -> bool:
        """Whether it takes connections by now."""
        found = re.search(r"^serving .* on http://\S+:(\d+)$", self.said, re.MULTILINE)
        assert found or self.process.poll() is None, self.said
        self.port = int(found[1]) if found else 0
        return found is not None


@contextmanager
def running(folder: Path, *words: object, port: int = 0, **env: str) -> Iterator[Service]:
    """`nearcast serve` with these words, until it answers; killed at the end if it was not stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "service.log"
    command = [str(NEARCAST), "serve", "--port", str(port), *map(str, words)]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=folder, env=environment(**env), stdout=sink, stderr=sink)
    service = Service(process, log)
    try:
        until(service.began)
        yield service
        assert "Traceback" not in service.said
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def until(holds: Callable[[], object]) -> None:
    """Wait for something that comes about by itself."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.02)
