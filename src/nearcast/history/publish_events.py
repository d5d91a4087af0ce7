"""Versions from the history's events: which is published since when, which were refused or rolled back from.

Reads no store. A store that another folder publishes to is not in this history.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from nearcast.history.event_log import HistoryEvent

__all__ = [
    "LiveVersion",
    "find_live_canary",
    "find_live_version",
    "find_refused_versions",
    "find_rejected_versions",
    "find_stored_versions",
    "is_refused",
]


@dataclass(frozen=True, slots=True)
class LiveVersion:
    """The version that look-ups read, by the history."""

    version: int
    since: float
    made: float | None  # when its snapshot was made; None if the history lacks that run
    rolled_back: bool  # the pointer was moved back from a newer version
    left: int | None = None  # the previous version
    only_seen: bool = False  # the monitor saw it in the store; its publish is not in this history


def find_live_version(events: Sequence[HistoryEvent]) -> LiveVersion | None:
    """Return the published version: by the last publish or rollback, or by a later observation of the monitor.

    Returns None if nothing was published.
    """
    moved = _moved_to(events)
    seen = _seen_since(events, moved)
    return moved if seen is None else seen


def _seen_since(events: Sequence[HistoryEvent], moved: LiveVersion | None) -> LiveVersion | None:
    """Return another version that the monitor has seen in the same store since; None if it saw the same."""
    first: HistoryEvent | None = None
    for event in reversed(events):
        if event.kind == "rollback" or (event.kind == "publish" and not is_refused(event)):
            if first is not None and first.facts.get("store") != event.facts.get("store"):
                return None  # of another store
            break
        served = event.facts.get("served") if event.kind == "monitor" else None
        if served and (first is None or served["version"] == first.facts["served"]["version"]):
            first = event
        elif served:
            break
    if first is None or "version" not in first.facts["served"]:
        return None
    version = int(first.facts["served"]["version"])
    if (moved is not None and version == moved.version) or (moved is not None and not first.facts.get("store")):
        return None
    age = first.facts["served"].get("age_seconds")
    made = None if age is None else first.seconds - age
    return LiveVersion(version, first.seconds, made, rolled_back=False, only_seen=True)


def _moved_to(events: Sequence[HistoryEvent]) -> LiveVersion | None:
    """Return the version of the last publish or rollback."""
    done = [event for event in events if event.kind in ("publish", "rollback") and not is_refused(event)]
    if not done or done[-1].version is None:
        return None
    last = done[-1]
    runs = [event.seconds for event in events if event.kind == "run" and event.version == last.version]
    left = last.facts.get("before")
    back = last.kind == "rollback" and (left is None or left > int(last.version or 0))
    return LiveVersion(int(last.version or 0), last.seconds, runs[-1] if runs else None, back, left)


def find_live_canary(events: Sequence[HistoryEvent]) -> HistoryEvent | None:
    """Return the event that started the canary that is live; None without one. A publish or rollback ends it."""
    live: HistoryEvent | None = None
    for event in events:
        if event.kind == "canary":
            outcome = event.facts.get("outcome")
            live = event if outcome == "started" else live if outcome == "share" else None
        elif event.kind in ("publish", "rollback") and not is_refused(event):
            live = None
    return live


def is_refused(event: HistoryEvent) -> bool:
    """Return whether the event is a publish that the audit refused."""
    return event.kind == "publish" and event.facts.get("outcome") == "audit_failed"


def find_refused_versions(events: Sequence[HistoryEvent]) -> dict[int, HistoryEvent]:
    """Return the versions whose last publish the audit refused, each with that event."""
    found: dict[int, HistoryEvent] = {}
    for event in events:
        if event.version is None or event.kind not in ("publish", "rollback"):
            continue
        if is_refused(event):
            found[event.version] = event
        else:
            found.pop(event.version, None)
    return found


def find_stored_versions(events: Sequence[HistoryEvent], keep: int, *, besides: str) -> set[int]:
    """Return the versions that stores may hold: of each store but one, the last `keep` that these events name.

    besides: URL of the store that is left out. The monitor names the version that it has seen.
    """
    by_store: dict[str, dict[int, None]] = defaultdict(dict)
    for event in events:
        seen = event.facts.get("served") if event.kind == "monitor" else None
        named = [(seen or {}).get("version")] if event.kind == "monitor" else [event.facts.get("before"), event.version]
        store = event.facts.get("store")
        if store in (None, besides) or is_refused(event):
            continue
        for version in filter(None, named):
            by_store[str(store)].pop(int(version), None)
            by_store[str(store)][int(version)] = None  # the last one named is the last key
    return {version for versions in by_store.values() for version in list(versions)[-keep:]}


def find_rejected_versions(events: Sequence[HistoryEvent]) -> set[int]:
    """Return the versions that the audit refused, or that were rolled back from, and that were not published since."""
    left = set[int]()
    seen = set[int]()
    for event in events:
        if event.version is None or event.kind not in ("publish", "rollback") or is_refused(event):
            continue
        before = event.facts.get("before")
        if before is not None and before > event.version:
            left.add(before)
        elif before is None and event.kind == "rollback":  # of an older nearcast
            left |= {version for version in seen if version > event.version}
        left.discard(event.version)
        seen.add(event.version)
    return left | set(find_refused_versions(events))
