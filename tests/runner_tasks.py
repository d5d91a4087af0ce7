"""Task functions of the runners' tests. Every worker imports them by name.

Each call appends a line to `attempts/<name>` below the results, so that a test counts attempts; its artifact is a file
with bytes that depend on the call alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from nearcast.errors import InputError, StorageError
from nearcast.files import file_hash
from nearcast.runners.base import TaskCall, TaskOutcome, WorkArea
from nearcast.runners.worker import host_resources, require_same_worker, run_task
from nearcast.storage.artifacts import LocalArtifacts


def calls(n: int, kind: str = "write", **args: Any) -> list[TaskCall]:
    """n calls of one kind."""
    return [TaskCall(f"join/{number:06d}", kind, {"number": number, **args}) for number in range(n)]


def area(folder: Path, **plan: Any) -> WorkArea:
    """A work area in a folder."""
    return WorkArea(str(folder / "artifacts"), str(folder / "results"), plan)


def attempts(place: WorkArea) -> dict[str, int]:
    """How often each call was begun."""
    folder = Path(place.results) / "attempts"
    return {path.name.replace("-", "/"): len(path.read_text().splitlines()) for path in sorted(folder.iterdir())}


def committed(place: WorkArea, *, killed: int | None = 0) -> dict[str, str]:
    """The hash of every committed artifact. So many killed attempts (None: any) have left files, which are swept."""
    root = Path(place.results)
    swept = LocalArtifacts(root).sweep(older_than=-1.0)
    assert killed is None or swept == killed
    return {name: file_hash(root / name / "rows") for name in LocalArtifacts(root).list_names("join")}


def perform(place: WorkArea, call: TaskCall) -> TaskOutcome:
    """Run a call as the task functions of a join do: preflight, then one artifact."""
    require_same_worker(place.plan)
    begun = Path(place.results) / "attempts" / call.name.replace("/", "-")
    begun.parent.mkdir(parents=True, exist_ok=True)
    with begun.open("a") as file:
        file.write(f"{os.getpid()}\n")
    attempt = len(begun.read_text().splitlines())
    return run_task(call.name, lambda: FUNCTIONS[call.kind](place, call, attempt))


def _write(place: WorkArea, call: TaskCall, attempt: int) -> Mapping[str, Any]:
    number = int(call.args["number"])

    def write(folder: Path) -> dict[str, Any]:
        (folder / "rows").write_bytes(number.to_bytes(4, "little") * 1000)
        time.sleep(call.args.get("seconds", 0.0))
        return {"number": number}

    artifacts = LocalArtifacts(Path(place.results))
    artifacts.ensure(call.name, write)
    return (artifacts.facts(call.name) or {}) | {"pid": os.getpid()}


def _kill_first(place: WorkArea, call: TaskCall, attempt: int) -> Mapping[str, Any]:
    """SIGKILL in the middle of the first attempts of the calls `victims`."""
    if call.args["number"] in call.args["victims"] and attempt <= call.args["times"]:
        folder = Path(place.results) / "join" / f".attempt-{call.args['number']}-{attempt}"
        folder.mkdir(parents=True)
        (folder / "rows").write_bytes(b"half of the rows")
        if call.args.get("executor"):
            executor = next(parent for parent in psutil.Process().parents() if parent.name() == "java")
            executor.kill()
            time.sleep(30)  # until its Python workers end, too
        os.kill(os.getpid(), signal.SIGKILL)
    return _write(place, call, attempt)


def _fail_first(place: WorkArea, call: TaskCall, attempt: int) -> Mapping[str, Any]:
    """Raise StorageError in the first attempts."""
    if attempt <= call.args["times"]:
        raise StorageError(f"the bucket is slow down the road, attempt {attempt}")
    return _write(place, call, attempt)


def _hang_first(place: WorkArea, call: TaskCall, attempt: int) -> Mapping[str, Any]:
    """Hang in the first attempt of the victim."""
    if call.args["number"] == call.args["victim"] and attempt == 1:
        time.sleep(call.args["seconds"])
    return _write(place, TaskCall(call.name, call.kind, {"number": call.args["number"]}), attempt)


def _crash(place: WorkArea, call: TaskCall, attempt: int) -> Mapping[str, Any]:
    """A mistake of ours."""
    if call.args["number"] == call.args["victim"]:
        raise ArithmeticError("an invariant is broken")
    return _write(place, call, attempt)


def _refuse(place: WorkArea, call: TaskCall, attempt: int) -> Mapping[str, Any]:
    """Bad input in one call."""
    if call.args["number"] == call.args["victim"]:
        raise InputError("row 7 of items.parquet has a vector of 3 values, the others have 4; correct the row")
    return _write(place, call, attempt)


def _describe(place: WorkArea, call: TaskCall, attempt: int) -> Mapping[str, Any]:
    """Where a call runs, and what it may use."""
    resources = host_resources()
    time.sleep(call.args.get("seconds", 0.0))
    return {"pid": os.getpid(), "threads": resources.threads, "memory": resources.memory_bytes}


def _meet(place: WorkArea, call: TaskCall, attempt: int) -> Mapping[str, Any]:
    """Wait until `processes` have begun calls, for a minute at most: a worker may start much later than another."""
    begun, until = Path(place.results) / "attempts", time.monotonic() + 60
    while len({pid for path in begun.iterdir() for pid in path.read_text().split()}) < call.args["processes"]:
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return _describe(place, TaskCall(call.name, call.kind, {}), attempt)


def _talk(place: WorkArea, call: TaskCall, attempt: int) -> Mapping[str, Any]:
    """Print something that looks like a reply, and read."""
    print(json.dumps({"outcome": "mine"}), flush=True)
    return {"read": sys.stdin.read()}


FUNCTIONS: dict[str, Callable[[WorkArea, TaskCall, int], Mapping[str, Any]]] = {
    "write": _write,
    "kill first": _kill_first,
    "fail first": _fail_first,
    "hang first": _hang_first,
    "crash": _crash,
    "refuse": _refuse,
    "describe": _describe,
    "meet": _meet,
    "talk": _talk,
}
