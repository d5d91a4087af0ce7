"""Functions for alerts: list the open ones, acknowledge and snooze them."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearcast.api.arguments import OUT, SpecLike, is_name, resolve_out, resolve_spec
from nearcast.errors import NotFoundError, SpecError, StorageError
from nearcast.history.event_log import append, newest, read
from nearcast.monitoring.alert import CHECKS
from nearcast.monitoring.alert_states import ANY, KIND, AlertBook, AlertState, derive_alert_book, matches_alert
from nearcast.storage.locations import Location, parse_location
from nearcast.suggest import describe_generators

__all__ = ["acknowledge_alert", "list_alerts", "snooze_alert", "unsnooze_alert"]


def list_alerts(generator: SpecLike | None = None, *, out: str | Path | None = None) -> list[AlertState]:
    """Return the open alerts of a generator, or of all generators in `out`, oldest first.

    Alerts begin and end with passes of the monitor. Raises NotFoundError for a generator without a history.
    """
    if generator is None:
        place = parse_location(out or OUT)
        books = [_read_book(place, name) for name in sorted(newest(place))]
        return sorted((state for book in books for state in book.open), key=lambda state: (state.since, state.key))
    place, name = _find_history(generator, out)
    return _read_book(place, name).open


def acknowledge_alert(
    generator: SpecLike, alert: str, *, who: str, why: str = "", out: str | Path | None = None
) -> list[AlertState]:
    """Acknowledge an open alert: it is not sent again, and does not fail a check, until it ends. Return the alerts.

    alert: an alert, such as slice:segment=home, a check, such as slice, or "any". Raises NotFoundError if none is open.
    """
    place, name = _find_history(generator, out)
    _find_open(place, name, alert)
    _write(place, name, {"action": "acknowledged", "key": alert, "who": who, "why": why})
    return [state for state in _read_book(place, name).open if matches_alert(alert, state.key)]


def snooze_alert(
    generator: SpecLike, alert: str, *, seconds: float, who: str, why: str = "", out: str | Path | None = None
) -> None:
    """Send nothing about an alert for some time, even if it ends and begins again.

    alert: as in `acknowledge_alert`; it need not be open. Raises NotFoundError for an unknown name.
    """
    if not seconds > 0:
        raise SpecError(f"a snooze lasts more than 0 seconds, got {seconds:g}")
    place, name = _find_history(generator, out)
    if alert != ANY and alert.partition(":")[0] not in CHECKS:
        _find_open(place, name, alert)
    _write(place, name, {"action": "snoozed", "key": alert, "for_seconds": seconds, "who": who, "why": why})


def unsnooze_alert(generator: SpecLike, alert: str, *, who: str, out: str | Path | None = None) -> None:
    """End the snoozes of an alert, a check or "any". Raises NotFoundError if there is none."""
    place, name = _find_history(generator, out)
    snoozes = _read_book(place, name).snoozes
    if not any(matches_alert(alert, snoozed) for snoozed in snoozes):
        known = f"snoozed are {', '.join(sorted(snoozes))}" if snoozes else "nothing is snoozed"
        raise NotFoundError(f"{name}: {alert!r} is not snoozed; {known}")
    _write(place, name, {"action": "unsnoozed", "key": alert, "who": who})


def _find_history(generator: SpecLike, out: str | Path | None) -> tuple[Location, str]:
    """Return the location of a generator's history, and its name. Raises NotFoundError if it has none."""
    if is_name(generator):
        place, name = parse_location(out or OUT), str(generator)
    else:
        spec, folder = resolve_spec(generator, None, None, None)
        place, name = resolve_out(out, spec, folder), spec.name
    known = newest(place)
    if name not in known:
        words = describe_generators(name, list(known), "run or monitor it first, or name its folder with --out")
        raise NotFoundError(f"no history of {name!r} in {place}; {words}")
    return place, name


def _read_book(place: Location, name: str) -> AlertBook:
    return derive_alert_book(read(place, name, kinds=(KIND, "monitor")), time.time())


def _find_open(place: Location, name: str, alert: str) -> None:
    """Raise NotFoundError if no open alert has this name."""
    keys = [state.key for state in _read_book(place, name).open]
    if not any(matches_alert(alert, key) for key in keys):
        near = difflib.get_close_matches(alert, keys, n=1)
        known = f"open are {', '.join(keys)}" if keys else "no alert is open"
        hint = f"did you mean {near[0]!r}?" if near else known
        raise NotFoundError(f"{name}: no alert {alert!r} is open; {hint}")


def _write(place: Location, name: str, facts: Mapping[str, Any]) -> None:
    """Add an event. Raises StorageError if it cannot be written: nobody may believe that an alert is handled."""
    failure = append(place, name, KIND, None, facts)
    if failure is not None:
        raise StorageError(f"{failure}; nothing has changed")
