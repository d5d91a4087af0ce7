"""One pass of the monitor: bring the history up to date, check the newest run and what is served, keep the findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearcast.errors import NotFoundError
from nearcast.history.record import record_runs
from nearcast.history.store import append, read
from nearcast.join.context import RunContext
from nearcast.join.listen import Listener
from nearcast.monitoring.alert import Alert
from nearcast.monitoring.causes import causes_first
from nearcast.monitoring.checks import USUAL_RUNS, check_runs
from nearcast.monitoring.served import Served, check_served, look_at_served
from nearcast.stores.base import Store
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

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "generator": self.generator,
            "version": self.version,
            "runs": self.runs,
            "served": None if self.served is None else self.served.as_dict(),
            "alerts": [alert.as_dict() for alert in self.alerts],
        }


def watch(
    out: Path, generator: str, listener: Listener, *, run: RunContext | None, store: Store | None, samples: Path
) -> Watched:
    """Check the newest run of a generator, and with a spec and a store also what is served, and add it to the history.

    run: by the generator's spec; without it served lists cannot be held against today's items.
    NotFoundError where there is neither a run nor anything published.
    """
    trouble = record_runs(out, generator)
    if trouble:
        listener.note(trouble)
    runs = sorted(read(out, generator, ["run"], last=2 * USUAL_RUNS), key=lambda event: event.version or 0)
    refused = len(runs) > 1 and runs[-2].version in _rejected(out, generator)
    if refused:
        listener.note("the run before was refused or rolled back from: what changed since then is not judged")
    alerts = check_runs([event.facts for event in runs], last_refused=refused)
    served = None
    if run is not None and store is not None:
        if store.pointer(generator) is not None:
            served = look_at_served(run, store, samples)
            before = [event.facts["served"] for event in read(out, generator, ["monitor"], last=USUAL_RUNS)]
            alerts += check_served(served, run.spec, [facts for facts in before if facts])
        else:
            listener.note(f"nothing is published of {generator!r} in {store.url}")
    if not runs and served is None:
        raise NotFoundError(f"no run of {generator!r} in {out}, and nothing published; run it first, or say --out")
    version = runs[-1].version if runs else None
    watched = Watched(generator, version, max(0, len(runs) - 1), served, tuple(causes_first(alerts)))
    trouble = append(out, generator, "monitor", version if served is None else served.version, watched.as_dict())
    if trouble:
        listener.note(trouble)
    return watched


def _rejected(out: Path, generator: str) -> set[int]:
    """The versions that the audit has refused, or that were rolled back from, and that were not published since."""
    rejected, seen = set[int](), set[int]()
    for event in read(out, generator, ["publish", "rollback"], last=4 * USUAL_RUNS):
        version = event.version
        if version is None:
            continue
        if event.kind == "rollback":
            rejected |= {left for left in seen if left > version}
        elif event.facts.get("outcome") == "audit_failed":
            rejected.add(version)
        else:
            rejected.discard(version)
        seen.add(version)
    return rejected


def tell(url: str, watched: Watched, alerts: Sequence[Alert]) -> str | None:
    """POST the alerts as JSON. Return None once they are delivered, else the reason: a failure is no reason to stop."""
    lines = [f"{alert.check}: {alert.text}" for alert in alerts]
    return post_json(url, {"text": "\n".join([f"nearcast {watched.generator}", *lines])} | watched.as_dict())
