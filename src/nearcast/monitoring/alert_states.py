"""States of alerts: which are open and since when, who acknowledged or snoozed them, and where they were sent.

Derived from the events `alert` and `monitor` of the history, oldest first, so that they survive restarts. An alert is
open from the first pass that finds it until the first pass that looks for it and does not find it. Time passes as the
clock moves forward between two events: a clock that goes back makes no snooze longer, and one that jumps forward ends
snoozes early, so that an alert is sent too often rather than never. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearcast.history.event_log import HistoryEvent

__all__ = [
    "ANY",
    "DEFAULT_SEVERITY",
    "KIND",
    "AlertBook",
    "AlertState",
    "Duty",
    "Handling",
    "derive_alert_book",
    "list_changes",
    "matches_alert",
]

Duty = tuple[str, str | None]  # severity and owner

KIND = "alert"  # of the events
DEFAULT_SEVERITY = "error"  # of an alert that a pass without the spec has found
ANY = "any"  # names all alerts of a generator
OF_TIME = (KIND, "monitor")  # events whose `seconds` is when they were written
OF_PASS = (  # facts of an alert that each pass finds anew, and that a pass without the spec may lack
    *("title", "text", "effect", "found", "bound", "usual", "owner", "severity", "runbook"),
)


@dataclass(frozen=True, slots=True)
class Handling:
    """An acknowledgement or a snooze: who, when and why."""

    who: str
    why: str
    since: float
    seconds_left: float | None = None  # of a snooze; None for an acknowledgement, which ends with its alert

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"who": self.who, "why": self.why, "since": self.since, "seconds_left": self.seconds_left}


@dataclass(frozen=True, slots=True)
class AlertState:
    """One alert from its beginning to its end."""

    generator: str
    key: str
    opening: int  # counts how often this alert has begun, from 1
    since: float
    version: int | None  # newest run when it began
    facts: Mapping[str, Any]  # the alert as it was found first, with the words and figures of the last pass that did
    ended: float | None = None
    acknowledged: Handling | None = None
    snoozed: Handling | None = None
    earlier: Mapping[Duty, float] = field(default_factory=dict)  # severity and owner that it had, until when
    delivered: frozenset[tuple[str, str]] = frozenset()  # receiver and action: trigger, acknowledge or resolve

    @property
    def is_handled(self) -> bool:
        """Whether someone has acknowledged or snoozed it."""
        return self.acknowledged is not None or self.snoozed is not None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        names = ("check", "title", "text", "effect", "severity", "owner", "runbook")
        return {
            "generator": self.generator,
            "alert": self.key,
            "since": self.since,
            "version": self.version,
            **{name: self.facts.get(name) for name in names},
            "acknowledged": None if self.acknowledged is None else self.acknowledged.as_dict(),
            "snoozed": None if self.snoozed is None else self.snoozed.as_dict(),
            "receivers": len({receiver for receiver, action in self.delivered if action == "trigger"}),
        }


@dataclass(frozen=True, slots=True)
class AlertBook:
    """The alerts of a generator: open ones, and ended ones, since receivers must learn of the end.

    They are in the order of the events, so that an end is sent before the next beginning whatever the clocks said.
    """

    states: tuple[AlertState, ...]
    snoozes: Mapping[str, Handling]  # by the name that was snoozed: an alert, a check or ANY

    @property
    def open(self) -> list[AlertState]:
        """The alerts that have not ended, oldest first."""
        return [state for state in self.states if state.ended is None]


@dataclass(slots=True)
class _Opening:
    """An alert while the events are read."""

    event: HistoryEvent
    place: int  # of the event among all events
    number: int
    found_last: dict[str, Any] = field(default_factory=dict)
    earlier: dict[Duty, float] = field(default_factory=dict)
    ended: float | None = None
    acknowledged: Handling | None = None
    delivered: set[tuple[str, str]] = field(default_factory=set)

    @property
    def facts(self) -> dict[str, Any]:
        """The alert as it was found first, with the words of the last pass."""
        return {**self.event.facts["alert"], **self.found_last}

    def update(self, found: Mapping[str, Any], seconds: float) -> None:
        """Take the words of a pass. Remember until when the alert had another severity or owner."""
        before = self._duty
        self.found_last |= found
        if before != self._duty:
            self.earlier[before] = seconds
        self.earlier.pop(self._duty, None)

    @property
    def _duty(self) -> Duty:
        facts = self.facts
        return facts.get("severity") or DEFAULT_SEVERITY, facts.get("owner")


def matches_alert(name: str, key: str) -> bool:
    """Return whether a name, such as slice, slice:segment=home or any, is one of this alert."""
    return name in (ANY, key, key.partition(":")[0])


def derive_alert_book(events: Sequence[HistoryEvent], now: float) -> AlertBook:
    """Derive the alerts of the generator of these events (oldest first) at the time `now`."""
    openings: dict[str, list[_Opening]] = {}
    snoozes: dict[str, tuple[Handling, float]] = {}
    passed, last = 0.0, None  # seconds that have passed by the clocks of the events
    for place, event in enumerate(events):
        if event.kind not in OF_TIME:
            continue
        passed, last = passed + _step(last, event.seconds), event.seconds
        facts = event.facts
        if event.kind != KIND:
            _update_words(facts.get("alerts", ()), openings, event.seconds)
            continue
        if facts["action"] == "snoozed":
            handling = Handling(facts["who"], facts["why"], event.seconds, float(facts["for_seconds"]))
            snoozes[facts["key"]] = handling, passed
        elif facts["action"] == "unsnoozed":
            snoozes = {name: one for name, one in snoozes.items() if not matches_alert(facts["key"], name)}
        else:
            _apply(event, place, openings)
    passed += _step(last, now)
    left = {name: (one.seconds_left or 0.0) - (passed - began) for name, (one, began) in snoozes.items()}
    current = {
        name: Handling(one.who, one.why, one.since, left[name]) for name, (one, _) in snoozes.items() if left[name] > 0
    }
    ordered = sorted((opening for several in openings.values() for opening in several), key=lambda one: one.place)
    return AlertBook(tuple(_make_state(opening, current) for opening in ordered), current)


def _step(last: float | None, seconds: float) -> float:
    return 0.0 if last is None else max(0.0, seconds - last)


def _update_words(alerts: Iterable[Mapping[str, Any]], openings: Mapping[str, list[_Opening]], seconds: float) -> None:
    """Note what a pass has found of open alerts: their cause may have changed, and who takes care of them."""
    for alert in alerts:
        several = openings.get(str(alert.get("key")), ())  # a pass of an earlier release names no key
        if several and several[-1].ended is None:
            several[-1].update({name: alert[name] for name in OF_PASS if alert.get(name) is not None}, seconds)


def _apply(event: HistoryEvent, place: int, openings: dict[str, list[_Opening]]) -> None:
    """Apply an event other than a snooze. Two monitors may write the same change: the second one changes nothing."""
    facts = event.facts
    if facts["action"] == "delivered":
        for key, number, action in facts["notices"]:
            for opening in openings.get(key, ()):
                if opening.number == number:
                    opening.delivered.add((facts["to"], action))
        return
    if facts["action"] == "acknowledged":
        for key, several in openings.items():
            if matches_alert(facts["key"], key) and several[-1].ended is None:
                several[-1].acknowledged = Handling(facts["who"], facts["why"], event.seconds)
        return
    known = openings.setdefault(facts["key"], []) if facts["action"] in ("opened", "ended") else []
    is_open = bool(known) and known[-1].ended is None
    if facts["action"] == "opened" and not is_open:
        known.append(_Opening(event, place, len(known) + 1))
    elif facts["action"] == "ended" and is_open:
        known[-1].ended = event.seconds


def _make_state(opening: _Opening, snoozes: Mapping[str, Handling]) -> AlertState:
    event, key = opening.event, str(opening.event.facts["key"])
    found = [one for name, one in snoozes.items() if matches_alert(name, key)]
    return AlertState(
        event.generator,
        key,
        opening.number,
        event.seconds,
        event.version,
        opening.facts,
        opening.ended,
        opening.acknowledged,
        max(found, key=lambda one: one.seconds_left or 0.0, default=None),
        opening.earlier,
        frozenset(opening.delivered),
    )


def list_changes(
    events: Sequence[HistoryEvent],
    generator: str,
    version: int | None,
    alerts: Iterable[Mapping[str, Any]],
    is_checked: Callable[[str], bool],
    now: float,
) -> list[HistoryEvent]:
    """Return the events that a pass adds: alerts that begin, and alerts that end.

    alerts: those of the pass, as plain data. is_checked: whether the pass has looked at a check; an alert of another
    check goes on, and so does one that a current alert explains.
    """
    alerts = list(alerts)
    current = {alert["key"]: alert for alert in reversed(alerts)}
    explained = {check for alert in alerts for check in alert["follows"]}
    known = {state.key: state for state in derive_alert_book(events, now).open}
    changes = [
        HistoryEvent(generator, KIND, now, version, {"action": "opened", "key": key, "alert": dict(alert)})
        for key, alert in reversed(current.items())
        if key not in known
    ]
    for key, state in known.items():
        check = str(state.facts["check"])
        if key not in current and check not in explained and is_checked(check):
            changes.append(HistoryEvent(generator, KIND, now, version, {"action": "ended", "key": key}))
    return changes
