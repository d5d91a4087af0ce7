"""The status of a generator: its problems by name, since when, and which lists its users get meanwhile.

`nearcast monitor`, its JSON and webhook, and the dashboard show the status that this room derives from the events of
the history. The findings of the last monitor pass count if that pass saw the newest run; else the newest run is checked
again, since its facts are in the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nearcast.history.event_log import HistoryEvent
from nearcast.monitoring.alert import LEVELS, Level
from nearcast.monitoring.expected_range import FEWEST
from nearcast.monitoring.newest_run import list_usual_runs
from nearcast.monitoring.problems import GeneratorProblem, Timeline, list_problems
from nearcast.monitoring.serving_summary import (
    describe_served,
    explain_newer_runs,
    format_moment,
    was_published_since,
)

__all__ = ["GeneratorStatus", "derive_status"]

ORDER: Sequence[Level] = ("bad", "warn", "unknown", "idle", "ok")


@dataclass(frozen=True, slots=True)
class GeneratorStatus:
    """The level of a generator, its problems, and sentences on the served version and on the monitor."""

    level: Level
    problems: tuple[GeneratorProblem, ...]  # the worst first
    users_get: str  # sentence: the lists that users get
    newer_runs: str  # sentence: why newer runs are not published, and since when the served version is
    last_pass: float | None  # time of the last monitor pass; None: there was no pass
    unchecked: bool  # no pass has seen the newest run
    monitored: str  # sentence: when the monitor last ran, and on which version
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


def derive_status(events: Sequence[HistoryEvent]) -> GeneratorStatus:
    """Derive the status of the generator of these events (oldest first) after the last of them."""
    line = Timeline.of(events)
    passes = line.passes
    problems = sorted(list_problems(line), key=lambda problem: ORDER.index(problem.level))
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


def _describe_monitor(line: Timeline) -> str:
    """Return a sentence on the last monitor pass and the version that it saw."""
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
