"""The site, built once, and a server for it on this machine."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.documentation.pages import ROOT

from shared_folder import make_once

PROGRAM = ROOT / ".docs-site" / "bin" / "zensical"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site. Fails unless it builds in strict mode, without a warning."""
    if not PROGRAM.exists():
        pytest.skip("Zensical is not installed (make docs-site)")
    return make_once(tmp_path_factory, "documentation", build_site) / "project" / "site"


def build_site(folder: Path) -> None:
    command = [sys.executable, str(ROOT / "docs" / "build_site.py"), str(folder / "project")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "warning" not in said.lower(), said


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(10)
