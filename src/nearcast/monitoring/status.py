"""How a generator stands: its troubles by name, since when, and what its users get meanwhile.

The one place that derives this, from the events of the history: `nearcast monitor`, its JSON and webhook, and the page
show what is said here. What the last pass of the monitor has found counts where it looked at the newest run; else the
newest run is judged again, since its facts are in the history.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from nearcast.history.event_log import HistoryEvent
from nearcast.history.publish_events import (
    LiveVersion,
    find_live_version,
    find_refused_versions,
    find_rejected_versions,
    is_refused,
)
from nearcast.monitoring.alert import Alert
from nearcast.monitoring.alert_text import LEVELS, TROUBLES, Level, count_title
from nearcast.monitoring.checks import USUAL_RUNS, check_runs
from nearcast.monitoring.expected_range import FEWEST
from nearcast.monitoring.root_causes import causes_first, refusal_first

__all__ = [
    "LiveVersion",
    "State",
    "Trouble",
    "find_live_version",
    "judge_runs",
    "lost_from",
    "newest_runs",
    "runs_before",
    "state_of",
    "what_became",
    "what_users_get",
    "why_old",
]

ORDER: Sequence[Level] = ("bad", "warn", "unknown", "idle", "ok")
OF_SERVED = ("served_recall", "served_spec", "dead", "removed", "age", "misses", "fallbacks", "unreachable")
CAUSES = (  # rules of the audit that name a cause, what is furthest up the stream first
    *("items", "items_kept", "types", "vectors", "changed_values", "distribution", "empty_values", "pairs_kept"),
    *("bad_rows", "keys", "queries_kept", "recall"),
)
EVIDENCE = {"items": "items_vectors", "keys": "queries_vectors"}  # series by the measure of a rule
SAYING = CAUSES[1:9]  # rules whose text names the column, and so makes a headline
LOST = "The store holds nothing of what was published"
ENDS = (", and at most", ", and ", " (PSI", "; ")  # of the part of a text that is the headline


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
class State:
    """How a generator stands."""

    level: Level
    word: str
    troubles: tuple[Trouble, ...]  # the worst first
    seen: str  # what users get, in a sentence
    became: str  # why newer runs are not what users get, and since when the served one is
    looked: float | None  # when the monitor last looked; None: never
    unwatched: bool  # the newest run has not been looked at
    watched: str  # what the monitor has looked at, in a sentence
    sees_served: bool = False  # the figures of the last pass are those of what is served now

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sorts states: the worst first, among equals the one that began last."""
        since = max((t.since for t in self.troubles), default=0.0)
        bad = sum(t.level == "bad" for t in self.troubles)
        return (ORDER.index(self.level), -bad, -len(self.troubles), -since)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def state_of(events: Sequence[HistoryEvent]) -> State:
    """How the generator of these events, oldest first, stands after the last of them."""
    runs = newest_runs(events)
    passes = [event for event in events if event.kind == "monitor"]
    live = find_live_version(events)
    unwatched = bool(runs) and not _has_seen(passes, runs[-1], events)
    troubles = [*_alerts(events, runs, passes, unwatched), *_promise(runs), *_audits(events), *_rollback(live)]
    troubles = sorted(_each_once(troubles), key=lambda trouble: ORDER.index(trouble.level))
    nothing = not runs and not passes and live is None
    quiet: Level = "idle" if nothing else "unknown" if unwatched or not passes else "ok"
    level: Level = troubles[0].level if troubles else quiet
    looked = passes[-1].seconds if passes else None
    sentences = what_users_get(events), what_became(events)
    watched = _watched(events, runs, passes, live, unwatched)
    sees = _sees_served(passes, live) and _is_current(passes[-1], events)
    return State(level, LEVELS[level], tuple(troubles), *sentences, looked, unwatched, watched, sees)


def judge_runs(events: Sequence[HistoryEvent]) -> list[Alert]:
    """Judge the newest run of these events by the runs before it, and by what the audit has made of it.

    Runs that the audit has refused, or that were rolled back from, are no measure of what is usual.
    """
    runs = newest_runs(events)
    if not runs:
        return []
    rejected, newest = find_rejected_versions(events), runs[-1]
    before = runs_before(events)[-2 * USUAL_RUNS :]
    against = (newest.facts.get("compared_with") or {}).get("version")
    against = against if against is not None else runs[-2].version if len(runs) > 1 else None
    served = _served_facts(events)
    facts = [*({**event.facts, "version": event.version} for event in before), newest.facts]
    alerts = check_runs(facts, last_refused=against in rejected, served=None if served is newest.facts else served)
    stopped = find_refused_versions(events).get(newest.version or 0)
    if stopped is None:
        return list(alerts)
    refusal = _refusal(events, stopped)
    of_inputs = any(finding["rule"] in CAUSES[:9] for finding in _failed(stopped)[:1])
    return refusal_first(alerts, refusal) if of_inputs else [*alerts, refusal]


