"""Bodies of webhook requests: Slack, PagerDuty (Events API v2) and Alertmanager (API v2).

Takes notices, returns plain data in the documented format of each receiver, within its limits. Sends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from nearcast.files import fingerprint
from nearcast.monitoring.alert_states import DEFAULT_SEVERITY, AlertState, Duty

__all__ = [
    "PAGERDUTY_URL",
    "Notice",
    "NoticeAction",
    "build_alertmanager_body",
    "build_pagerduty_body",
    "build_slack_body",
    "describe_notice",
    "make_dedup_key",
]

NoticeAction = Literal["trigger", "acknowledge", "resolve"]

PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"
DEDUP_KEY_CHARACTERS = 255
SUMMARY_CHARACTERS = 1024
HEADER_CHARACTERS = 150  # of a header block; a section has at most 3,000
LINE_CHARACTERS = 150  # of `text`, which has at most 40,000; an escaped character has up to five
TITLE_CHARACTERS, SENTENCE_CHARACTERS, ABOUT_CHARACTERS, LINK_CHARACTERS = 100, 280, 120, 400
SLACK_NOTICES = 45  # a message has at most 50 blocks
FIRING_SECONDS = 26 * 3600.0  # Alertmanager: an alert that no check confirms ends after a night and two hours


@dataclass(frozen=True, slots=True)
class Notice:
    """A message about an alert: it began, was acknowledged, or ended."""

    state: AlertState
    action: NoticeAction

    @property
    def title(self) -> str:
        """The headline of the alert."""
        return str(self.state.facts.get("title") or self.state.key)

    @property
    def severity(self) -> str:
        """critical, error, warning or info."""
        return str(self.state.facts.get("severity") or DEFAULT_SEVERITY)

    @property
    def owner(self) -> str | None:
        """Who takes care of it."""
        return self.state.facts.get("owner")

    @property
    def runbook(self) -> str | None:
        """URL of what to do."""
        return self.state.facts.get("runbook")


def make_dedup_key(state: AlertState) -> str:
    """Return the name of an alert that is the same until it ends, for receivers that remove repetitions."""
    name = f"nearcast/{state.generator}/{state.key}"
    if len(name) <= DEDUP_KEY_CHARACTERS:
        return name
    return f"{name[: DEDUP_KEY_CHARACTERS - 13]}-{fingerprint(name)[:12]}"


def describe_notice(notice: Notice) -> str:
    """Return one line about an alert that began or ended."""
    state = notice.state
    if notice.action == "resolve":
        return f"resolved: {state.key}: {notice.title}"
    return f"{state.key}: {notice.title}. {state.facts['text']}"


def build_slack_body(generator: str, notices: Sequence[Notice]) -> dict[str, Any]:
    """Return the body for an incoming webhook of Slack: one message with a block per alert.

    `text` is what notifications show; `&`, `<` and `>` are escaped, since Slack reads links and mentions from them.
    """
    began = sum(notice.action == "trigger" for notice in notices)
    ended = len(notices) - began
    counts = [f"{began} new alert{'s' if began != 1 else ''}"] if began else []
    counts += [f"{ended} resolved"] if ended else []
    headline = f"nearcast {generator}: {', '.join(counts)}"
    header = {"type": "plain_text", "text": _shorten(headline, HEADER_CHARACTERS)}
    blocks: list[dict[str, Any]] = [{"type": "header", "text": header}]
    blocks += [_build_section(_format_slack(notice)) for notice in notices[:SLACK_NOTICES]]
    if len(notices) > SLACK_NOTICES:
        blocks.append(_build_section(f"and {len(notices) - SLACK_NOTICES} more; `nearcast alerts list` shows all"))
    lines = [headline, *(_shorten(describe_notice(notice), LINE_CHARACTERS) for notice in notices[:SLACK_NOTICES])]
    return {"text": _escape("\n".join(lines)), "blocks": blocks}


def _format_slack(notice: Notice) -> str:
    """Return the text of a block. Long sentences are shortened before they are escaped, so that no escape is cut."""
    state = notice.state
    title = _escape(_shorten(notice.title, TITLE_CHARACTERS))
    if notice.action == "resolve":
        return f"*Resolved: {title}*\n{_escape(_shorten(state.key, TITLE_CHARACTERS))}"
    facts = [notice.severity, state.key, *([f"owner {notice.owner}"] if notice.owner else [])]
    link = _escape(notice.runbook or "")
    links = f"  <{link}|runbook>" if link and len(link) < LINK_CHARACTERS else ""
    about = _escape(_shorten(" · ".join(facts), ABOUT_CHARACTERS))
    return f"*{title}*\n{_escape(_shorten(str(state.facts['text']), SENTENCE_CHARACTERS))}\n{about}{links}"


def _build_section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def build_pagerduty_body(notice: Notice, routing_key: str) -> dict[str, Any]:
    """Return an event of PagerDuty's Events API v2. Events of one alert have one `dedup_key`."""
    state, facts = notice.state, notice.state.facts
    event = {"routing_key": routing_key, "event_action": notice.action, "dedup_key": make_dedup_key(state)}
    if notice.action != "trigger":
        return event
    payload = {
        "summary": _shorten(f"{state.generator}: {notice.title}", SUMMARY_CHARACTERS),
        "source": state.generator,
        "severity": notice.severity,
        "timestamp": _format_time(state.since),
        "component": "nearcast",
        "class": str(facts["check"]),
        "custom_details": {
            "text": facts["text"],
            "effect": facts.get("effect"),
            "found": facts.get("found"),
            "bound": facts.get("bound"),
            "usual": facts.get("usual"),
            "snapshot": state.version,
            "owner": notice.owner,
        },
    }
    if notice.owner:
        payload["group"] = notice.owner
    links = [{"href": notice.runbook, "text": "runbook"}] if notice.runbook else []
    return event | {"client": "nearcast", "payload": payload} | ({"links": links} if links else {})


def build_alertmanager_body(notices: Sequence[Notice], now: float) -> list[dict[str, Any]]:
    """Return the body for POST /api/v2/alerts. An alert with the same labels is the same alert.

    Alertmanager expects open alerts again and again; one that no check repeats ends after FIRING_SECONDS. So does one
    of an earlier owner or severity: it is ended here.
    """
    alerts = []
    for notice in notices:
        alerts.append(_build_alert(notice, (notice.severity, notice.owner), _find_end(notice, now)))
        for duty, until in notice.state.earlier.items():
            if now - until < FIRING_SECONDS:
                alerts.append(_build_alert(notice, duty, max(notice.state.since, min(until, now))))
    return alerts


def _find_end(notice: Notice, now: float) -> float:
    """Return when an alert has ended, or will if it is not repeated."""
    state = notice.state
    ended = state.ended if state.ended is not None else now
    return max(state.since, min(ended, now)) if notice.action == "resolve" else max(now, state.since) + FIRING_SECONDS


def _build_alert(notice: Notice, duty: Duty, until: float) -> dict[str, Any]:
    state, (severity, owner) = notice.state, duty
    labels = {
        "alertname": f"nearcast_{state.facts['check']}",
        "generator": state.generator,
        "alert": state.key,
        "severity": severity,
        "owner": owner,
    }
    annotations = {
        "summary": f"{state.generator}: {notice.title}",
        "description": str(state.facts["text"]),
        "effect": state.facts.get("effect"),
        "runbook_url": notice.runbook,
    }
    return {
        "labels": {name: value for name, value in labels.items() if value},
        "annotations": {name: value for name, value in annotations.items() if value},
        "startsAt": _format_time(state.since),
        "endsAt": _format_time(until),
    }


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
