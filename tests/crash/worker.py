"""A run of a generator in a process of its own, to be killed."""

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import nearcast.join.run  # noqa: F401 (imported once, by the server that the processes are forked from)
from nearcast.api.runs import run
from nearcast.knn import query_splits


def work(spec: Path, log: Path | None, halt: tuple[str, int] | None) -> None:
    """Run a generator. halt: once a file of this pattern is in its folder, a signal comes before any further file."""
    if log is not None:
        logging.basicConfig(filename=log, level=logging.INFO, format="%(message)s")
    if halt is not None:
        signal_when(spec.parent / "nearcast" / "g", *halt)
    query_splits.SMALLEST_TASK = query_splits.TASK_BYTES = 64  # many tasks, so that a kill lands between two of them
    run(spec)


def signal_when(folder: Path, pattern: str, number: int) -> None:
    """Send a signal to this process, once, before the first use of a file after one of this pattern has appeared.

    Whoever waits for the file in another process may come too late: on a busy machine the run has ended by then.
    """
    looking, sent = threading.local(), []

    def look(event: str, _: tuple[Any, ...]) -> None:
        if sent or getattr(looking, "now", False) or not event.startswith(("open", "os.", "shutil.")):
            return
        looking.now = True
        if any(folder.glob(pattern)):
            sent.append(number)
            os.kill(os.getpid(), number)
        looking.now = False

    sys.addaudithook(look)
