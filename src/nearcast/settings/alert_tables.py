"""Tables of a spec about alerts: who owns them, how severe they are, and where they are sent.

A secret is never in a spec: `env:NAME` names the environment variable that holds it.
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_serializer, model_validator

from nearcast.settings.base_table import SpecTable
from nearcast.webhook import parse_webhook, shorten_url

__all__ = ["ENVIRONMENT", "SEVERITIES", "AlertSpec", "Severity", "WebhookSpec", "check_link"]

Severity = Literal["critical", "error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "error", "warning", "info")  # the worst first

ENVIRONMENT = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")  # a value that an environment variable holds


def check_link(link: str | None) -> None:
    """Raise ValueError if a runbook is no http or https URL."""
    if link is not None and re.fullmatch(r"https?://[^\s<>|\x00-\x1f\x7f-\x9f]+", link) is None:
        raise ValueError(f"runbook is {link!r}; write a URL like https://wiki.example.com/runbooks/recall")


class AlertSpec(SpecTable):
    """Owner, severity and runbook of the alerts of one check: a [[monitor.alerts]] table."""

    check: str = Field(
        min_length=1,
        description="Name of a check, of `nearcast monitor --checks`, or of one alert, such as audit:items.",
    )
    owner: str | None = Field(None, min_length=1, description="Who takes care of it. Default: monitor.owner.")
    severity: Severity | None = Field(
        None, description="critical, error, warning or info. Default: monitor.severity, else error or warning."
    )
    runbook: str | None = Field(None, description="URL of what to do. Default: monitor.runbook.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_link(self.runbook)
        return self


class WebhookSpec(SpecTable):
    """A receiver of alerts: a [[monitor.webhooks]] table."""

    format: Literal["json", "slack", "pagerduty", "alertmanager"] = Field(
        "json", description="Body of the requests: json, slack, pagerduty (Events API v2) or alertmanager (API v2)."
    )
    url: str | None = Field(
        None,
        description="URL, or env:NAME for the environment variable that holds it. Default: that of PagerDuty's events.",
    )
    routing_key: str | None = Field(
        None, description="env:NAME of the environment variable with the integration key, for pagerduty."
    )
    min_severity: Severity = Field("info", description="Alerts below this severity are not sent.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.url is None and self.format != "pagerduty":
            raise ValueError(f"a webhook of format {self.format!r} needs a url: a URL, or env:NAME")
        if self.url is not None and ENVIRONMENT.fullmatch(self.url) is None:
            parse_webhook(self.url)  # raises ValueError with the correction
        if (self.routing_key is not None) != (self.format == "pagerduty"):
            need = "needs" if self.format == "pagerduty" else "takes no"
            raise ValueError(f"a webhook of format {self.format!r} {need} routing_key")
        if self.routing_key is not None and ENVIRONMENT.fullmatch(self.routing_key) is None:
            raise ValueError("routing_key is a secret; write env:NAME, and set the environment variable NAME")
        return self

    @field_serializer("url", when_used="json")
    def _hide_secrets(self, url: str | None) -> str | None:
        """Return the URL for a manifest, without its path: a chat service's URL is a secret."""
        return url if url is None or ENVIRONMENT.fullmatch(url) else shorten_url(url)
