"""Task calls and their replies as JSON, sent between a driver and its workers.

A reply holds the outcome of a call, or the exception that it raised. Exceptions travel as values, since engines lose
their class on the way. Knows no transport.
"""

from __future__ import annotations

import importlib
import json
import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from nearcast import errors
from nearcast.errors import NearcastError, WorkerError
from nearcast.runners.base import Perform, TaskCall, TaskOutcome, WorkArea

__all__ = [
    "CallReply",
    "describe_error",
    "encode_area",
    "encode_call",
    "find_perform",
    "name_perform",
    "perform_message",
    "read_reply",
    "restore_error",
]

MOST_TRACE = 8_000  # characters of a traceback that are sent


@dataclass(frozen=True, slots=True)
class CallReply:
    """The end of one attempt: an outcome, or the exception that the attempt raised."""

    outcome: TaskOutcome | None
    error: NearcastError | None = None
    worker: str = ""  # host and process


def name_perform(perform: Perform) -> str:
    """Return module:function. Raises WorkerError for a function that a worker cannot import by this name."""
    module, name = perform.__module__, perform.__qualname__
    if module == "__main__" or "<" in name:
        raise WorkerError(
            f"workers import the task function by its name, got {module}:{name}; define it at the top level of a module"
        )
    return f"{module}:{name}"


@cache
def find_perform(name: str) -> Perform:
    """Import a function by the name that `name_perform` returned. Raises WorkerError if that fails."""
    module, _, function = name.partition(":")
    try:
        found: Perform = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise WorkerError(
            f"this worker cannot import {name} ({error}); install the same packages on every worker as on the driver"
        ) from error
    return found


def encode_area(perform: str, area: WorkArea) -> str:
    """Return what the calls of a stage share, as one line of JSON for `perform_message`."""
    shared = {"artifacts": area.artifacts, "results": area.results, "plan": dict(area.plan)}
    return json.dumps({"perform": perform, "area": shared})


def encode_call(call: TaskCall) -> str:
    """Return a call as one line of JSON for `perform_message`."""
    return json.dumps({"name": call.name, "kind": call.kind, "args": dict(call.args)})


def perform_message(shared: str, call: str) -> str:
    """Run an encoded call in this process. Return the reply as one line of JSON; raises no exception."""
    worker = f"{os.uname().nodename} process {os.getpid()}"
    try:
        stage = json.loads(shared)
        perform = find_perform(stage["perform"])
        outcome = perform(WorkArea(**stage["area"]), TaskCall(**json.loads(call)))
        return json.dumps({"worker": worker, "outcome": _encode_outcome(outcome)})
    except Exception as error:
        trace = "".join(traceback.format_exception(error))[-MOST_TRACE:]
        return json.dumps({"worker": worker, "raised": describe_error(error) | {"trace": trace}})


def read_reply(line: str) -> CallReply:
    """Read the reply of a worker."""
    message = json.loads(line)
    worker = str(message["worker"])
    if "outcome" in message:
        return CallReply(TaskOutcome(**message["outcome"]), worker=worker)
    error = restore_error(message["raised"])
    error.add_note(f"raised in {worker}:\n{message['raised']['trace']}")
    return CallReply(None, error, worker)


def _encode_outcome(outcome: TaskOutcome) -> dict[str, Any]:
    error = None if outcome.error is None else dict(outcome.error)
    return {field.name: getattr(outcome, field.name) for field in fields(outcome)} | {
        "facts": dict(outcome.facts),
        "error": error,
    }


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return class, text and exit code of an error, for `TaskOutcome.error`."""
    code = error.exit_code if isinstance(error, NearcastError) else WorkerError.exit_code
    public = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in errors.__all__), "")
    return {"class": public or type(error).__name__, "text": str(error), "exit_code": code}


def restore_error(described: Mapping[str, Any]) -> NearcastError:
    """Return the error that `describe_error` described. An exception of another package becomes a WorkerError."""
    kind = getattr(errors, described["class"], None) if described["class"] in errors.__all__ else None
    if kind is None:
        text = f"{described['class']}: {described['text']}" if described["text"] else described["class"]
        return WorkerError(text)
    restored: NearcastError = kind(described["text"])
    return restored
