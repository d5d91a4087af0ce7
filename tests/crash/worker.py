"""A run of a generator in a process of its own, to be killed."""

import logging
from pathlib import Path

import nearcast.join.run  # noqa: F401 (imported once, by the server that the processes are forked from)
from nearcast.api.runs import run
from nearcast.knn import query_splits


def work(spec: Path, log: Path | None) -> None:
    if log is not None:
        logging.basicConfig(filename=log, level=logging.INFO, format="%(message)s")
    query_splits.SMALLEST_TASK = query_splits.TASK_BYTES = 64  # many tasks, so that a kill lands between two of them
    run(spec)
