"""JSON schemas of webhook bodies, written from the documented field lists of each receiver.

Slack: docs.slack.dev, incoming webhooks and Block Kit reference. PagerDuty: developer.pagerduty.com, Events API v2.
Alertmanager: prometheus.io, alerts API, and the API v2 definition `postableAlert`.
"""

from __future__ import annotations

from typing import Any

TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"}


def block(kind: str, text: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["type", "text"],
        "properties": {"type": {"const": kind}, "text": text, "block_id": {"type": "string", "maxLength": 255}},
    }


def text_object(kind: str, longest: int) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["type", "text"],
        "properties": {"type": {"const": kind}, "text": {"type": "string", "minLength": 1, "maxLength": longest}},
    }


SLACK: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["text"],
    "properties": {
        "text": {"type": "string", "minLength": 1, "maxLength": 40_000},
        "blocks": {
            "type": "array",
            "maxItems": 50,
            "items": {
                "oneOf": [
                    block("header", text_object("plain_text", 150)),
                    block("section", text_object("mrkdwn", 3000)),
                ]
            },
        },
    },
}

_EVENT = {
    "routing_key": {"type": "string", "pattern": "^[0-9A-Za-z]{32}$"},
    "event_action": {"enum": ["trigger", "acknowledge", "resolve"]},
    "dedup_key": {"type": "string", "minLength": 1, "maxLength": 255},
}

PAGERDUTY: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["routing_key", "event_action", "dedup_key"],
    "properties": {
        **_EVENT,
        "client": {"type": "string"},
        "client_url": {"type": "string"},
        "payload": {
            "type": "object",
            "additionalProperties": False,
            "required": ["summary", "source", "severity"],
            "properties": {
                "summary": {"type": "string", "minLength": 1, "maxLength": 1024},
                "source": {"type": "string", "minLength": 1},
                "severity": {"enum": ["critical", "error", "warning", "info"]},
                "timestamp": TIME,
                "component": {"type": "string"},
                "group": {"type": "string"},
                "class": {"type": "string"},
                "custom_details": {"type": "object"},
            },
        },
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["href"],
                "properties": {"href": {"type": "string", "pattern": "^https?://"}, "text": {"type": "string"}},
            },
        },
        "images": {"type": "array"},
    },
    "if": {"properties": {"event_action": {"const": "trigger"}}},
    "then": {"required": ["payload"]},
}

_LABELS = {
    "type": "object",
    "propertyNames": {"pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"},
    "additionalProperties": {"type": "string", "minLength": 1},
}

ALERTMANAGER: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["labels"],
        "properties": {
            "labels": {**_LABELS, "required": ["alertname"]},
            "annotations": _LABELS,
            "startsAt": TIME,
            "endsAt": TIME,
            "generatorURL": {"type": "string"},
        },
    },
}
