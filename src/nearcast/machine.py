"""Measurements of the machine and of this process: cores, memory, processor. Decides nothing."""

from __future__ import annotations

import os
import platform
import threading
from types import TracebackType
from typing import Any, Self

import psutil

__all__ = ["PeakMemory", "available_memory", "default_threads", "describe", "resident_memory"]

SAMPLE_SECONDS = 0.02


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
    """Return the resident memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


def describe() -> dict[str, Any]:
    """Describe the machine, for manifests and benchmark results."""
    return {
        "processor": _read_processor(),
        "cores": default_threads(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


class PeakMemory:
    """Measures the peak resident memory of this process: `with PeakMemory() as peak: ...`.

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
        process = psutil.Process()
        while not self._stop.wait(SAMPLE_SECONDS):
            self.bytes = max(self.bytes, int(process.memory_info().rss))


def _read_processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