def lost_from(store: str, events: Sequence[HistoryEvent]) -> Iterator[Alert]:
    """An alert where a store holds nothing, and the history says that a version was published. store: its URL."""
    moves = [event for event in events if event.kind in ("publish", "rollback") and not is_refused(event)]
    if not moves or moves[-1].version is None:
        return
    name, where = f"{moves[-1].version:06d}", moves[-1].facts.get("store")
    if where in (None, store):
        text = f"{store} holds nothing, and {name} was published to it: was it removed, or is it another one?"
        yield Alert("unreachable", text, None, None, None, title=LOST, effect="Users get nothing from this store.")
    else:
        text = f"{store} holds nothing, and {name} was published to {where}; name that one by --store or in the spec"
        yield Alert("unreachable", text, None, None, None)


def runs_before(events: Sequence[HistoryEvent]) -> list[HistoryEvent]:
    """Return the runs that the newest is compared with: those that were not refused or rolled back from."""
    rejected = find_rejected_versions(events)
    return [event for event in newest_runs(events)[:-1] if event.version not in rejected]


def _served_facts(events: Sequence[HistoryEvent]) -> Mapping[str, Any] | None:
    """The facts of the run that is served; None where it is not in the history."""
    live = find_live_version(events)
    return next((run.facts for run in newest_runs(events) if live is not None and run.version == live.version), None)


def newest_runs(events: Sequence[HistoryEvent]) -> list[HistoryEvent]:
    """The runs in the order of their versions; of a version that was made twice the later one."""
    by_version = {event.version: event for event in events if event.kind == "run"}
    return sorted(by_version.values(), key=lambda event: event.version or 0)


def what_users_get(events: Sequence[HistoryEvent]) -> str:
    """Return a sentence on what users get: the newest lists, or those of before."""
    runs, live = newest_runs(events), find_live_version(events)
    if live is None:
        return "Nothing is published." if runs else "Nothing has run yet."
    if _is_lost(events):
        return f"Users get nothing: the store holds nothing, and {live.version:06d} was published to it."
    of = "" if live.made is None else f" of {_day(live.made)}"
    newer = [run for run in runs if (run.version or 0) > live.version]
    if newer:
        later = "a newer one is" if len(newer) == 1 else f"{len(newer)} newer ones are"
        return f"Users get snapshot {live.version:06d}{of}; {later} not published."
    newest = "the newest lists, " if runs and runs[-1].version == live.version else ""
    return f"Users get {newest}snapshot {live.version:06d}{of}."


def _is_lost(events: Sequence[HistoryEvent]) -> bool:
    """Whether the last pass found nothing in the store, and nothing was published since."""
    passes = [event for event in events if event.kind == "monitor"]
    if not passes or not _is_current(passes[-1], events):
        return False
    return any(alert.get("title") == LOST for alert in passes[-1].facts["alerts"])


def what_became(events: Sequence[HistoryEvent]) -> str:
    """Return why runs that are newer than what is served are not published: refused, rolled back from; "" for none."""
    live = find_live_version(events)
    stopped, rejected = find_refused_versions(events), find_rejected_versions(events)
    newer = [run.version for run in newest_runs(events) if run.version and (live is None or run.version > live.version)]
    parts = [
        f"The audit refused {version:06d}: {', '.join(finding['rule'] for finding in _failed(stopped[version]))}."
        for version in newer
        if version in stopped
    ]
    parts += [f"{v:06d} was rolled back from." for v in newer if v in rejected and v not in stopped]
    if newer and newer[-1] not in rejected and live is not None:
        parts.append(f"{newer[-1]:06d}, the newest, waits for its publish.")
    if live is not None and not _is_lost(events):
        parts.append(f"{live.version:06d} {_since_when(live)}.")
    return " ".join(parts[-3:])


def _since_when(live: LiveVersion) -> str:
    if live.only_seen:
        return f"was found in the store on {_moment(live.since)}, published from elsewhere"
    return f"is served since {_moment(live.since)}"


def why_old(events: Sequence[HistoryEvent]) -> str:
    """Return why nothing newer is served, as the history has it; "" where it does not know."""
    runs, live = newest_runs(events), find_live_version(events)
    if live is None or not runs:
        return ""
    newest = runs[-1].version or 0
    if newest <= live.version:
        return "no run has finished since"
    if newest in find_refused_versions(events):
        return f"the audit refused {newest:06d}"
    if newest in find_rejected_versions(events):
        return f"{newest:06d} was rolled back from"
    return f"{newest:06d} was made since, and is not published"


