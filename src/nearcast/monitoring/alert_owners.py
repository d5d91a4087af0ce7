"""Owner, severity and runbook of alerts, by the spec: the most specific [[monitor.alerts]] table, then [monitor]."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace

from nearcast.errors import SpecError
from nearcast.monitoring.alert import ALERT_TEXTS, CHECKS, Alert
from nearcast.monitoring.alert_states import matches_alert
from nearcast.settings.publish_tables import MonitorSpec

__all__ = ["assign_owners", "check_alert_names"]


def check_alert_names(settings: MonitorSpec, where: str) -> None:
    """Raise SpecError for a [[monitor.alerts]] table of an unknown check. where: the spec, for the message."""
    for row in settings.alerts:
        check = row.check.partition(":")[0]
        if check not in CHECKS:
            near = difflib.get_close_matches(check, CHECKS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`nearcast monitor --checks` lists them"
            raise SpecError(f"{where}: monitor.alerts: there is no check {row.check!r}; {hint}")


def assign_owners(alerts: Iterable[Alert], settings: MonitorSpec) -> list[Alert]:
    """Return the alerts with their owner, severity and runbook."""
    return [_assign_owner(alert, settings) for alert in alerts]


def _assign_owner(alert: Alert, settings: MonitorSpec) -> Alert:
    names = {alert.key, alert.check, alert.key.partition(":")[0]}
    rows = [row for row in settings.alerts if row.check in names or matches_alert(row.check, alert.key)]
    rows.sort(key=lambda row: -len(row.check))
    level = "error" if ALERT_TEXTS[alert.check].level == "bad" else "warning"
    return replace(
        alert,
        owner=next((row.owner for row in rows if row.owner), settings.owner),
        severity=next((row.severity for row in rows if row.severity), settings.severity) or level,
        runbook=next((row.runbook for row in rows if row.runbook), settings.runbook),
    )
