"""An event of the history, and the contract of a log of events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["EventLog", "HistoryEvent"]


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """An event of a generator. `seconds` since 1970; `facts` are plain data."""

    generator: str
    kind: str  # run, publish, rollback, undo (of patches), canary, evaluate or monitor
    seconds: float
    version: int | None  # of the snapshot
    facts: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "generator": self.generator,
            "kind": self.kind,
            "seconds": self.seconds,
            "version": self.version,
            "facts": dict(self.facts),
        }


class EventLog(Protocol):
    """The events of all generators of one location. Events are added and never changed."""

    place: str  # for people

    def append(self, event: HistoryEvent, identity: str | None) -> str | None:
        """Add an event, once per identity. Return an error text, or None."""
        ...

    def read(self, generator: str | None, kinds: Sequence[str], last: int | None) -> list[HistoryEvent]:
        """Return events, oldest first: of a generator or all, of these kinds or all, the last `last` or all.

        Raises DamagedError if the log cannot be read.
        """
        ...

    def newest(self) -> dict[str, int]:
        """Return a number of each generator that grows with every event of it."""
        ...
