"""Measurements of the machine, its container and this process: cores, memory, processor. Decides nothing."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

__all__ = [
    "ContainerLimits",
    "PeakMemory",
    "available_memory",
    "container_limits",
    "default_threads",
    "describe",
    "resident_memory",
]

SAMPLE_SECONDS = 0.02
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_OF_PROCESS = Path("/proc/self/cgroup")
STATUS_OF_PROCESS = Path("/proc/self/status")
OWN_PAGES = ("RssAnon:", "RssShmem:")
NO_LIMIT = 1 << 60  # bytes; cgroups of version 1 write a number beyond this for "no limit"


@dataclass(frozen=True, slots=True)
class ContainerLimits:
    """Limits of the control groups (cgroups) of this process; None where there is no limit."""

    cores: int | None = None
    memory_bytes: int | None = None


def default_threads() -> int:
    """Count the cores that this process may use, by its CPU affinity."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        return os.cpu_count() or 1


def available_memory() -> int:
    """Return the bytes that can be allocated now without swapping."""
    return int(psutil.virtual_memory().available)


def resident_memory() -> int:
    """Return the resident memory that only this process can free, in bytes: anonymous and shared pages.

    Pages of mapped files are left out: the system drops them when memory is needed, and reads them again. On a system
    without these counters, all resident pages.
    """
    try:
        with STATUS_OF_PROCESS.open(encoding="ascii", errors="replace") as file:
            pages = [int(line.split()[1]) << 10 for line in file if line.startswith(OWN_PAGES)]
    except (OSError, ValueError, IndexError):
        pages = []
    return sum(pages) if len(pages) == len(OWN_PAGES) else int(psutil.Process().memory_info().rss)


def describe() -> dict[str, Any]:
    """Describe the machine, for manifests and benchmark results."""
    return {
        "processor": _read_processor(),
        "cores": default_threads(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def container_limits(root: Path = CGROUPS, of_process: Path = CGROUP_OF_PROCESS) -> ContainerLimits:
    """Read the limits of the control groups of this process and of the groups above them, of both versions.

    A share of a core counts as a core.
    """
    cores: list[int] = []
    memory: list[int] = []
    for controller, group in _list_groups(root, of_process):
        if controller in ("", "cpu"):
            quota, period = [*_read_words(group / "cpu.max"), "", ""][:2]
            if controller == "cpu":
                quota = [*_read_words(group / "cpu.cfs_quota_us"), ""][0]
                period = [*_read_words(group / "cpu.cfs_period_us"), ""][0]
            if quota.isdecimal() and period.isdecimal() and int(period) > 0:
                cores.append(max(1, -(-int(quota) // int(period))))
        if controller in ("", "memory"):
            for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
                memory += [int(word) for word in _read_words(group / name) if word.isdecimal() and int(word) < NO_LIMIT]
    return ContainerLimits(min(cores, default=None), min(memory, default=None))


class PeakMemory:
    """Measures the peak of `resident_memory`: `with PeakMemory() as peak: ...`.

    Samples in a thread, since the kernel's high-water mark covers the whole life of the process.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self.bytes = resident_memory()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.bytes = max(self.bytes, resident_memory())


def _list_groups(root: Path, of_process: Path) -> Iterator[tuple[str, Path]]:
    """Yield (controller, folder) of each group of this process and above it. Version 2 has the controller ""."""
    try:
        lines = of_process.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(","):
            home = root / controller
            if controller == "" and not (root / "cgroup.controllers").is_file():
                home = root / "unified"
            group = home / path.strip("/")
            while group != home:  # inside a container, the path of the host is missing: its own group is the root
                yield controller, group
                group = group.parent
            yield controller, home


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []


def _read_processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
