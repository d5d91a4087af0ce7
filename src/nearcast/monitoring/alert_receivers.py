"""Send alerts to webhooks: each receiver gets a notice when an alert begins, and one when it ends.

What was delivered is in the history. A delivery that fails is recorded there too, and the next pass tries again; one
whose record is lost, by a kill or a full disk, is repeated. URLs and keys are read from the environment or the spec,
and only scheme, host and port of a URL are recorded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from nearcast.files import fingerprint
from nearcast.history.event_log import append
from nearcast.monitoring.alert_bodies import (
    PAGERDUTY_URL,
    Notice,
    build_alertmanager_body,
    build_pagerduty_body,
    build_slack_body,
    describe_notice,
)
from nearcast.monitoring.alert_states import DEFAULT_SEVERITY, KIND, AlertBook, AlertState
from nearcast.settings.alert_tables import ENVIRONMENT, SEVERITIES, WebhookSpec
from nearcast.settings.publish_tables import MonitorSpec
from nearcast.storage.locations import Location
from nearcast.webhook import DeliveryFailure, parse_webhook, post_json, shorten_url

__all__ = ["AlertReceiver", "AlertSender", "resolve_receivers"]

ATTEMPTS = 3
ALERTMANAGER_PATH = "/api/v2/alerts"


@dataclass(frozen=True, slots=True)
class AlertReceiver:
    """A webhook with its secrets."""

    format: str
    url: str
    routing_key: str = ""
    min_severity: str = "info"
    fault: str = ""  # why nothing can be sent, for example a missing environment variable

    @property
    def name(self) -> str:
        """The receiver in messages: scheme, host and port."""
        return f"{self.format} {shorten_url(self.url)}" if self.url else self.format

    @property
    def identity(self) -> str:
        """Name in the history: another URL or key is another receiver, and learns of open alerts anew."""
        return fingerprint([self.format, self.url, self.routing_key])[:16]

    def __repr__(self) -> str:
        """Return the receiver without its secrets."""
        return f"AlertReceiver({self.name})"


def resolve_receivers(
    settings: MonitorSpec, webhook: str | None = None, environment: Mapping[str, str] = os.environ
) -> list[AlertReceiver]:
    """Return the receivers of a spec, with the secrets that environment variables hold.

    webhook: URL in place of `monitor.webhook`.
    """
    plain = webhook or settings.webhook
    found = [AlertReceiver("json", plain)] if plain else []
    return [*found, *(_resolve_receiver(row, environment) for row in settings.webhooks)]


def _resolve_receiver(row: WebhookSpec, environment: Mapping[str, str]) -> AlertReceiver:
    faults: list[str] = []

    def read(value: str | None) -> str:
        named = None if value is None else ENVIRONMENT.fullmatch(value)
        if named is None:
            return value or ""
        if not environment.get(named[1], "").strip():
            faults.append(f"the environment variable {named[1]} is not set")
        return environment.get(named[1], "").strip()

    url, key = read(row.url or PAGERDUTY_URL), read(row.routing_key)
    if url:
        try:
            parse_webhook(url)
        except ValueError:  # its text may hold a part of the secret
            faults.append(f"{row.url} is not the URL of a webhook; write one like https://hooks.example.com/alerts")
        else:
            url = _add_alertmanager_path(url) if row.format == "alertmanager" else url
    return AlertReceiver(row.format, url, key, row.min_severity, "; ".join(faults))


def _add_alertmanager_path(url: str) -> str:
    """Return the URL of Alertmanager with the path of its alerts, before a query."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(ALERTMANAGER_PATH) else path + ALERTMANAGER_PATH))


