"""The worker's part in a run: its preflight, the resources of its host, and the measurement of a task.

A worker takes part only if it writes the same bytes as the others. Takes threads and memory from its own host, never
from the driver. Knows nothing of kNN.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

from nearcast import machine
from nearcast.errors import BudgetError, InputError, MissingExtraError, SpecError, TargetError, WorkerError
from nearcast.kernels import isa_info
from nearcast.runners.base import TaskOutcome
from nearcast.runners.call_messages import describe_error
from nearcast.settings.base_table import parse_bytes
from nearcast.version import __version__

__all__ = [
    "ANY_KERNELS",
    "MEMORY_VARIABLE",
    "THREADS_VARIABLE",
    "HostResources",
    "TaskRoom",
    "describe_worker",
    "host_resources",
    "require_same_worker",
    "reserve_room",
    "run_task",
]

THREADS_VARIABLE = "NEARCAST_THREADS"
MEMORY_VARIABLE = "NEARCAST_MEMORY"
ARTIFACT_FORMAT = 1  # of tables, indexes and task results that workers exchange
NATIVE, NUMPY, ANY_KERNELS = "native", "numpy", "any"

# Errors that another attempt would meet again: the spec or the input has to change.
LASTING_ERRORS = (BudgetError, InputError, MissingExtraError, SpecError, TargetError)

# Libraries whose version changes the bytes of every run, and the parts of the version that do. PyArrow writes its full
# version into each Parquet file. NumPy may draw other random samples in another minor version. All others: in full.
LIBRARIES = {"pyarrow": 3, "numpy": 2}

_room: list[TaskRoom] = []  # of the task of this process; empty if no engine has reserved cores for it


@dataclass(frozen=True, slots=True)
class TaskRoom:
    """What an engine reserved for a task, and the tasks that it runs side by side. Sent with every call."""

    cores: int  # reserved for a task
    slots: int = 1  # tasks of the run that the engine has room for at once
    tasks: int = 1  # tasks of the stage that run at once: fewer than slots in a short stage

    def count_threads(self, host_cores: int) -> int:
        """Return the threads of a task: the reserved cores, or in a short stage a share of those of idle slots.

        All tasks of a stage together have no more threads than the run has reserved cores. Where they all run on one
        host, they have no more than the host has cores, unless the engine reserved more there.
        """
        shared = min(self.cores * self.slots, host_cores) // max(1, self.tasks)
        return min(host_cores, max(self.cores, shared))


@dataclass(frozen=True, slots=True)
class HostResources:
    """Threads and memory that this worker may use."""

    threads: int
    memory_bytes: int  # of the whole process, Python and its libraries included: as `memory` of a spec


def describe_worker(libraries: Sequence[str] = ()) -> dict[str, Any]:
    """Return what must be equal on all workers of a run: version, artifact format, kernels. Part of the plan.

    libraries: modules that the run needs and whose versions change its bytes, beside those of every run.
    """
    try:
        taken = isa_info().taken
    except SpecError as error:
        raise WorkerError(f"this worker cannot choose its kernels: {error}") from error
    return {
        "version": __version__,
        "format": ARTIFACT_FORMAT,
        "kernels": NUMPY if taken == "numpy" else NATIVE,
        "libraries": {name: _read_version(name) for name in (*LIBRARIES, *libraries)},
    }


def require_same_worker(plan: Mapping[str, Any]) -> None:
    """Raise WorkerError if this worker might write other bytes than the plan's driver. Keys that are missing match.

    Any native instruction set gives the same bytes. The NumPy fallback gives other bytes below recall 1; a plan for
    which that does not matter has `kernels = "any"`.
    """
    here = describe_worker()
    host = f"worker {os.uname().nodename} process {os.getpid()}"
    for key, name in (("version", "nearcast"), ("format", "the artifact format")):
        if plan.get(key, here[key]) != here[key]:
            raise WorkerError(
                f"{host} has {name} {here[key]}, and the plan was made by {plan[key]}; install nearcast "
                f"{plan.get('version', 'of the driver')} on every worker, or plan again with {here['version']}"
            )
    for name, version in plan.get("libraries", {}).items():
        if (found := _read_version(name)) != version:
            has = f"{name} {found}" if found else f"no {name}"
            raise WorkerError(
                f"{host} has {has}, and the plan was made with {name} {version}, whose version changes the bytes of "
                f"results; install {name} {version} on every worker"
            )
    wanted = plan.get("kernels", ANY_KERNELS)
    if wanted in (ANY_KERNELS, here["kernels"]):
        return
    if wanted == NATIVE:
        raise WorkerError(
            f"{host} has no native kernels ({isa_info().because}), and the plan was made with them: below recall 1 its "
            "results would differ; install nearcast there with a compiler (`nearcast info` shows the kernels), unset "
            "NEARCAST_ISA, or leave this worker out"
        )
    raise WorkerError(
        f"{host} has native kernels, and the plan was made by the NumPy fallback: below recall 1 its results would "
        "differ; plan on a machine with native kernels, or set NEARCAST_ISA=numpy on every worker"
    )


def _read_version(library: str) -> str | None:
    """Return the parts of a library's version that change bytes, None if it is not installed."""
    try:
        version = str(import_module(library).__version__)
    except ImportError:
        return None
    return ".".join(version.split(".")[: LIBRARIES.get(library)])


