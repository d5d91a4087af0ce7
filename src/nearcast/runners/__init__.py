"""Runners run lists of tasks: the contract is in `base.py`, each runner in one file. They know nothing of kNN.

To add one: a module with a class like `processes.ProcessRunner`, and a row of RUNNERS.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from nearcast.errors import SpecError
from nearcast.runners.base import Runner
from nearcast.suggest import suggest_name

__all__ = ["RUNNERS", "make_runner"]

# By name: (workers, options) -> Runner, as module:function; imported when used.
RUNNERS = {
    "local": "nearcast.runners.local:make_local_runner",
    "processes": "nearcast.runners.processes:make_process_runner",
    "ray": "nearcast.runners.ray_runner:make_ray_runner",
    "spark": "nearcast.runners.spark_runner:make_spark_runner",
}


def make_runner(name: str, workers: int | None = None, options: Mapping[str, Any] | None = None) -> Runner:
    """Return a runner. Starts no worker.

    workers: processes of `processes`, or tasks at once of an engine. options: settings of an engine, see the module.
    Raises SpecError for an unknown runner or option, MissingExtraError if the engine is not installed.
    """
    if name not in RUNNERS:
        raise SpecError(
            f"runner must be one of {', '.join(RUNNERS)}, got {name!r}; {suggest_name(name, RUNNERS, 'use')}"
        )
    if workers is not None and workers < 1:
        raise SpecError(f"workers must be at least 1, got {workers}")
    module, _, function = RUNNERS[name].partition(":")
    runner: Runner = getattr(import_module(module), function)(workers, dict(options or {}))
    return runner
