"""Alerts on the newest run and on an empty store, from the events of the history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nearcast.history.event_log import HistoryEvent
from nearcast.history.publish_events import (
    find_live_version,
    find_refused_versions,
    find_rejected_versions,
    is_refused,
)
from nearcast.monitoring.alert import ALERT_TEXTS, Alert
from nearcast.monitoring.checks import USUAL_RUNS, check_runs
from nearcast.monitoring.root_causes import describe_refusal, list_failed_rules, names_input, put_refusal_first
from nearcast.monitoring.serving_summary import LOST, describe_since, list_newest_runs

__all__ = ["NOTHING_PUBLISHED", "check_lost_store", "check_newest_run", "list_usual_runs", "read_served_facts"]

NOTHING_PUBLISHED = "Nothing is published: users get nothing."


def check_newest_run(events: Sequence[HistoryEvent]) -> list[Alert]:
    """Check the newest run against the runs before it, and add the audit's refusal of it, if any.

    Runs that were refused or rolled back do not count towards the usual values.
    """
    runs = list_newest_runs(events)
    if not runs:
        return []
    rejected, newest = find_rejected_versions(events), _update_promises(runs[-1], events)
    before = list_usual_runs(events)[-2 * USUAL_RUNS :]
    against = (newest.facts.get("compared_with") or {}).get("version")
    against = against if against is not None else runs[-2].version if len(runs) > 1 else None
    served = read_served_facts(events)
    facts = [*({**event.facts, "version": event.version} for event in before), newest.facts]
    alerts = check_runs(facts, last_refused=against in rejected, served=None if served is runs[-1].facts else served)
    refused_publish = find_refused_versions(events).get(newest.version or 0)
    if refused_publish is None:
        return list(alerts)
    refusal = _make_refusal_alert(events, refused_publish)
    return put_refusal_first(alerts, refusal) if names_input(refused_publish) else [*alerts, refusal]


def _update_promises(run: HistoryEvent, events: Sequence[HistoryEvent]) -> HistoryEvent:
    """Return the run with its promises as a later evaluation by the same labels, or a later publish, has found them."""
    labels = run.facts.get("labels")
    if labels is None:
        return run
    promises = labels.get("promises", ())
    for event in events:
        if event.version != run.version or event.seconds < run.seconds:
            continue
        if event.kind == "evaluate" and event.facts["labels"]["path"] == labels["labels"]["path"]:
            promises = event.facts.get("promises") or promises
        elif event.kind == "publish" and any(_is_kept_promise(row) for row in event.facts.get("findings", ())):
            promises = ()  # with other promises, or by later labels
    return replace(run, facts={**run.facts, "labels": {**labels, "promises": promises}})


def _is_kept_promise(finding: Mapping[str, Any]) -> bool:
    return finding["rule"] == "promise" and finding["found"] is not None and bool(finding["passed"])


def check_lost_store(store: str, events: Sequence[HistoryEvent]) -> Iterator[Alert]:
    """Yield an alert about an empty store if the history says that a version was published. store: its URL."""
    moves = [event for event in events if event.kind in ("publish", "rollback") and not is_refused(event)]
    if not moves or moves[-1].version is None:
        return
    name, where = f"{moves[-1].version:06d}", moves[-1].facts.get("store")
    if where in (None, store):
        text = f"{store} holds nothing, and {name} was published to it: was it removed, or is it another store?"
        yield Alert("unreachable", text, None, None, None, title=LOST, effect="Users get nothing from this store.")
    else:
        text = f"{store} holds nothing, and {name} was published to {where}; name that store by --store or in the spec"
        yield Alert("unreachable", text, None, None, None)


def list_usual_runs(events: Sequence[HistoryEvent]) -> list[HistoryEvent]:
    """Return the runs that the newest run is compared with: those neither refused nor rolled back."""
    rejected = find_rejected_versions(events)
    return [event for event in list_newest_runs(events)[:-1] if event.version not in rejected]


def read_served_facts(events: Sequence[HistoryEvent]) -> Mapping[str, Any] | None:
    """Return the facts of the served run; None if it is not in the history."""
    live = find_live_version(events)
    runs = list_newest_runs(events)
    return next((run.facts for run in runs if live is not None and run.version == live.version), None)


def _make_refusal_alert(events: Sequence[HistoryEvent], publish: HistoryEvent) -> Alert:
    """Return the alert about a publish that the audit refused."""
    refusal = describe_refusal(publish, read_served_facts(events))
    live = find_live_version(events)
    effect = ALERT_TEXTS["audit"].effect if live is not None else NOTHING_PUBLISHED
    since = "nothing is published" if live is None else f"{live.version:06d} {describe_since(live)}"
    first = next(iter(list_failed_rules(publish)), {})
    text = f"{refusal.text}; {since}"
    figures = first.get("found"), first.get("bound"), None
    rule = str(first.get("rule", ""))
    return Alert("audit", text, *figures, title=refusal.title, effect=effect, detail=rule)
