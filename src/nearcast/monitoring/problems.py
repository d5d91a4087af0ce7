"""Problems of a generator: alerts, a missed recall target, refused publishes and a rollback, each with its start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearcast.history.event_log import HistoryEvent
from nearcast.history.publish_events import LiveVersion, find_live_version, is_refused
from nearcast.monitoring.alert import ALERT_TEXTS, OF_RECALL, Level
from nearcast.monitoring.alert_states import AlertState, derive_alert_book
from nearcast.monitoring.newest_run import NOTHING_PUBLISHED, check_newest_run, read_served_facts
from nearcast.monitoring.root_causes import describe_refusal, fold_consequences
from nearcast.monitoring.serving_summary import LOST, list_newest_runs, was_published_since

__all__ = ["OF_SERVED", "GeneratorProblem", "Timeline", "list_problems"]

OF_SERVED = ("served_recall", "served_spec", "dead", "removed", "age", "misses", "fallbacks", "unreachable")


@dataclass(frozen=True, slots=True)
class GeneratorProblem:
    """One problem of a generator. Times in seconds since 1970."""

    check: str
    title: str
    text: str  # the sentence of the monitor or of the audit
    effect: str
    level: Level
    since: float
    version: int | None  # snapshot in which it was found first
    follows: tuple[str, ...] = ()
    evidence: str | None = None
    of: str = "runs"
    owner: str | None = None
    runbook: str | None = None  # URL
    handled: str = ""  # who has acknowledged or snoozed it


@dataclass(frozen=True, slots=True)
class Timeline:
    """The events of one generator, with the runs, monitor passes and served version that they hold."""

    events: Sequence[HistoryEvent]
    runs: Sequence[HistoryEvent]
    passes: Sequence[HistoryEvent]
    live: LiveVersion | None

    @classmethod
    def of(cls, events: Sequence[HistoryEvent]) -> Timeline:
        """Read the events of one generator, oldest first."""
        passes = [event for event in events if event.kind == "monitor"]
        return cls(events, list_newest_runs(events), passes, find_live_version(events))

    @property
    def unchecked(self) -> bool:
        """Whether no pass saw the newest run. Compares the order of events, since clocks may go backwards."""
        if not self.runs:
            return False
        if not self.passes or self.passes[-1].facts.get("version") != self.runs[-1].version:
            return True
        order = {id(event): number for number, event in enumerate(self.events)}
        return order[id(self.passes[-1])] <= order[id(self.runs[-1])]

    @property
    def saw_served(self) -> bool:
        """Whether the last pass saw the version that is served now."""
        served = self.passes[-1].facts.get("served") if self.passes else None
        version = None if self.live is None else self.live.version
        return bool(served is not None and (version is None or served.get("version", version) == version))


def list_problems(line: Timeline) -> list[GeneratorProblem]:
    """Return the problems of a generator, each check once."""
    found = [*_list_alert_problems(line), *_find_missed_target(line.runs), *_find_refusals(line.events)]
    return _drop_repeats([*found, *_find_rollback(line.live)])


def _list_alert_problems(line: Timeline) -> Iterator[GeneratorProblem]:
    """Yield the problems of the newest run, and the problems that the last pass found in the served version."""
    last = line.passes[-1] if line.passes else None
    reported: list[Mapping[str, Any]] = [] if last is None else list(last.facts["alerts"])
    of_run = [alert for alert in reported if alert["check"] not in (*OF_SERVED, "audit")]
    if line.unchecked:
        checked = fold_consequences(check_newest_run(line.events))
        of_run = [alert.as_dict() for alert in checked if alert.check != "audit"]
    current = last is not None and not was_published_since(last, line.events)
    states = {state.key: state for state in _list_open_alerts(line.events)}
    of_served = [alert for alert in reported if alert["check"] in OF_SERVED and current]
    for alert in [*of_run, *of_served]:
        check = str(alert["check"])
        state = states.get(str(alert.get("key", check)))
        known = {} if state is None else state.facts  # the last pass may have been without the spec
        began = _find_beginning(check, line)
        words = ALERT_TEXTS.get(check, ALERT_TEXTS["unknown"])
        yield GeneratorProblem(
            check=check,
            title=str(alert.get("title") or _make_title(alert, words.title)),
            text=str(alert["text"]),
            effect=str(alert.get("effect") or words.effect),
            level="bad" if alert.get("title") == LOST else words.level,
            since=began.seconds,
            version=began.version,
            follows=tuple(alert.get("follows", ())),
            evidence=words.evidence,
            of=words.of,
            owner=alert.get("owner") or known.get("owner"),
            runbook=alert.get("runbook") or known.get("runbook"),
            handled="" if state is None else _describe_handling(state),
        )


def _list_open_alerts(events: Sequence[HistoryEvent]) -> list[AlertState]:
    """Return the open alerts at the time of the last event."""
    return derive_alert_book(events, events[-1].seconds).open if events else []


def _describe_handling(state: AlertState) -> str:
    """Return who has acknowledged or snoozed an alert; "" if nobody has."""
    words = [(state.acknowledged, "acknowledged"), (state.snoozed, "snoozed")]
    return "; ".join(f"{word} by {one.who}" + (f": {one.why}" if one.why else "") for one, word in words if one)


def _find_beginning(check: str, line: Timeline) -> HistoryEvent:
    """Return the run, or the pass over the served version, since which a check has had findings without a break."""
    first: HistoryEvent | None = None
    for earlier in reversed(line.passes):
        if check not in {str(other["check"]) for other in earlier.facts["alerts"]}:
            break
        first = earlier
    below = _find_first_below_target(line.runs)
    if check in OF_RECALL and below is not None:
        return below
    if first is None:
        return line.runs[-1] if line.runs else line.passes[-1]
    if check in OF_SERVED:
        return first
    version = first.facts.get("version")
    return next((run for run in line.runs if run.version == version), first)


def _make_title(alert: Mapping[str, Any], title: str) -> str:
    """Return the headline of an alert that a pass of an older nearcast recorded without one."""
    found, usual = alert.get("found"), alert.get("usual")
    if found is None or usual is None:
        return title
    return title.replace("jumped", "fell" if found < usual else "rose")


def _find_first_below_target(runs: Sequence[HistoryEvent]) -> HistoryEvent | None:
    """Return the first run of the unbroken series, up to the newest run, that is below the recall target."""
    first = None
    for run in reversed(runs):
        if run.facts["promise"]["kept"]:
            break
        first = run
    return first


def _find_missed_target(runs: Sequence[HistoryEvent]) -> Iterator[GeneratorProblem]:
    """Yield the problem that the newest runs are below their recall target."""
    first = _find_first_below_target(runs)
    if first is not None:
        words, newest = ALERT_TEXTS["recall"], runs[-1].facts
        proven = newest["measures"].get("recall_high", 0.0) < newest["promise"]["recall"]
        title = words.title if proven else "The sample does not prove the recall target"
        text = str(newest["promise"]["reason"])
        began = (first.seconds, first.version)
        yield GeneratorProblem("recall", title, text, words.effect, words.level, *began, evidence=words.evidence)


def _find_refusals(events: Sequence[HistoryEvent]) -> Iterator[GeneratorProblem]:
    """Yield the problem that the audit has refused every publish since the last successful one."""
    refusals: list[HistoryEvent] = []
    for event in reversed(events):
        if event.kind in ("publish", "rollback"):
            if not is_refused(event):
                break
            refusals.append(event)
    if refusals and refusals[0].facts.get("findings"):
        words, first = ALERT_TEXTS["audit"], refusals[-1]
        refusal = describe_refusal(refusals[0], read_served_facts(events))
        yield GeneratorProblem(
            check="audit",
            title=refusal.title,
            text=refusal.text,
            effect=words.effect if find_live_version(events) is not None else NOTHING_PUBLISHED,
            level=words.level,
            since=first.seconds,
            version=first.version,
            evidence=refusal.measure or words.evidence,
        )


def _find_rollback(live: LiveVersion | None) -> Iterator[GeneratorProblem]:
    """Yield the problem that the served version is an earlier one after a rollback."""
    if live is not None and live.rolled_back:
        words = ALERT_TEXTS["rollback"]
        left = "" if live.left is None else f" in place of {live.left:06d}"
        text = f"snapshot {live.version:06d} was made current again{left}"
        yield GeneratorProblem("rollback", words.title, text, words.effect, words.level, live.since, live.version)


def _drop_repeats(problems: Sequence[GeneratorProblem]) -> list[GeneratorProblem]:
    """Keep the first problem of each check; recall counts once under all its names."""
    first: dict[str, GeneratorProblem] = {}
    for problem in problems:
        first.setdefault("recall" if problem.check in OF_RECALL else problem.check, problem)
    return list(first.values())
