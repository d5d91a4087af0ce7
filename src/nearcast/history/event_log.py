"""The history: a log of plain facts for each run, publish, rollback and monitor pass, beside the snapshots.

For a local folder it is one SQLite file, for a bucket one object per event. Knows nothing of the facts' meaning.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nearcast.history.bucket_log import BucketLog
from nearcast.history.history_event import EventLog, HistoryEvent
from nearcast.history.sqlite_log import FILE, SqliteLog
from nearcast.storage.locations import Location, client_settings, parse_location

__all__ = ["FILE", "HistoryEvent", "append", "newest", "read"]

_buckets: dict[tuple[object, ...], EventLog] = {}


def append(
    out: Location,
    generator: str,
    kind: str,
    version: int | None,
    facts: Mapping[str, Any],
    *,
    seconds: float | None = None,
    identity: str | None = None,
) -> str | None:
    """Add an event to the history of `out`. Return an error text, or None.

    The event has happened already, so a history that cannot be written does not raise.
    identity: unique; a second event with it is not added. Give its `seconds`, too.
    """
    when = time.time() if seconds is None else seconds
    return _open_log(out).append(HistoryEvent(generator, kind, when, version, facts), identity)


def read(
    out: Location, generator: str | None = None, kinds: Sequence[str] = (), last: int | None = None
) -> list[HistoryEvent]:
    """Read events, oldest first: of a generator or all, of these kinds or all, the last `last` or all.

    Returns an empty list without a history. Raises DamagedError if it cannot be read as a history.
    """
    return _open_log(out).read(generator, kinds, last)


def newest(out: Location) -> dict[str, int]:
    """Return a number of each generator: a higher number means new events.

    Returns an empty mapping without a history. Raises DamagedError if it cannot be read as a history.
    """
    return _open_log(out).newest()


def _open_log(out: Location) -> EventLog:
    location = parse_location(out)
    if isinstance(location, Path):
        return SqliteLog(location)
    key = location, client_settings()
    if key not in _buckets:
        _buckets[key] = BucketLog(location)
    return _buckets[key]
