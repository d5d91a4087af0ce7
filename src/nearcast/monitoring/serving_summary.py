"""Sentences on the served version: which snapshot users get, since when, and why newer runs are not published.

Takes the events of the history, oldest first. Reads no store.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from nearcast.history.event_log import HistoryEvent
from nearcast.history.publish_events import (
    LiveVersion,
    find_live_canary,
    find_live_version,
    find_refused_versions,
    find_rejected_versions,
    is_refused,
)
from nearcast.monitoring.root_causes import list_failed_rules

__all__ = [
    "LOST",
    "describe_canary",
    "describe_served",
    "describe_since",
    "explain_age",
    "explain_newer_runs",
    "format_moment",
    "list_newest_runs",
    "was_published_since",
]

LOST = "The store has lost all published versions"  # headline of an alert


def list_newest_runs(events: Sequence[HistoryEvent]) -> list[HistoryEvent]:
    """Return the runs in the order of their versions; the later run if two have one version."""
    by_version = {event.version: event for event in events if event.kind == "run"}
    return sorted(by_version.values(), key=lambda event: event.version or 0)


def describe_served(events: Sequence[HistoryEvent]) -> str:
    """Return a sentence on the lists that users get: the newest, older ones, or none."""
    runs, live = list_newest_runs(events), find_live_version(events)
    if live is None:
        return "Nothing is published." if runs else "Nothing has run yet."
    if _is_lost(events):
        return f"Users get nothing: the store holds nothing, and {live.version:06d} was published to it."
    made = "" if live.made is None else f" of {_format_day(live.made)}"
    newer = [run for run in runs if (run.version or 0) > live.version]
    if newer:
        later = "a newer one is" if len(newer) == 1 else f"{len(newer)} newer ones are"
        return f"Users get snapshot {live.version:06d}{made}; {later} not published."
    newest = "the newest lists, " if runs and runs[-1].version == live.version else ""
    return f"Users get {newest}snapshot {live.version:06d}{made}."


def describe_canary(events: Sequence[HistoryEvent]) -> str:
    """Return a sentence on the canary that is live, by the history; "" if there is none."""
    live = find_live_canary(events)
    if live is None or live.version is None:
        return ""
    moment = datetime.fromtimestamp(live.seconds, UTC).strftime("%Y-%m-%d %H:%M")
    return f"{live.version:06d} is a canary since {moment} UTC; nearcast canary shows it."


def explain_newer_runs(events: Sequence[HistoryEvent]) -> str:
    """Return why runs newer than the served one are not published, and since when that one is served; "" if none."""
    live = find_live_version(events)
    refusals, rejected = find_refused_versions(events), find_rejected_versions(events)
    runs = list_newest_runs(events)
    newer = [run.version for run in runs if run.version and (live is None or run.version > live.version)]
    parts = [
        f"The audit refused {version:06d}: {', '.join(row['rule'] for row in list_failed_rules(refusals[version]))}."
        for version in newer
        if version in refusals
    ]
    parts += [f"{v:06d} was rolled back from." for v in newer if v in rejected and v not in refusals]
    if newer and newer[-1] not in rejected and live is not None:
        parts.append(f"{newer[-1]:06d}, the newest, is not published yet.")
    if live is not None and not _is_lost(events):
        parts.append(f"{live.version:06d} {describe_since(live)}.")
    return " ".join(parts[-3:])


def explain_age(events: Sequence[HistoryEvent]) -> str:
    """Return why nothing newer is served, as far as the history knows; "" if it does not know."""
    runs, live = list_newest_runs(events), find_live_version(events)
    if live is None or not runs:
        return ""
    newest = runs[-1].version or 0
    if newest <= live.version:
        return "no run has finished since"
    if newest in find_refused_versions(events):
        return f"the audit refused {newest:06d}"
    if newest in find_rejected_versions(events):
        return f"{newest:06d} was rolled back from"
    return f"{newest:06d} was made since, and is not published"


def describe_since(live: LiveVersion) -> str:
    """Return the end of a sentence: since when a version is served."""
    if live.only_seen:
        return f"was found in the store on {format_moment(live.since)}, published from elsewhere"
    return f"has been served since {format_moment(live.since)}"


def was_published_since(last: HistoryEvent, events: Sequence[HistoryEvent]) -> bool:
    """Return whether a version was published or rolled back after this event."""
    for event in reversed(events):
        if event is last:
            return False
        if event.kind == "rollback" or (event.kind == "publish" and not is_refused(event)):
            return True
    return False


def _is_lost(events: Sequence[HistoryEvent]) -> bool:
    """Return whether the last monitor pass found an empty store, and nothing was published since."""
    passes = [event for event in events if event.kind == "monitor"]
    if not passes or was_published_since(passes[-1], events):
        return False
    return any(alert.get("title") == LOST for alert in passes[-1].facts["alerts"])


def _format_day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%-d %B %Y}"


def format_moment(seconds: float) -> str:
    """Return a time in UTC, to the minute. seconds: since 1970."""
    return f"{datetime.fromtimestamp(seconds, UTC):%-d %B %Y, %H:%M} UTC"
