"""Causes before consequences: where vectors have turned, the overlap that collapses says nothing of its own.

Takes alerts and gives alerts: one per cause, with the names of the others that follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nearcast.monitoring.alert import Alert

__all__ = ["causes_first", "refusal_first"]

_LISTS = ("overlap", "scores", "served_recall")
_OF_SIDE: Mapping[str, tuple[str, ...]] = {
    "ids": ("model", "shift", *_LISTS, "slice", "coverage"),
    "model": ("shift", *_LISTS, "slice", "coverage"),
    "norms": ("shift", *_LISTS, "slice", "coverage"),
    "zeros": ("model", "ids", "norms", "shift", *_LISTS, "coverage", "copies"),
    "count": ("shift", *_LISTS, "slice", "dead", "misses", "coverage", "fill", "seconds", "memory"),
    "stale": ("model", "shift", *_LISTS, "dead", "misses"),
}

# what a cause brings about; a check is only folded into a cause that has found something itself
FOLLOWS: Mapping[str, tuple[str, ...]] = {
    f"{side}_{cause}": tuple(f"{side}_{name}" if name in _OF_SIDE or name == "shift" else name for name in names)
    for side in ("items", "queries")
    for cause, names in _OF_SIDE.items()
} | {
    "copies": ("overlap", "scores", "served_recall", "coverage"),
    "metric": ("overlap", "scores", "slice", "coverage"),
    "effort": ("overlap", "scores", "slice", "coverage"),
    "recall": ("slice",),
    "served_spec": ("served_recall",),
}
OF_INPUTS = ("overlap", "scores", "fill", "coverage", "slice", "copies")  # what wrong inputs do to lists


def causes_first(alerts: Sequence[Alert]) -> list[Alert]:
    """The alerts without those that follow from another one, which names them."""
    there = {alert.check for alert in alerts}
    causes = [name for name in FOLLOWS if name in there]
    first = [name for name in causes if not any(name in FOLLOWS[other] for other in causes)]
    folded = {name for cause in first for name in FOLLOWS[cause]}
    kept: list[Alert] = []
    for alert in alerts:
        if alert.check not in folded:
            after = tuple(name for name in FOLLOWS.get(alert.check, ()) if name in there)
            kept.append(replace(alert, follows=tuple(dict.fromkeys((*alert.follows, *after)))))
    return kept


def refusal_first(alerts: Sequence[Alert], refusal: Alert) -> list[Alert]:
    """The alerts of a run and that of the audit which found a fault of its inputs: the cause, where none is named."""
    if any(alert.check in FOLLOWS for alert in alerts):
        return [*alerts, refusal]
    after = tuple(dict.fromkeys(alert.check for alert in alerts if alert.check in OF_INPUTS))
    return [replace(refusal, follows=after), *(alert for alert in alerts if alert.check not in OF_INPUTS)]
