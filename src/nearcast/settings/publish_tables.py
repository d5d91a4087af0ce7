"""Tables of a spec about publishing, auditing, serving and monitoring. They do not change the candidates."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_serializer, model_serializer, model_validator

from nearcast.settings.alert_tables import AlertSpec, Severity, WebhookSpec, check_link
from nearcast.settings.base_table import Rate, Share, SpecTable, Whole
from nearcast.webhook import parse_webhook, shorten_url

__all__ = ["AuditSpec", "CanarySpec", "MonitorSpec", "PublishSpec", "ServeSpec"]

NEW_IN_MONITOR = ("owner", "severity", "runbook", "alerts", "webhooks")  # keys that earlier manifests lack
PASSWORD_IN_URL = re.compile(r"^([A-Za-z0-9+.-]+://[^:/?#@]*):.*@", re.DOTALL)


class PublishSpec(SpecTable):
    """Settings of publishing. They do not change the candidates."""

    store: str = Field(
        "lmdb:store",
        description="Store: lmdb:PATH relative to `out`, redis://host:port/db, or another URL of docs/stores.md.",
    )
    keep: Whole = Field(3, ge=1, le=100, description="Versions kept in the store, the current one included.")
    keep_snapshots: Annotated[Whole, Field(ge=1)] | Literal["all"] | None = Field(
        10, description='Newest snapshots kept, beside those that are served, pinned or read; "all" removes none.'
    )
    max_bytes_per_second: Rate | None = Field(
        None, description='Limits the speed of the copy, for example "50MB". Default: no limit.'
    )

    @property
    def snapshots_kept(self) -> int | None:
        """How many of the newest snapshots stay; None for all, as in manifests of earlier releases without a value."""
        return self.keep_snapshots if isinstance(self.keep_snapshots, int) else None

    @field_serializer("store", when_used="json")
    def _hide_password(self, store: str) -> str:
        """Return the URL for a manifest, with *** in place of a password."""
        return PASSWORD_IN_URL.sub(r"\1:***@", store)


class AuditSpec(SpecTable):
    """Audit: limits for publishing a snapshot. Some compare it with the current version."""

    min_recall: Share | None = Field(
        None,
        ge=0,
        le=1,
        description="Minimum of the lower end of recall's confidence interval. Default: the recall target.",
    )
    min_fill_rate: Share = Field(0.9, ge=0, le=1, description="Minimum share of slots that hold a candidate.")
    min_fill_at: Share = Field(
        0.9, ge=0, le=1, description="Minimum share of lists with `measure.fill_at` candidates, if that is set."
    )
    min_query_coverage: Share = Field(0.95, ge=0, le=1, description="Minimum share of queries with a candidate.")
    min_queries_kept: Share = Field(0.9, ge=0, le=1, description="Minimum share of current keys that the snapshot has.")
    min_keys: Whole = Field(1, ge=0, description="Minimum number of keys.")
    max_keys_lost: Share = Field(0.1, ge=0, le=1, description="Maximum decrease of the number of keys, as a share.")
    min_overlap: Share = Field(0.3, ge=0, le=1, description="Minimum overlap@k with the current lists. Finds a mix-up.")
    max_age_hours: float = Field(48.0, gt=0, description="Maximum age of the snapshot.")
    max_size_change: float = Field(2.0, ge=1, description="Maximum factor by which its bytes grow or shrink.")
    max_items_lost: Share = Field(0.1, ge=0, le=1, description="Maximum decrease of the number of items, as a share.")
    max_items_gained: float = Field(0.5, ge=0, description="Maximum increase of the number of items, as a share.")
    min_items_kept: Share = Field(0.7, ge=0, le=1, description="Minimum share of served items that the snapshot has.")
    max_bad_rows: Share = Field(0.05, ge=0, le=1, description="Maximum rise of the share of rows that fail a check.")
    max_empty: Share = Field(
        0.1, ge=0, le=1, description="Maximum rise of the share of null or empty values in a column."
    )
    max_drift: float = Field(0.25, ge=0, description="Maximum PSI between a column's values and the served ones.")
    skip_columns: tuple[str, ...] = Field((), description="Columns that are not compared.")
    max_values_changed: Share = Field(
        0.5, ge=0, le=1, description="Maximum share of common rows whose text or flag differs."
    )
    max_values_scaled: Share = Field(
        0.25, ge=0, le=1, description="Maximum share of common rows whose number grew or fell 3 times."
    )
    max_pairs_drift: float = Field(0.25, ge=0, description="Maximum PSI of the share of pairs that a rule keeps.")
    max_vectors_changed: Share = Field(0.2, ge=0, le=1, description="Maximum share of common ids whose vector differs.")
    max_lists_changed: Share = Field(0.2, ge=0, le=1, description="Maximum share of lists that one update changes.")
    max_label_loss: float = Field(
        0.1, ge=0, description="Maximum loss of a metric of the labels against the current lists, as a share."
    )
    max_length_change: float = Field(
        1.5, ge=1, description="Maximum factor of change of the median vector length; not checked for cosine."
    )


class ServeSpec(SpecTable):
    """Settings of a service that answers for this generator."""

    default_keys: tuple[str | int, ...] = Field(
        (), description="Keys whose lists are returned for an unknown key, in this order."
    )
    default_items: tuple[str | int, ...] = Field((), description="Items returned when every other fallback is empty.")
    online_recall: Share = Field(0.95, gt=0, le=1, description="Recall target of searches by vector.")


class CanarySpec(SpecTable):
    """Rules of `nearcast canary --watch`: when a canary is promoted or withdrawn."""

    share: Share = Field(0.05, gt=0, le=1, description="Share of the keys of a canary for which none is named.")
    min_answers: Whole = Field(1000, ge=1, description="Measured look-ups before any decision.")
    decide_after: float = Field(600.0, ge=0, description="Minimum seconds of watching before a promotion.")
    max_seconds: float = Field(7200.0, gt=0, description="Seconds of watching after which the figures decide.")
    max_empty_increase: Share = Field(
        0.01, ge=0, le=1, description="Maximum rise of the share of look-ups without a candidate."
    )
    min_fill_ratio: float = Field(0.9, ge=0, description="Minimum ratio of the mean list lengths, canary to current.")
    min_overlap: Share = Field(0.3, ge=0, le=1, description="Minimum mean overlap of the two lists of a key.")
    max_latency_ratio: float = Field(
        2.0, ge=1, description="Maximum ratio of the 99th percentiles of latency. Below 1 ms none is too slow."
    )
    min_hit_ratio: float = Field(
        0.9, ge=0, description="Minimum ratio of the hit rates, canary to current, if engagement is given."
    )


class MonitorSpec(SpecTable):
    """Settings and limits of `nearcast monitor`. They do not change the candidates."""

    sample: Whole = Field(1000, ge=20, description="Served lists that are compared with today's items.")
    window_hours: float = Field(24.0, gt=0, description="Look-ups of this many last hours are sampled.")
    min_recall_today: Share | None = Field(
        None,
        ge=0,
        le=1,
        description="Minimum recall of served lists among today's items. Default: 0.9 times the recall target.",
    )
    max_dead: Share = Field(0.1, ge=0, le=1, description="Maximum share of served candidates that are not items today.")
    webhook: str | None = Field(None, description="URL that alerts are posted to as JSON. Default: none.")
    owner: str | None = Field(None, min_length=1, description="Who takes care of alerts. Default: nobody is named.")
    severity: Severity | None = Field(
        None, description="critical, error, warning or info, of all alerts. Default: by check, error or warning."
    )
    runbook: str | None = Field(None, description="URL of what to do after an alert. Default: none.")
    alerts: tuple[AlertSpec, ...] = Field(
        (), description="Owners by check: [[monitor.alerts]] tables, see docs/alerts.md."
    )
    webhooks: tuple[WebhookSpec, ...] = Field(
        (), description="Receivers of alerts: [[monitor.webhooks]] tables, see docs/alerts.md."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.webhook is not None:
            parse_webhook(self.webhook)  # raises ValueError with the correction
        check_link(self.runbook)
        names = [row.check for row in self.alerts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{names.count(name)} tables [[monitor.alerts]] are of {name!r}; write one")
        return self

    @model_serializer(mode="wrap", when_used="json")
    def _omit_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return plain data without unused keys of alerts, so that manifests stay as those of earlier releases."""
        unused = {key for key in NEW_IN_MONITOR if not getattr(self, key)}
        return {key: value for key, value in write(self).items() if key not in unused}

    @field_serializer("webhook", when_used="json")
    def _hide_secrets(self, webhook: str | None) -> str | None:
        """Return the URL for a manifest, without its path: a chat service's URL is a secret."""
        return None if webhook is None else shorten_url(webhook)
