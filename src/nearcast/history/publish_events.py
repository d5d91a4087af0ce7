"""What the history tells of the published version: which is current since when, which were refused or withdrawn.

Takes events and gives versions; reads no store. A store that another folder publishes to is not in this history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nearcast.history.event_log import HistoryEvent

__all__ = ["LiveVersion", "find_live_version", "find_refused_versions", "find_rejected_versions", "is_refused"]


@dataclass(frozen=True, slots=True)
class LiveVersion:
    """What look-ups answer from, as far as the history knows."""

    version: int
    since: float
    made: float | None  # when its snapshot was made; None where that run is not in the history
    rolled_back: bool  # the pointer was moved to it from a newer version
    left: int | None = None  # the version that was current before
    only_seen: bool = False  # the monitor found it in the store; who published it, this history does not know


def find_live_version(events: Sequence[HistoryEvent]) -> LiveVersion | None:
    """Return what is current by the last publish or rollback, or by what the monitor has found in the store since.

    None where nothing was published.
    """
    moved = _moved_to(events)
    seen = _seen_since(events, moved)
    return moved if seen is None else seen


def _seen_since(events: Sequence[HistoryEvent], moved: LiveVersion | None) -> LiveVersion | None:
    """Another version that the last pass of the monitor has found in the same store; None where it found the same."""
    first: HistoryEvent | None = None
    for event in reversed(events):
        if event.kind == "rollback" or (event.kind == "publish" and not is_refused(event)):
            if first is not None and first.facts.get("store") != event.facts.get("store"):
                return None  # of another store, which says nothing of this one
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
    """What is current by the last publish or rollback."""
    done = [event for event in events if event.kind in ("publish", "rollback") and not is_refused(event)]
    if not done or done[-1].version is None:
        return None
    last = done[-1]
    runs = [event.seconds for event in events if event.kind == "run" and event.version == last.version]
    left = last.facts.get("before")
    back = last.kind == "rollback" and (left is None or left > int(last.version or 0))
    return LiveVersion(int(last.version or 0), last.seconds, runs[-1] if runs else None, back, left)


def is_refused(event: HistoryEvent) -> bool:
    """Whether it is a publish that the audit has stopped."""
    return event.kind == "publish" and event.facts.get("outcome") == "audit_failed"


def find_refused_versions(events: Sequence[HistoryEvent]) -> dict[int, HistoryEvent]:
    """Return the versions whose last publish the audit has stopped, each with that event."""
    found: dict[int, HistoryEvent] = {}
    for event in events:
        if event.version is None or event.kind not in ("publish", "rollback"):
            continue
        if is_refused(event):
            found[event.version] = event
        else:
            found.pop(event.version, None)
    return found


def find_rejected_versions(events: Sequence[HistoryEvent]) -> set[int]:
    """Return the versions that the audit has refused, or that were left for an older one, and not published since."""
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
