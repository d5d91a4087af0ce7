"""Time and memory of the tasks of a run, as their results record them, and their sum.

The tasks of a shared run are done by many workers, and only the results know all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nearcast.join.context import Meter
from nearcast.storage.artifacts import Artifacts

__all__ = ["add_up_times", "count_all_tasks", "describe_times"]

TIMES = "times"  # key of the facts of a task's result
READS = 16  # facts at a time

StageTimes = Mapping[str, Sequence[float]]  # wall and CPU seconds by stage


def describe_times(stages: StageTimes, peak_bytes: int) -> dict[str, Any]:
    """Return the times of a task for the facts of its result."""
    return {TIMES: {"stages": {name: list(pair) for name, pair in stages.items()}, "peak_bytes": peak_bytes}}


def add_up_times(results: Artifacts, names: Iterable[str]) -> dict[str, Any]:
    """Return the times of several tasks as those of one."""
    stages: dict[str, list[float]] = {}
    peak = 0
    for times in _read_times(results, names):
        peak = max(peak, times["peak_bytes"])
        for name, (seconds, cpu_seconds) in times["stages"].items():
            found = stages.get(name, [0.0, 0.0])
            stages[name] = [found[0] + seconds, found[1] + cpu_seconds]
    return describe_times(stages, peak)


def count_all_tasks(meter: Meter, results: Artifacts) -> None:
    """Let the meter of a run tell the times of all its tasks, added up over its workers, instead of its own."""
    times = add_up_times(results, results.list_names())[TIMES]
    meter.count_tasks({name: (pair[0], pair[1]) for name, pair in times["stages"].items()}, times["peak_bytes"])


def _read_times(results: Artifacts, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Read the facts of tasks. Yield their times, and those of tasks whose results they have replaced."""
    with ThreadPoolExecutor(READS, "nearcast-times") as pool:
        for facts in pool.map(results.facts, names):
            for key in (TIMES, f"earlier {TIMES}"):
                if facts is not None and key in facts:
                    yield facts[key]
