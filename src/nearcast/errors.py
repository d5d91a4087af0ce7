"""Every error that nearcast raises on purpose, and the exit code that the command line gives it.

NearcastError                 1  base of all; catch this one to catch ours
├── SpecError                 2  a setting is unknown, of the wrong type, or does not fit the others
├── InputError                3  the data is not what the spec says: bad vectors, ids, files
├── PromiseError              4  the work is done, but a measure is below what was promised
├── BusyError                 5  another run holds the generator
├── BudgetError               6  the work cannot be done in the memory or disk that was given
├── NotFoundError             7  no such generator, snapshot or key
├── DamagedError              8  a file that we wrote is not as we wrote it
├── MissingExtraError         9  an optional library is needed and absent
├── AuditError               10  a snapshot was not published, since it failed its audit
├── StoreError               11  a store cannot be reached, or does not do as it is told
├── GoneError                12  a version was taken away from a store while it was read
└── AlertError               13  the monitor found what it was told to fail on

Knows nothing of how an error is shown: that is the command line's work.
"""

from __future__ import annotations

__all__ = [
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
    "PromiseError",
    "SpecError",
    "StoreError",
]


class NearcastError(Exception):
    """Base of every error raised on purpose. Its text names the value at fault and the way out."""

    exit_code = 1


class SpecError(NearcastError):
    """A setting is unknown, of the wrong type, or does not fit the others."""

    exit_code = 2


class InputError(NearcastError):
    """The input data is not what the spec says it is."""

    exit_code = 3


class PromiseError(NearcastError):
    """The work is done and kept, but a measure is below what the spec promises. `snapshot` is what was made."""

    exit_code = 4

    def __init__(self, text: str, snapshot: object = None) -> None:
        super().__init__(text)
        self.snapshot = snapshot


class BusyError(NearcastError):
    """Another process is at work on this generator."""

    exit_code = 5


class BudgetError(NearcastError):
    """The work does not fit the memory or disk that was given."""

    exit_code = 6


class NotFoundError(NearcastError):
    """There is no such generator, snapshot or key."""

    exit_code = 7


class DamagedError(NearcastError):
    """A file that nearcast wrote is missing, cut short or changed."""

    exit_code = 8


class MissingExtraError(NearcastError):
    """An optional library is needed; the text names the extra to install."""

    exit_code = 9


class AuditError(NearcastError):
    """A snapshot was not published, since it failed its audit. `findings` are the rules with what was found."""

    exit_code = 10

    def __init__(self, text: str, findings: object = None) -> None:
        super().__init__(text)
        self.findings = findings


class StoreError(NearcastError):
    """A store cannot be reached, or does not do as it is told."""

    exit_code = 11


class GoneError(NearcastError):
    """A version was taken away from a store while it was read; the current one is to be opened."""

    exit_code = 12


class AlertError(NearcastError):
    """The monitor found what it was told to fail on."""

    exit_code = 13
