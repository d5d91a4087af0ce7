"""The status of a generator: its problems by name, since when, and which lists its users get meanwhile.

`nearcast monitor`, its JSON and webhook, and the dashboard all show what this module derives from the events of the
history. The findings of the last monitor pass count if that pass saw the newest run; else the newest run is checked
again, since its facts are in the history.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nearcast.history.event_log import HistoryEvent
from nearcast.history.publish_events import (
    LiveVersion,
    find_live_version,
    find_refused_versions,
    find_rejected_versions,
    is_refused,
)
from nearcast.monitoring.alert import ALERT_TEXTS, LEVELS, Alert, Level
from nearcast.monitoring.checks import USUAL_RUNS, check_runs
from nearcast.monitoring.expected_range import FEWEST
from nearcast.monitoring.root_causes import (
    describe_refusal,
    fold_consequences,
    list_failed_rules,
    names_input,
    put_refusal_first,
)
from nearcast.monitoring.serving_summary import (
    LOST,
    describe_served,
    describe_since,
    explain_newer_runs,
    format_moment,
    list_newest_runs,
    was_published_since,
)

__all__ = [
    "GeneratorProblem",
    "GeneratorStatus",
    "check_lost_store",
    "check_newest_run",
    "derive_status",
    "list_usual_runs",
]

ORDER: Sequence[Level] = ("bad", "warn", "unknown", "idle", "ok")
OF_SERVED = ("served_recall", "served_spec", "dead", "removed", "age", "misses", "fallbacks", "unreachable")
OF_RECALL = ("recall", "effort", "metric")  # names of a recall below its target, by the cause
NOTHING_PUBLISHED = "Nothing is published: users get nothing."


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


@dataclass(frozen=True, slots=True)
class GeneratorStatus:
    """The level of a generator, its problems, and sentences on the served version and on the monitor."""

    level: Level
    problems: tuple[GeneratorProblem, ...]  # the worst first
    users_get: str  # sentence: the lists that users get
    newer_runs: str  # sentence: why newer runs are not published, and since when the served version is
    last_pass: float | None  # time of the last monitor pass; None: there was no pass
    unchecked: bool  # no pass has seen the newest run
    monitored: str  # sentence: what the monitor has seen
    sees_served: bool = False  # the figures of the last pass are those of the served version

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sort key: the worst status first; the latest problem first among equals."""
        since = max((problem.since for problem in self.problems), default=0.0)
        bad = sum(problem.level == "bad" for problem in self.problems)
        return (ORDER.index(self.level), -bad, -len(self.problems), -since)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data. The keys are a format: the dashboard reads them."""
        return {
            "level": self.level,
            "word": LEVELS[self.level],
            "troubles": tuple(asdict(problem) for problem in self.problems),
            "seen": self.users_get,
            "became": self.newer_runs,
            "looked": self.last_pass,
            "unwatched": self.unchecked,
            "watched": self.monitored,
            "sees_served": self.sees_served,
        }


@dataclass(frozen=True, slots=True)
class _Timeline:
    """The events of one generator, with the runs, monitor passes and served version that they hold."""

    events: Sequence[HistoryEvent]
    runs: Sequence[HistoryEvent]
    passes: Sequence[HistoryEvent]
    live: LiveVersion | None

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


def derive_status(events: Sequence[HistoryEvent]) -> GeneratorStatus:
    """Derive the status of the generator of these events (oldest first) after the last of them."""
    passes = [event for event in events if event.kind == "monitor"]
    line = _Timeline(events, list_newest_runs(events), passes, find_live_version(events))
    found = [*_list_alert_problems(line), *_find_missed_target(line.runs), *_find_refusals(events)]
    found += _find_rollback(line.live)
    problems = sorted(_drop_repeats(found), key=lambda problem: ORDER.index(problem.level))
    empty = not line.runs and not passes and line.live is None
    quiet: Level = "idle" if empty else "unknown" if line.unchecked or not passes else "ok"
    return GeneratorStatus(
        level=problems[0].level if problems else quiet,
        problems=tuple(problems),
        users_get=describe_served(events),
        newer_runs=explain_newer_runs(events),
        last_pass=passes[-1].seconds if passes else None,
        unchecked=line.unchecked,
        monitored=_describe_monitor(line),
        sees_served=line.saw_served and not was_published_since(passes[-1], events),
    )


def check_newest_run(events: Sequence[HistoryEvent]) -> list[Alert]:
    """Check the newest run against the runs before it, and add the audit's refusal of it, if any.

    Runs that were refused or rolled back do not count towards the usual values.
    """
    runs = list_newest_runs(events)
    if not runs:
        return []
    rejected, newest = find_rejected_versions(events), runs[-1]
    before = list_usual_runs(events)[-2 * USUAL_RUNS :]
    against = (newest.facts.get("compared_with") or {}).get("version")
    against = against if against is not None else runs[-2].version if len(runs) > 1 else None
    served = _read_served_facts(events)
    facts = [*({**event.facts, "version": event.version} for event in before), newest.facts]
    alerts = check_runs(facts, last_refused=against in rejected, served=None if served is newest.facts else served)
    refused_publish = find_refused_versions(events).get(newest.version or 0)
    if refused_publish is None:
        return list(alerts)
    refusal = _make_refusal_alert(events, refused_publish)
    return put_refusal_first(alerts, refusal) if names_input(refused_publish) else [*alerts, refusal]


def check_lost_store(store: str, events: Sequence[HistoryEvent]) -> Iterator[Alert]:
    """Yield an alert about an empty store if the history says that a version was published. store: its URL."""
    moves = [event for event in events if event.kind in ("publish", "rollback") and not is_refused(event)]
    if not moves or moves[-1].version is None:
        return
    name, where = f"{moves[-1].version:06d}", moves[-1].facts.get("store")
    if where in (None, store):
        text = f"{store} holds nothing, and {name} was published to it: was it removed, or is it another store?"
        yield Alert("unreachable", text, None, None, None, title=LOST, effect="Users get nothing from this store.")
    else:
        text = f"{store} holds nothing, and {name} was published to {where}; name that store by --store or in the spec"
        yield Alert("unreachable", text, None, None, None)


def list_usual_runs(events: Sequence[HistoryEvent]) -> list[HistoryEvent]:
    """Return the runs that the newest run is compared with: those neither refused nor rolled back."""
    rejected = find_rejected_versions(events)
    return [event for event in list_newest_runs(events)[:-1] if event.version not in rejected]


def _read_served_facts(events: Sequence[HistoryEvent]) -> Mapping[str, Any] | None:
    """Return the facts of the served run; None if it is not in the history."""
    live = find_live_version(events)
    runs = list_newest_runs(events)
    return next((run.facts for run in runs if live is not None and run.version == live.version), None)


def _list_alert_problems(line: _Timeline) -> Iterator[GeneratorProblem]:
    """Yield the problems of the newest run, and those that the last pass found in the served version."""
    last = line.passes[-1] if line.passes else None
    reported: list[Mapping[str, Any]] = [] if last is None else list(last.facts["alerts"])
    of_run = [alert for alert in reported if alert["check"] not in (*OF_SERVED, "audit")]
    if line.unchecked:
        checked = fold_consequences(check_newest_run(line.events))
        of_run = [alert.as_dict() for alert in checked if alert.check != "audit"]
    current = last is not None and not was_published_since(last, line.events)
    of_served = [alert for alert in reported if alert["check"] in OF_SERVED and current]
    for alert in [*of_run, *of_served]:
        check = str(alert["check"])
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
        )


def _find_beginning(check: str, line: _Timeline) -> HistoryEvent:
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
        refusal = describe_refusal(refusals[0], _read_served_facts(events))
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


def _make_refusal_alert(events: Sequence[HistoryEvent], publish: HistoryEvent) -> Alert:
    """Return the alert about a publish that the audit refused."""
    refusal = describe_refusal(publish, _read_served_facts(events))
    live = find_live_version(events)
    effect = ALERT_TEXTS["audit"].effect if live is not None else NOTHING_PUBLISHED
    since = "nothing is published" if live is None else f"{live.version:06d} {describe_since(live)}"
    first = next(iter(list_failed_rules(publish)), {})
    text = f"{refusal.text}; {since}"
    return Alert("audit", text, first.get("found"), first.get("bound"), None, title=refusal.title, effect=effect)


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


def _describe_monitor(line: _Timeline) -> str:
    """Return a sentence on what the monitor has seen."""
    if not line.passes:
        return "The monitor has not run yet." if line.runs or line.live is not None else ""
    last, name = line.passes[-1], f"{line.runs[-1].version or 0:06d}" if line.runs else ""
    if line.unchecked:
        return f"The monitor has not seen the newest run, {name}; its last pass was on {format_moment(last.seconds)}."
    parts = [f"The last monitor pass was on {format_moment(last.seconds)}"]
    if not last.facts.get("served"):
        parts.append("over the run alone, not over the served version")
    elif not line.saw_served:
        parts.append("before the served version was published")
    few = bool(line.runs) and len(list_usual_runs(line.events)) < FEWEST
    return ", ".join(parts) + (f"; usual values need at least {FEWEST} earlier runs." if few else ".")