def _has_seen(passes: Sequence[HistoryEvent], newest: HistoryEvent, events: Sequence[HistoryEvent]) -> bool:
    """Whether the last pass looked at the newest run. By the order of events, since clocks go backwards."""
    if not passes or passes[-1].facts.get("version") != newest.version:
        return False
    places = {id(event): place for place, event in enumerate(events)}
    return places[id(passes[-1])] > places[id(newest)]


def _sees_served(passes: Sequence[HistoryEvent], live: LiveVersion | None) -> bool:
    """Whether the last pass looked at what is served now."""
    served = passes[-1].facts.get("served") if passes else None
    return bool(served is not None and (live is None or served.get("version", live.version) == live.version))


def _alerts(
    events: Sequence[HistoryEvent], runs: Sequence[HistoryEvent], passes: Sequence[HistoryEvent], unwatched: bool
) -> Iterator[Trouble]:
    """What is wrong with the newest run, and what the last pass has found of what is served."""
    said: list[Mapping[str, Any]] = list(passes[-1].facts["alerts"]) if passes else []
    of_run = [a for a in said if a["check"] not in (*OF_SERVED, "audit")]
    if unwatched:
        of_run = [alert.as_dict() for alert in causes_first(judge_runs(events)) if alert.check != "audit"]
    of_served = [a for a in said if a["check"] in OF_SERVED and _is_current(passes[-1], events)]
    for alert in [*of_run, *of_served]:
        check = str(alert["check"])
        began = _since(check, runs, passes)
        words = TROUBLES.get(check, TROUBLES["unknown"])
        level: Level = "bad" if alert.get("title") == LOST else words.level
        yield Trouble(
            check,
            str(alert.get("title") or _title(alert, words.title)),
            str(alert["text"]),
            str(alert.get("effect") or words.effect),
            level,
            began.seconds,
            began.version,
            tuple(alert.get("follows", ())),
            words.evidence,
            words.of,
        )


def _is_current(last: HistoryEvent, events: Sequence[HistoryEvent]) -> bool:
    """Whether nothing was published or rolled back since this pass."""
    for event in reversed(events):
        if event is last:
            return True
        if event.kind == "rollback" or (event.kind == "publish" and not is_refused(event)):
            return False
    return True


def _since(check: str, runs: Sequence[HistoryEvent], passes: Sequence[HistoryEvent]) -> HistoryEvent:
    """The run, or the pass over what is served, that an unbroken row of findings of this check began with."""
    first: HistoryEvent | None = None
    for earlier in reversed(passes):
        if check not in {str(other["check"]) for other in earlier.facts["alerts"]}:
            break
        first = earlier
    below = _first_below(runs)
    if check in ("recall", "effort", "metric") and below is not None:
        return below
    if first is None:
        return runs[-1] if runs else passes[-1]
    if check in OF_SERVED:
        return first
    seen = first.facts.get("version")
    return next((run for run in runs if run.version == seen), first)


def _title(alert: Mapping[str, Any], title: str) -> str:
    """A number that jumped has fallen or risen; of a pass by an older nearcast."""
    found, usual = alert.get("found"), alert.get("usual")
    if found is None or usual is None:
        return title
    return title.replace("jumped", "fell" if found < usual else "rose")


def _first_below(runs: Sequence[HistoryEvent]) -> HistoryEvent | None:
    """The first of the newest runs that are all below their recall target."""
    first = None
    for run in reversed(runs):
        if run.facts["promise"]["kept"]:
            break
        first = run
    return first


def _promise(runs: Sequence[HistoryEvent]) -> Iterator[Trouble]:
    """The newest runs below their recall target."""
    first = _first_below(runs)
    if first is not None:
        words, measures = TROUBLES["recall"], runs[-1].facts["measures"]
        proven = measures.get("recall_high", 0.0) < runs[-1].facts["promise"]["recall"]
        title = words.title if proven else "The sample does not prove the recall target"
        text = str(runs[-1].facts["promise"]["reason"])
        began = (first.seconds, first.version)
        yield Trouble("recall", title, text, words.effect, words.level, *began, evidence=words.evidence)


