"""Root causes: which alerts follow from another alert, and which failed audit rule explains a refused publish.

Takes alerts and publish events; returns one alert per cause, with the names of the checks that follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from nearcast.history.event_log import HistoryEvent
from nearcast.monitoring.alert import Alert, format_count_title

__all__ = [
    "CONSEQUENCES",
    "Refusal",
    "describe_refusal",
    "fold_consequences",
    "list_failed_rules",
    "names_input",
    "put_refusal_first",
]

_LISTS = ("overlap", "scores", "served_recall")
_OF_TABLE: Mapping[str, tuple[str, ...]] = {
    "ids": ("model", "shift", *_LISTS, "slice", "coverage"),
    "model": ("shift", *_LISTS, "slice", "coverage"),
    "norms": ("shift", *_LISTS, "slice", "coverage"),
    "zeros": ("model", "ids", "norms", "shift", *_LISTS, "coverage", "copies"),
    "count": ("shift", *_LISTS, "slice", "dead", "misses", "coverage", "fill", "seconds", "memory"),
    "stale": ("model", "shift", *_LISTS, "dead", "misses"),
}

# cause: checks that it explains; they are folded into the cause only if the cause has a finding itself
CONSEQUENCES: Mapping[str, tuple[str, ...]] = {
    f"{table}_{cause}": tuple(f"{table}_{name}" if name in _OF_TABLE or name == "shift" else name for name in names)
    for table in ("items", "queries")
    for cause, names in _OF_TABLE.items()
} | {
    "copies": ("overlap", "scores", "served_recall", "coverage"),
    "metric": ("overlap", "scores", "slice", "coverage"),
    "effort": ("overlap", "scores", "slice", "coverage"),
    "recall": ("slice",),
    "served_spec": ("served_recall",),
}
OF_INPUTS = ("overlap", "scores", "fill", "coverage", "slice", "copies")  # checks that faulty inputs trigger

CAUSES = (  # audit rules in the order of the data flow: an earlier rule explains a later one
    *("items", "items_kept", "types", "vectors", "changed_values", "distribution", "empty_values", "pairs_kept"),
    *("bad_rows", "keys", "queries_kept", "recall"),
)
RULES_OF_INPUTS = CAUSES[:9]
RULES_WITH_COLUMN = CAUSES[1:9]  # their text names the column, so a part of it is the headline
EVIDENCE = {"items": "items_vectors", "keys": "queries_vectors"}  # measure of a rule: series that shows it
HEADLINE_ENDS = (", and at most", ", and ", " (PSI", "; ")  # the headline is the text before the first of these


def fold_consequences(alerts: Sequence[Alert]) -> list[Alert]:
    """Return the alerts that do not follow from another alert. An alert lists its consequences in `follows`."""
    checks = {alert.check for alert in alerts}
    causes = [name for name in CONSEQUENCES if name in checks]
    first = [name for name in causes if not any(name in CONSEQUENCES[other] for other in causes)]
    folded = {name for cause in first for name in CONSEQUENCES[cause]}
    remaining: list[Alert] = []
    for alert in alerts:
        if alert.check not in folded:
            after = tuple(name for name in CONSEQUENCES.get(alert.check, ()) if name in checks)
            remaining.append(replace(alert, follows=tuple(dict.fromkeys((*alert.follows, *after)))))
    return remaining


def put_refusal_first(alerts: Sequence[Alert], refusal: Alert) -> list[Alert]:
    """Add the alert of an audit that found faulty inputs; it is the cause unless another alert names a cause."""
    if any(alert.check in CONSEQUENCES for alert in alerts):
        return [*alerts, refusal]
    after = tuple(dict.fromkeys(alert.check for alert in alerts if alert.check in OF_INPUTS))
    return [replace(refusal, follows=after), *(alert for alert in alerts if alert.check not in OF_INPUTS)]


class Refusal(NamedTuple):
    """A publish that the audit refused, in words."""

    title: str
    text: str
    measure: str | None  # series that shows the first failed rule


def describe_refusal(event: HistoryEvent, served: Mapping[str, Any] | None) -> Refusal:
    """Describe a publish that the audit refused. served: facts of the served run, if known."""
    failed = list_failed_rules(event)
    name = "a snapshot" if event.version is None else f"{event.version:06d}"
    text = "; ".join(f"{finding['rule']}: {finding['text']}" for finding in failed)
    measure = EVIDENCE.get(str(failed[0]["measure"]), str(failed[0]["measure"])) if failed else None
    return Refusal(
        f"The audit refused {name}: {_summarize_rule(failed[0], served) if failed else 'a rule'}", text, measure
    )


def list_failed_rules(event: HistoryEvent) -> list[Mapping[str, Any]]:
    """Return the findings of a publish that failed; rules that name a cause first."""
    failed = [finding for finding in event.facts.get("findings") or () if not finding["passed"]]
    order = {rule: number for number, rule in enumerate(CAUSES)}
    return sorted(failed, key=lambda finding: order.get(finding["rule"], len(order)))


def names_input(event: HistoryEvent) -> bool:
    """Return whether the first failed rule of a publish is about the inputs."""
    return any(finding["rule"] in RULES_OF_INPUTS for finding in list_failed_rules(event)[:1])


def _summarize_rule(finding: Mapping[str, Any], served: Mapping[str, Any] | None) -> str:
    """Return the finding of a rule as a part of a headline."""
    rule, found = str(finding["rule"]), finding.get("found")
    items = ((served or {}).get("sides", {}).get("items") or {}).get("vectors")
    if rule == "items" and found is not None and items:
        title = format_count_title("items", found, items, served=True)
        return title[0].lower() + title[1:]
    if rule == "withdrawn":
        return "it was rolled back from"
    if rule not in RULES_WITH_COLUMN:
        return rule
    text = str(finding["text"])
    return text[: min((end for word in HEADLINE_ENDS if (end := text.find(word)) > 0), default=len(text))]
