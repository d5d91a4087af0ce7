"""Every error that nearcast raises on purpose, with the exit code of the command line.

NearcastError                 1  base class; catch it to catch every error of nearcast
├── SpecError                 2  a setting is unknown, has the wrong type, or conflicts with another
├── InputError                3  the input data do not match the spec: vectors, ids, files
├── TargetError               4  the snapshot is finished, but its recall is below the target
├── BusyError                 5  another process works on the generator
├── BudgetError               6  the work does not fit the memory or disk budget
├── NotFoundError             7  no such generator, snapshot or key
├── DamagedError              8  a file that nearcast wrote is missing, truncated or changed
├── MissingExtraError         9  an optional library is not installed
├── AuditError               10  a snapshot failed its audit and was not published
├── StoreError               11  a store cannot be reached, or failed a command
├── GoneError                12  a version was deleted from a store while it was read
├── AlertError               13  the monitor found an alert that --fail-on names
├── StorageError             14  a bucket or folder cannot be reached, or refused an operation: try again later
├── WorkerError              15  a worker cannot take part in a run, or a task failed in every attempt
├── AccessError              16  a bucket, credentials or rights are missing, or a server or path refuses every attempt
├── WithdrawnError           17  a canary that was watched is withdrawn, by its rules or by others
└── UndecidedError           18  a canary was watched to the end, and too little was measured or read to decide

Knows nothing of how an error is shown: the command line does that.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

__all__ = [
    "AccessError",
    "AlertError",
    "AuditError",
    "BudgetError",
    "BusyError",
    "DamagedError",
    "GoneError",
    "InputError",
    "MissingExtraError",
    "NearcastError",
    "NotFoundError",
    "SpecError",
    "StorageError",
    "StoreError",
    "TargetError",
    "UndecidedError",
    "WithdrawnError",
    "WorkerError",
]

# user:password@ of a URL; not a port, nor what is hidden
LOGIN = re.compile(r"(:/+)[^\s@/\[]*:(?!\*\*\*@|\d+/)[^\s@]*@")
RENAMED = {"PromiseError": "TargetError"}  # earlier names: they work for one minor release, with a warning


def __getattr__(name: str) -> Any:
    if name not in RENAMED:
        raise AttributeError(f"module 'nearcast.errors' has no attribute {name!r}")
    warnings.warn(f"nearcast.{name} is now nearcast.{RENAMED[name]}", DeprecationWarning, stacklevel=2)
    return globals()[RENAMED[name]]


def hide_login(text: str) -> str:
    """Replace user and password of every URL in a text by ***."""
    return LOGIN.sub(r"\1***@", text)


class NearcastError(Exception):
    """Base class of every error raised on purpose. The text names the value at fault and the correction.

    As text it has no user and password of a URL: people write them where they do not belong, and texts go into logs.
    """

    exit_code = 1

    def __str__(self) -> str:
        return hide_login(super().__str__())


class SpecError(NearcastError):
    """Error of a setting: it is unknown, has the wrong type, or conflicts with another."""

    exit_code = 2


class InputError(NearcastError):
    """Error of the input data: they do not match the spec."""

    exit_code = 3


class TargetError(NearcastError):
    """Recall below the target. The snapshot is finished and kept, as `snapshot`, but is not published."""

    exit_code = 4

    def __init__(self, text: str, snapshot: object = None) -> None:
        super().__init__(text)
        self.snapshot = snapshot


class BusyError(NearcastError):
    """Conflict with another process that works on the generator."""

    exit_code = 5


class BudgetError(NearcastError):
    """Work that does not fit the memory or disk budget."""

    exit_code = 6


class NotFoundError(NearcastError):
    """Missing generator, snapshot or key."""

    exit_code = 7


class DamagedError(NearcastError):
    """Missing, truncated or changed file that nearcast wrote."""

    exit_code = 8


class MissingExtraError(NearcastError):
    """Missing optional library; the text names the extra to install."""

    exit_code = 9


class AuditError(NearcastError):
    """Failed audit: the snapshot was not published. `findings` are the results of the rules."""

    exit_code = 10

    def __init__(self, text: str, findings: object = None) -> None:
        super().__init__(text)
        self.findings = findings


class StoreError(NearcastError):
    """Store that cannot be reached, or that failed a command."""

    exit_code = 11


class GoneError(NearcastError):
    """Version that was deleted from a store while it was read. Open the current version."""

    exit_code = 12


class AlertError(NearcastError):
    """Alert of the monitor that --fail-on names."""

    exit_code = 13


class StorageError(NearcastError):
    """Storage that cannot be reached, or that refused an operation. Another attempt may succeed."""

    exit_code = 14


class AccessError(StorageError):
    """Storage that refuses every attempt: a missing bucket, missing credentials or rights, an unfit server or path."""

    exit_code = 16


class WorkerError(NearcastError):
    """Worker that cannot take part in a run, or a task that failed in every attempt."""

    exit_code = 15


class WithdrawnError(NearcastError):
    """Canary that was watched and is withdrawn, by its rules or by others."""

    exit_code = 17


class UndecidedError(NearcastError):
    """Canary that was watched to the end while too little was measured or read to decide. It is still live."""

    exit_code = 18