def _audits(events: Sequence[HistoryEvent]) -> Iterator[Trouble]:
    """Publishes that the audit has stopped, since the last one that it has not."""
    stopped: list[HistoryEvent] = []
    for event in reversed(events):
        if event.kind in ("publish", "rollback"):
            if not is_refused(event):
                break
            stopped.append(event)
    if stopped and stopped[0].facts.get("findings"):
        words, first = TROUBLES["audit"], stopped[-1]
        title, text, measure = _refused_by(stopped[0], _served_facts(events))
        effect = words.effect if find_live_version(events) is not None else "Nothing is published: users get nothing."
        yield Trouble(
            "audit", title, text, effect, words.level, first.seconds, first.version, evidence=measure or words.evidence
        )


def _refusal(events: Sequence[HistoryEvent], stopped: HistoryEvent) -> Alert:
    """An alert on a publish that the audit has stopped."""
    title, text, _ = _refused_by(stopped, _served_facts(events))
    live = find_live_version(events)
    effect = TROUBLES["audit"].effect if live is not None else "Nothing is published: users get nothing."
    since = "nothing is published" if live is None else f"{live.version:06d} {_since_when(live)}"
    found = next(iter(_failed(stopped)), {})
    return Alert("audit", f"{text}; {since}", found.get("found"), found.get("bound"), None, title=title, effect=effect)


def _failed(event: HistoryEvent) -> list[Mapping[str, Any]]:
    """The rules that a publish has failed, those that name a cause first."""
    failed = [finding for finding in event.facts.get("findings") or () if not finding["passed"]]
    order = {rule: place for place, rule in enumerate(CAUSES)}
    return sorted(failed, key=lambda finding: order.get(finding["rule"], len(order)))


def _refused_by(event: HistoryEvent, served: Mapping[str, Any] | None) -> tuple[str, str, str | None]:
    """Title, text and measure of a publish that the audit has stopped."""
    failed = _failed(event)
    name = "a snapshot" if event.version is None else f"{event.version:06d}"
    rules = ", ".join(str(finding["rule"]) for finding in failed) or "a rule"
    text = "; ".join(f"{finding['rule']}: {finding['text']}" for finding in failed)
    measure = EVIDENCE.get(str(failed[0]["measure"]), str(failed[0]["measure"])) if failed else None
    return f"The audit refused {name}: {_cause(failed[0], served) if failed else rules}", text, measure


def _cause(finding: Mapping[str, Any], served: Mapping[str, Any] | None) -> str:
    """What a rule has found, in the words of a headline. served: the facts of the run that is served."""
    rule, found = str(finding["rule"]), finding.get("found")
    items = ((served or {}).get("sides", {}).get("items") or {}).get("vectors")
    if rule == "items" and found is not None and items:
        title = count_title("items", found, items, served=True)
        return title[0].lower() + title[1:]
    if rule == "withdrawn":
        return "it was rolled back from"
    if rule not in SAYING:
        return rule
    text = str(finding["text"])
    return text[: min((place for end in ENDS if (place := text.find(end)) > 0), default=len(text))]


def _rollback(live: LiveVersion | None) -> Iterator[Trouble]:
    if live is not None and live.rolled_back:
        words = TROUBLES["rollback"]
        left = "" if live.left is None else f" in the place of {live.left:06d}"
        text = f"snapshot {live.version:06d} was made current again{left}"
        yield Trouble("rollback", words.title, text, words.effect, words.level, live.since, live.version)


def _each_once(troubles: Sequence[Trouble]) -> list[Trouble]:
    """Each check once, the first; recall once by whatever name."""
    found: dict[str, Trouble] = {}
    for trouble in troubles:
        name = "recall" if trouble.check in ("effort", "metric") else trouble.check
        found.setdefault(name, trouble)
    return list(found.values())


def _watched(
    events: Sequence[HistoryEvent],
    runs: Sequence[HistoryEvent],
    passes: Sequence[HistoryEvent],
    live: LiveVersion | None,
    unwatched: bool,
) -> str:
    """Return a sentence on what the monitor has looked at."""
    if not passes:
        return "No monitor has looked yet." if runs or live is not None else ""
    last, name = passes[-1], f"{runs[-1].version or 0:06d}" if runs else ""
    if unwatched:
        return f"The monitor has not looked at the newest run, {name}; it last looked on {_moment(last.seconds)}."
    parts = [f"The monitor looked on {_moment(last.seconds)}"]
    if not last.facts.get("served"):
        parts.append("at the run alone, not at what is served")
    elif not _sees_served(passes, live):
        parts.append("before what is served now was published")
    few = bool(runs) and len(runs_before(events)) < FEWEST
    return ", ".join(parts) + (f"; with fewer than {FEWEST} earlier runs nothing is usual yet." if few else ".")


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%-d %B %Y}"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%-d %B %Y, %H:%M} UTC"
