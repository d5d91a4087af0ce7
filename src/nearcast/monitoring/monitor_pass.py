"""One pass of the monitor: bring the history up to date, check the newest run and what is served, keep the findings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nearcast.errors import DamagedError, NearcastError, NotFoundError, StoreError
from nearcast.history.event_log import HistoryEvent, append, read
from nearcast.history.record import record_runs
from nearcast.join.context import RunContext
from nearcast.join.listener import Listener
from nearcast.monitoring.alert import Alert
from nearcast.monitoring.checks import USUAL_RUNS
from nearcast.monitoring.expected_range import FEWEST
from nearcast.monitoring.root_causes import causes_first
from nearcast.monitoring.staleness import Served, check_served, look_at_served
from nearcast.monitoring.status import (
    find_live_version,
    judge_runs,
    lost_from,
    newest_runs,
    runs_before,
    what_became,
    what_users_get,
    why_old,
)
from nearcast.stores import describe_lost_pointer
from nearcast.stores.base import Store
from nearcast.suggest import generators_in_words
from nearcast.table.snapshot import list_generators
from nearcast.webhook import post_json

__all__ = ["Watched", "tell", "watch"]


@dataclass(frozen=True, slots=True)
class Watched:
    """What one pass has found."""

    generator: str
    version: int | None  # of the newest run; None where there is none here
    runs: int  # that it was compared with
    served: Served | None  # None: nothing is published, or no spec says where today's items are
    alerts: tuple[Alert, ...]
    users_get: str = ""  # what users get, and why newer runs are not it
    failure: NearcastError | None = None  # why what is served could not be looked at
    store: str | None = None  # URL of the store that was looked at
    rolled_back: str = ""  # which version users were rolled back to; "" where they were not

    @property
    def verdict(self) -> str:
        """The pass in one line: the first alert's headline, a rollback, or how far nothing is wrong."""
        if self.alerts:
            more = f" (and {len(self.alerts) - 1} more)" if len(self.alerts) > 1 else ""
            return f"{self.alerts[0].headline}{more}"
        limits = []
        if self.version is not None and self.runs < FEWEST:
            limits.append(f"with fewer than {FEWEST} runs to compare with, nothing is usual yet")
        if self.version is None:
            limits.append("no run is here")
        if self.served is None:
            limits.append("what is served was not looked at")
        elif self.served.recall is None:
            limits.append("the recall of what is served was not measured")
        if self.rolled_back:
            return f"rolled back to {self.rolled_back}" + (f"; {'; '.join(limits)}" if limits else "")
        return "nothing is wrong" + (f", as far as one can tell: {'; '.join(limits)}" if limits else "")

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "generator": self.generator,
            "version": self.version,
            "runs": self.runs,
            "verdict": self.verdict,
            "users_get": self.users_get,
            "store": self.store,
            "served": None if self.served is None else self.served.as_dict(),
            "alerts": [alert.as_dict() for alert in self.alerts],
        }


def watch(
    out: Path,
    generator: str,
    listener: Listener,
    *,
    run: RunContext | None,
    store: Store | None,
    samples: Path,
    failure: NearcastError | None = None,
) -> Watched:
    """Check the newest run of a generator, and with a spec and a store also what is served, and add it to the history.

    run: by the generator's spec; without it served lists are not compared with today's items.
    failure: why the store cannot be opened.
    What is served and cannot be read is an alert, and the error is in `failure`. NotFoundError where there is neither
    a run nor anything published.
    """
    trouble = record_runs(out, generator)
    if trouble:
        listener.note(trouble)
    events = read(out, generator)
    runs = newest_runs(events)
    alerts = judge_runs(events)
    served = None
    if run is not None and store is not None:
        try:
            served = _look(run, store, samples, generator, listener)
        except (StoreError, DamagedError) as error:
            failure = error
    if failure is not None:
        alerts.append(Alert("unreachable", str(failure), None, None, None))
    elif served is None and run is not None and store is not None:
        alerts += lost_from(store.url, events)
    if served is not None and run is not None:
        before = [event.facts["served"] for event in events if event.kind == "monitor"][-USUAL_RUNS:]
        found = check_served(served, run.spec, [facts for facts in before if facts])
        alerts = _each_once([*alerts, *(_with_reason(alert, events) for alert in found)])
    if not runs and served is None and failure is None:
        known = generators_in_words(generator, list_generators(out), "run it first, or say --out")
        raise NotFoundError(f"no run of {generator!r} in {out}, and nothing published; {known}")
    version = runs[-1].version if runs else None
    watched = Watched(
        generator,
        version,
        len(runs_before(events)),
        served,
        tuple(causes_first(alerts)),
        failure=failure,
        store=store.url if served is not None and store is not None else None,
    )
    seen = [*events, HistoryEvent(generator, "monitor", time.time(), version, watched.as_dict())]
    live = find_live_version(seen)
    back = f"{live.version:06d}" if live is not None and live.rolled_back else ""
    watched = replace(watched, users_get=f"{what_users_get(seen)} {what_became(seen)}".strip(), rolled_back=back)
    trouble = append(out, generator, "monitor", version if served is None else served.version, watched.as_dict())
    if trouble:
        listener.note(trouble)
    return watched


def _look(run: RunContext, store: Store, samples: Path, generator: str, listener: Listener) -> Served | None:
    """Look at what is served; None where nothing was published. DamagedError where the pointer to it was lost."""
    if store.pointer(generator) is None:
        lost = describe_lost_pointer(store, generator)
        if lost is not None:
            raise DamagedError(lost)
        listener.note(f"nothing is published of {generator!r} in {store.url}")
        return None
    return look_at_served(run, store, samples)


def _with_reason(alert: Alert, events: Sequence[HistoryEvent]) -> Alert:
    """An old snapshot with why nothing newer is served."""
    why = why_old(events) if alert.check == "age" else ""
    return replace(alert, text=f"{alert.text}: {why}") if why else alert


def _each_once(alerts: Sequence[Alert]) -> list[Alert]:
    """Alerts of a run, and those of what is served that say something else."""
    counted = {alert.check for alert in alerts if alert.check.endswith("_count")}
    seen = set[str]()
    found = []
    for alert in alerts:
        if alert.check in counted and alert.check in seen:
            continue
        seen.add(alert.check)
        found.append(alert)
    return found


def tell(url: str, watched: Watched, alerts: Sequence[Alert]) -> str | None:
    """POST the alerts as JSON. Return None once they are delivered, else the reason: a failure is no reason to stop."""
    lines = [f"{alert.check}: {alert.headline}. {alert.text}" for alert in alerts]
    lines += [watched.users_get] if watched.users_get else []
    return post_json(url, {"text": "\n".join([f"nearcast {watched.generator}", *lines])} | watched.as_dict())
