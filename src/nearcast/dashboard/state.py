"""How a generator stands: its troubles by name, since when, and what its users get meanwhile.

Read off the events of the history: which check has spoken up in every pass since when, what was published last.
Judges nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from nearcast.dashboard.words import LEVELS, TROUBLES, Level
from nearcast.history.store import Event

__all__ = ["Live", "State", "Trouble", "live_of", "state_of"]

ORDER: Sequence[Level] = ("bad", "warn", "idle", "ok")
OF_SERVED = ("served_recall", "dead", "age", "misses", "fallbacks")  # the others are about a run


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong. Times in seconds since 1970."""

    check: str
    title: str
    text: str  # the monitor's own sentence, or the audit's
    effect: str
    level: Level
    since: float
    version: int | None  # of the snapshot that it began with
    follows: tuple[str, ...] = ()
    evidence: str | None = None
    of: str = "runs"


@dataclass(frozen=True, slots=True)
class Live:
    """What look-ups answer from, as far as the history knows."""

    version: int
    since: float
    made: float | None  # when its snapshot was made; None where that run is not in the history
    rolled_back: bool


@dataclass(frozen=True, slots=True)
class State:
    """How a generator stands."""

    level: Level
    word: str
    troubles: tuple[Trouble, ...]  # the worst first
    seen: str  # what users get, in a sentence
    looked: float | None  # when the monitor last looked; None: never
    unwatched: bool  # the newest run has not been looked at

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sorts states: the worst first, among equals the one that began last."""
        since = max((t.since for t in self.troubles), default=0.0)
        bad = sum(t.level == "bad" for t in self.troubles)
        return (ORDER.index(self.level), -bad, -len(self.troubles), -since)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def state_of(events: Sequence[Event]) -> State:
    """How the generator of these events, oldest first, stands after the last of them."""
    runs = newest_runs(events)
    passes = [event for event in events if event.kind == "monitor"]
    live = live_of(events)
    troubles = [*_alerts(runs, passes), *_promise(runs, passes), *_audits(events), *_rollback(live)]
    troubles = sorted(_each_once(troubles), key=lambda trouble: ORDER.index(trouble.level))
    level: Level = troubles[0].level if troubles else "ok" if runs or passes else "idle"
    looked = passes[-1].seconds if passes else None
    unwatched = bool(runs) and (looked is None or looked < runs[-1].seconds)
    return State(level, LEVELS[level], tuple(troubles), _seen(runs, live), looked, unwatched)


def newest_runs(events: Sequence[Event]) -> list[Event]:
    """The runs in the order of their versions; of a version that was made twice the later one."""
    by_version = {event.version: event for event in events if event.kind == "run"}
    return sorted(by_version.values(), key=lambda event: event.version or 0)


def live_of(events: Sequence[Event]) -> Live | None:
    """What is current in the store by the last publish or rollback; None where nothing was published."""
    done = [event for event in events if event.kind in ("publish", "rollback") and not _failed(event)]
    if not done or done[-1].version is None:
        return None
    last = done[-1]
    made = next((event.seconds for event in events if event.kind == "run" and event.version == last.version), None)
    return Live(int(done[-1].version or 0), last.seconds, made, last.kind == "rollback")


def _failed(event: Event) -> bool:
    return bool(event.facts.get("outcome") == "audit_failed")


def _alerts(runs: Sequence[Event], passes: Sequence[Event]) -> Iterator[Trouble]:
    """What the last pass has found, each since the first pass of those that found it without a break."""
    if not passes:
        return
    for alert in passes[-1].facts["alerts"]:
        check = str(alert["check"])
        first = passes[-1]
        for earlier in reversed(passes):
            if check not in {str(other["check"]) for other in earlier.facts["alerts"]}:
                break
            first = earlier
        began = _begun(check, first, runs)
        words = TROUBLES.get(check, TROUBLES["unknown"])
        yield Trouble(
            check,
            _title(alert, words.title),
            str(alert["text"]),
            words.effect,
            words.level,
            began.seconds,
            began.version,
            tuple(alert.get("follows", ())),
            words.evidence,
            words.of,
        )


def _title(alert: Mapping[str, Any], title: str) -> str:
    """A number that jumped has fallen or risen."""
    found, usual = alert.get("found"), alert.get("usual")
    if found is None or usual is None:
        return title
    return title.replace("jumped", "fell" if found < usual else "rose")


def _begun(check: str, first: Event, runs: Sequence[Event]) -> Event:
    """The run that the first pass has looked at, where the check is about runs; else the pass."""
    if check in OF_SERVED:
        return first
    seen = first.facts.get("version")
    return next((run for run in runs if run.version == seen), first)


def _promise(runs: Sequence[Event], passes: Sequence[Event]) -> Iterator[Trouble]:
    """The newest runs below their promise, whether or not a monitor has looked."""
    first = None
    for run in reversed(runs):
        if run.facts["promise"]["kept"]:
            break
        first = run
    told = {alert["check"] for alert in passes[-1].facts["alerts"]} if passes else set()
    if first is not None and not told & {"recall", "effort", "metric"}:
        words = TROUBLES["recall"]
        text = str(runs[-1].facts["promise"]["reason"])
        yield Trouble(
            "recall",
            words.title,
            text,
            words.effect,
            words.level,
            first.seconds,
            first.version,
            evidence=words.evidence,
        )


def _audits(events: Sequence[Event]) -> Iterator[Trouble]:
    """Publishes that the audit has stopped, since the last one that it has not."""
    stopped: list[Event] = []
    for event in reversed(events):
        if event.kind in ("publish", "rollback"):
            if not _failed(event):
                break
            stopped.append(event)
    if stopped and stopped[0].facts.get("findings"):
        words = TROUBLES["audit"]
        failed = [f for f in stopped[0].facts["findings"] if not f["passed"]]
        text = "; ".join(f"{f['rule']}: {f['text']}" for f in failed)
        title = words.title if len(stopped) > 1 else "The audit has stopped the publish"
        first = stopped[-1]
        yield Trouble(
            "audit", title, text, words.effect, words.level, first.seconds, first.version, evidence=failed[0]["measure"]
        )


def _rollback(live: Live | None) -> Iterator[Trouble]:
    if live is not None and live.rolled_back:
        words = TROUBLES["rollback"]
        text = f"snapshot {live.version:06d} was made current again"
        yield Trouble("rollback", words.title, text, words.effect, words.level, live.since, live.version)


def _each_once(troubles: Sequence[Trouble]) -> list[Trouble]:
    return list({trouble.check: trouble for trouble in reversed(troubles)}.values())[::-1]


def _seen(runs: Sequence[Event], live: Live | None) -> str:
    """What users get: the newest lists, or those of before."""
    if live is None:
        return "Nothing is published." if runs else "Nothing has run yet."
    newest = runs[-1].version if runs else None
    of = "" if live.made is None else f" of {datetime.fromtimestamp(live.made, UTC):%-d %B %Y}"
    if newest is None or newest == live.version:
        return f"Users get the newest lists, snapshot {live.version:06d}{of}."
    behind = sum((run.version or 0) > live.version for run in runs)
    later = "a newer one is" if behind == 1 else f"{behind} newer ones are"
    return f"Users get snapshot {live.version:06d}{of}; {later} not published."
