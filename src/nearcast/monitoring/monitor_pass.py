"""One monitor pass: update the history, check the newest run and the served version, and record the findings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nearcast.errors import DamagedError, NearcastError, NotFoundError, StoreError
from nearcast.history.event_log import HistoryEvent, append, read
from nearcast.history.publish_events import find_live_version
from nearcast.history.record import record_runs
from nearcast.join.context import RunContext
from nearcast.join.listener import Listener
from nearcast.monitoring.alert import Alert
from nearcast.monitoring.alert_owners import assign_owners
from nearcast.monitoring.alert_receivers import AlertReceiver, AlertSender
from nearcast.monitoring.alert_states import KIND, AlertBook, derive_alert_book, list_changes
from nearcast.monitoring.checks import USUAL_RUNS
from nearcast.monitoring.expected_range import FEWEST
from nearcast.monitoring.explain_changes import explain_changes
from nearcast.monitoring.newest_run import check_lost_store, check_newest_run, list_usual_runs
from nearcast.monitoring.problems import OF_SERVED
from nearcast.monitoring.root_causes import fold_consequences
from nearcast.monitoring.served_checks import check_served
from nearcast.monitoring.serving_summary import (
    describe_canary,
    describe_served,
    explain_age,
    explain_newer_runs,
    list_newest_runs,
)
from nearcast.monitoring.staleness import Staleness, measure_staleness
from nearcast.storage.folder_lock import hold_folder
from nearcast.storage.locations import Location, host_folder
from nearcast.stores import describe_lost_pointer
from nearcast.stores.base import Store
from nearcast.suggest import describe_generators
from nearcast.table.snapshot import list_generators

__all__ = ["MonitorReport", "read_alert_book", "run_monitor", "send_alerts"]


@dataclass(frozen=True, slots=True)
class MonitorReport:
    """The findings of one monitor pass."""

    generator: str
    version: int | None  # of the newest run; None if there is no run here
    runs: int  # earlier runs that it was compared with
    served: Staleness | None  # None: nothing is published, or today's items are not known without a spec
    alerts: tuple[Alert, ...]
    users_get: str = ""  # sentences on the served version, and on why newer runs are not published
    failure: NearcastError | None = None  # error while reading the store
    store: str | None = None  # URL of the store that was read
    rolled_back: str = ""  # version that is served after a rollback; "" without a rollback
    out: Location | None = None  # location of the history
    handled: tuple[str, ...] = ()  # alerts that someone has acknowledged or snoozed
    changes: Mapping[str, Any] | None = None  # why figures of the newest run moved; None if nothing is compared

    @property
    def verdict(self) -> str:
        """The pass in one line: the first alert, a rollback, or that nothing is wrong, with the limits of the check."""
        if self.alerts:
            more = f" (and {len(self.alerts) - 1} more)" if len(self.alerts) > 1 else ""
            return f"{self.alerts[0].headline}{more}"
        limits = []
        if self.version is not None and self.runs < FEWEST:
            limits.append(f"usual values need at least {FEWEST} earlier runs")
        if self.version is None:
            limits.append("there is no run here")
        if self.served is None:
            limits.append("the served version was not checked")
        elif self.served.recall is None:
            limits.append("the recall of the served version was not measured")
        if self.rolled_back:
            return f"rolled back to {self.rolled_back}" + (f"; {'; '.join(limits)}" if limits else "")
        return "nothing is wrong" + (f", but {'; '.join(limits)}" if limits else "")

    def as_dict(self) -> dict[str, Any]:
        """Return plain data. The keys are a format (history, webhook)."""
        return {
            "generator": self.generator,
            "version": self.version,
            "runs": self.runs,
            "verdict": self.verdict,
            "users_get": self.users_get,
            "store": self.store,
            "served": None if self.served is None else self.served.as_dict(),
            "alerts": [alert.as_dict() for alert in self.alerts],
            "handled": list(self.handled),
            "changes": None if self.changes is None else dict(self.changes),
        }

    def has_checked(self, check: str) -> bool:
        """Return whether this pass has looked for the problem of a check: only then it can say that it ended."""
        if check == "unreachable":
            return self.served is not None
        if check not in OF_SERVED:
            return self.version is not None
        values = {"served_recall": "recall", "fallbacks": "fallbacks"}  # figures that a pass may lack
        return self.served is not None and getattr(self.served, values.get(check, "dead")) is not None


def run_monitor(
    out: Location,
    generator: str,
    listener: Listener,
    *,
    run: RunContext | None,
    store: Store | None,
    samples: Location,
    failure: NearcastError | None = None,
) -> MonitorReport:
    """Check the newest run of a generator and, with a spec and a store, the served version; record the findings.

    run: made from the generator's spec; without it served lists are not compared with today's items.
    failure: error of a store that could not be opened. A served version that cannot be read is an alert, and the error
    is in `failure` of the report. Raises NotFoundError if there is no run and nothing is published.
    """
    warning = record_runs(out, generator)
    if warning:
        listener.note(warning)
    events = read(out, generator)
    runs = list_newest_runs(events)
    alerts = check_newest_run(events)
    served = None
    if run is not None and store is not None:
        try:
            served = _read_served(run, store, samples, generator, listener)
        except (StoreError, DamagedError) as error:
            failure = error
    if failure is not None:
        alerts.append(Alert("unreachable", str(failure), None, None, None))
    elif served is None and run is not None and store is not None:
        alerts += check_lost_store(store.url, events)
    if served is not None and run is not None:
        before = [event.facts["served"] for event in events if event.kind == "monitor"][-USUAL_RUNS:]
        found = check_served(served, run.spec, [facts for facts in before if facts])
        alerts = _drop_repeated_counts([*alerts, *(_add_reason(alert, events) for alert in found)])
    if not runs and served is None and failure is None:
        known = describe_generators(generator, list_generators(out), "run it first, or name its folder with --out")
        raise NotFoundError(f"no run of {generator!r} in {out}, and nothing published; {known}")
    alerts = fold_consequences(alerts)
    version = runs[-1].version if runs else None
    report = MonitorReport(
        generator,
        version,
        len(list_usual_runs(events)),
        served,
        tuple(alerts if run is None else assign_owners(alerts, run.spec.monitor)),  # only a spec names owners
        failure=failure,
        store=store.url if served is not None and store is not None else None,
        out=out,
        changes=explain_changes(out, generator, events, run),
    )
    report = _add_sentences(report, events)
    now = time.time()
    changes = _list_alert_changes(report, events, now)
    book = derive_alert_book([*events, *changes], now)
    report = replace(report, handled=tuple(state.key for state in book.open if state.is_handled))
    warning = append(out, generator, "monitor", version if served is None else served.version, report.as_dict())
    for change in changes:
        warning = append(out, generator, change.kind, change.version, change.facts, seconds=now) or warning
    if warning:
        listener.note(warning)
    return report


def _list_alert_changes(report: MonitorReport, events: Sequence[HistoryEvent], now: float) -> list[HistoryEvent]:
    alerts = [alert.as_dict() for alert in report.alerts]
    return list_changes(events, report.generator, report.version, alerts, report.has_checked, now)


def _read_served(
    run: RunContext, store: Store, samples: Location, generator: str, listener: Listener
) -> Staleness | None:
    """Measure the served version; None if nothing was published. Raises DamagedError if the pointer was lost."""
    if store.pointer(generator) is None:
        lost = describe_lost_pointer(store, generator)
        if lost is not None:
            raise DamagedError(lost)
        listener.note(f"nothing is published of {generator!r} in {store.url}")
        return None
    return measure_staleness(run, store, samples)


def _add_sentences(report: MonitorReport, events: Sequence[HistoryEvent]) -> MonitorReport:
    """Add the state of the served version after this pass, which may be the first to see a version in the store."""
    seen = [*events, HistoryEvent(report.generator, "monitor", time.time(), report.version, report.as_dict())]
    live = find_live_version(seen)
    back = f"{live.version:06d}" if live is not None and live.rolled_back else ""
    sentences = (describe_served(seen), describe_canary(seen), explain_newer_runs(seen))
    return replace(report, users_get=" ".join(filter(None, sentences)), rolled_back=back)


def _add_reason(alert: Alert, events: Sequence[HistoryEvent]) -> Alert:
    """Add to the alert about an old snapshot why nothing newer is served."""
    why = explain_age(events) if alert.check == "age" else ""
    return replace(alert, text=f"{alert.text}: {why}") if why else alert


def _drop_repeated_counts(alerts: Sequence[Alert]) -> list[Alert]:
    """Drop the alert on a count of the served version if the run has an alert on the same count."""
    counted = {alert.check for alert in alerts if alert.check.endswith("_count")}
    seen = set[str]()
    found = []
    for alert in alerts:
        if alert.check in counted and alert.check in seen:
            continue
        seen.add(alert.check)
        found.append(alert)
    return found


def send_alerts(report: MonitorReport, receivers: Sequence[AlertReceiver], sender: AlertSender) -> list[str]:
    """Send what is new of the alerts to their receivers. Return why deliveries failed; raises nothing."""
    if not receivers:
        return []
    with _wait_for_other_passes(report):
        now = time.time()
        book = read_alert_book(report, now)
        return sender.send(report.out, book, receivers, report.as_dict(), now)


@contextlib.contextmanager
def _wait_for_other_passes(report: MonitorReport) -> Iterator[None]:
    """Let the passes of a host send one after the other: the second one reads what the first one has delivered.

    Where nothing can be locked, an alert is sent too often rather than never.
    """
    with contextlib.ExitStack() as stack:
        if report.out is not None:
            with contextlib.suppress(NearcastError, OSError):
                stack.enter_context(hold_folder(host_folder(report.out) / report.generator))
        yield


def read_alert_book(report: MonitorReport, now: float) -> AlertBook:
    """Read the alerts after a pass; those of the pass alone if there is no history, or if it could not be written."""
    try:
        events = [] if report.out is None else read(report.out, report.generator, kinds=(KIND, "monitor"))
    except NearcastError:
        events = []
    return derive_alert_book([*events, *_list_alert_changes(report, events, now)], now)