class AlertSender:
    """Sends the alerts of one or many generators. A receiver that takes nothing is not asked again by this sender.

    A request whose body is refused does not keep the next one from being sent.
    """

    def __init__(self) -> None:
        self._failed: dict[str, str] = {}  # receiver: why

    def send(
        self,
        out: Location | None,
        book: AlertBook,
        receivers: Sequence[AlertReceiver],
        report: Mapping[str, Any],
        now: float,
    ) -> list[str]:
        """Send every receiver the notices that it has not had. Return why deliveries failed; raises nothing.

        out: location of the history that records deliveries; None: none are recorded. report: the pass as plain data.
        """
        failures = []
        for receiver in receivers:
            failure = self._send_to(out, book, receiver, report, now)
            if failure:
                failures.append(failure)
        return failures

    def _send_to(
        self, out: Location | None, book: AlertBook, receiver: AlertReceiver, report: Mapping[str, Any], now: float
    ) -> str | None:
        generator, identity = str(report["generator"]), receiver.identity
        due = _list_due(book, receiver)
        failure = (receiver.fault or self._failed.get(identity)) if due else None
        for notices in [] if failure else _group(receiver, due):
            refused = self._post(receiver, generator, notices, report, now)
            if refused is not None:
                failure = refused.reason
                if refused.of_body:
                    continue
                self._failed[identity] = failure
                break
            new = [one for one in notices if (identity, one.action) not in one.state.delivered]
            if new:  # Alertmanager gets open alerts again and again
                delivered = [[one.state.key, one.state.opening, one.action] for one in new]
                _record(out, generator, now, {"action": "delivered", "to": identity, "notices": delivered}, receiver)
        if failure is None:
            return None
        _record(out, generator, now, {"action": "failed", "to": identity, "why": failure}, receiver)
        return f"{receiver.name}: {failure}" if receiver.fault else failure

    def _post(
        self, receiver: AlertReceiver, generator: str, notices: Sequence[Notice], report: Mapping[str, Any], now: float
    ) -> DeliveryFailure | None:
        body: Mapping[str, Any] | Sequence[Any]
        if receiver.format == "pagerduty":
            body = build_pagerduty_body(notices[0], receiver.routing_key)
        elif receiver.format == "alertmanager":
            body = build_alertmanager_body(notices, now)
        elif receiver.format == "slack":
            body = build_slack_body(generator, notices)
        else:
            body = _build_plain_body(generator, notices, report)
        return post_json(receiver.url, body, attempts=ATTEMPTS)


def _build_plain_body(generator: str, notices: Sequence[Notice], report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report of the pass, with a text that chat services show, and the alerts that began and ended."""
    lines = [f"nearcast {generator}", *(describe_notice(notice) for notice in notices)]
    lines += [report["users_get"]] if report.get("users_get") else []
    began = [notice.state.key for notice in notices if notice.action == "trigger"]
    ended = [notice.state.key for notice in notices if notice.action == "resolve"]
    return {"text": "\n".join(lines)} | dict(report) | {"new": began, "resolved": ended}


def _list_due(book: AlertBook, receiver: AlertReceiver) -> list[Notice]:
    """Return the notices that the receiver has not had, and for Alertmanager all open alerts."""
    due: list[Notice] = []
    for state in book.states:
        actions = {action for identity, action in state.delivered if identity == receiver.identity}
        if state.ended is not None:
            due += [Notice(state, "resolve")] if "trigger" in actions and "resolve" not in actions else []
        elif _is_trigger_due(state, receiver, actions):
            due.append(Notice(state, "trigger"))
        elif receiver.format == "pagerduty" and state.acknowledged and actions == {"trigger"}:
            due.append(Notice(state, "acknowledge"))
    return due


def _is_trigger_due(state: AlertState, receiver: AlertReceiver, actions: set[str]) -> bool:
    severity = state.facts.get("severity") or DEFAULT_SEVERITY
    if state.snoozed is not None or SEVERITIES.index(severity) > SEVERITIES.index(receiver.min_severity):
        return False
    if receiver.format == "alertmanager":
        return True
    return "trigger" not in actions and state.acknowledged is None


def _group(receiver: AlertReceiver, due: Sequence[Notice]) -> list[Sequence[Notice]]:
    """Return the notices of each request: PagerDuty takes one at a time."""
    if receiver.format == "pagerduty":
        return [[notice] for notice in due]
    return [due] if due else []


def _record(
    out: Location | None, generator: str, now: float, facts: Mapping[str, Any], receiver: AlertReceiver
) -> None:
    """Add an event to the history. One that cannot be written is lost: the delivery is repeated."""
    if out is not None:
        append(out, generator, KIND, None, {**facts, "name": receiver.name}, seconds=now)
