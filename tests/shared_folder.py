"""A folder that all workers of a test run share: made by the first that needs it, for reading only."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder; make it if no worker has. If `make` raises, the next worker tries in another folder."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    link = root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not link.exists():
            folder = factory.mktemp(name)
            make(folder)
            link.write_text(str(folder), encoding="utf-8")
        return Path(link.read_text(encoding="utf-8"))