def reserve_room(room: TaskRoom | None) -> None:
    """Record what an engine reserved for the next task of this process, for `host_resources`."""
    _room[:] = [] if room is None else [room]


def host_resources() -> HostResources:
    """Return the threads and the memory that this worker may use on its host.

    Environment variables NEARCAST_THREADS and NEARCAST_MEMORY ("4GB") come first; then the cores that an engine
    reserved, and in a short stage those of its idle slots (`TaskRoom`); then the limits of the container (cgroup) and
    the machine. The default memory is half of what is available, times the share of the cores that are reserved for
    the task. Raises WorkerError for a bad variable.
    """
    return _measure_host(os.environ.get(THREADS_VARIABLE, ""), os.environ.get(MEMORY_VARIABLE, ""), tuple(_room))


@lru_cache(maxsize=16)
def _measure_host(threads: str, memory: str, room: tuple[TaskRoom, ...]) -> HostResources:
    """Measure once per process: equal tasks of a worker get the same resources."""
    limits = machine.container_limits()
    cores = min(machine.default_threads(), limits.cores or machine.default_threads())
    fixed = _parse_threads(threads)
    budget = _parse_memory(memory)
    if budget is None:
        free = machine.resident_memory() + machine.available_memory()
        share = fixed or min([cores, *(one.cores for one in room)])
        budget = min(free, limits.memory_bytes or free) * min(share, cores) // (2 * cores)
    return HostResources(fixed or min([cores, *(one.count_threads(cores) for one in room)]), budget)


def run_task(name: str, function: Callable[[], Mapping[str, Any]]) -> TaskOutcome:
    """Call a function that returns the facts of an artifact, and measure it.

    Errors of the spec and of the input become part of the outcome: another attempt would meet them again. All other
    exceptions are raised, so that the runner tries again.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    facts: Mapping[str, Any] = {}
    fault = None
    with machine.PeakMemory() as peak:
        try:
            facts = function()
        except LASTING_ERRORS as error:
            fault = describe_error(error)
    return TaskOutcome(
        name,
        facts,
        fault,
        seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
        peak_bytes=peak.bytes,
    )


def _parse_threads(text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise WorkerError(f"{THREADS_VARIABLE} must be a number of threads, at least 1, got {text!r}")
    return int(text)


def _parse_memory(text: str) -> int | None:
    if not text:
        return None
    try:
        return parse_bytes(int(text) if text.isdecimal() else text)
    except ValueError as error:
        raise WorkerError(f'{MEMORY_VARIABLE} must be an amount of memory such as "4GB", got {text!r}') from error
