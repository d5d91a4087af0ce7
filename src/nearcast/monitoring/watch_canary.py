"""Watch a canary: read its figures, judge them by the rules, and promote or withdraw it.

A watcher holds nothing: one that dies changes nothing, and another one can go on. Several may watch: the pointer moves
under the publishers' lock, and only while it names the canary that was judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from nearcast.errors import (
    BusyError,
    DamagedError,
    GoneError,
    InputError,
    NotFoundError,
    StorageError,
    StoreError,
)
from nearcast.measure.canary_figures import CanaryFigures, HitFigures
from nearcast.monitoring.service_figures import FigureSource
from nearcast.publishing.canary_rules import CanaryVerdict, judge_canary
from nearcast.publishing.move_canary import read_live_canary
from nearcast.settings.publish_tables import CanarySpec
from nearcast.stores.base import Pointer, Store
from nearcast.stores.canary_share import Canary

__all__ = ["CanaryOutcome", "CanaryReport", "CanaryWatch", "read_report", "watch"]

HITS_SECONDS = 30.0  # between two looks at an engagement log
LATE_SECONDS = 60.0  # after `max_seconds`: so long errors are passed over then
PASSING_ERRORS = (BusyError, GoneError, InputError, NotFoundError, StorageError, StoreError)


@dataclass(frozen=True, slots=True)
class CanaryReport:
    """A canary, its figures and what the rules say about them."""

    generator: str
    store: str  # URL
    current: int  # version
    canary: Canary
    figures: CanaryFigures
    hits: HitFigures | None
    verdict: CanaryVerdict
    unreachable: dict[str, str]  # service: why it could not be asked

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "generator": self.generator,
            "store": self.store,
            "current": self.current,
            "canary": asdict(self.canary),
            "figures": self.figures.summarize(),
            "hits": None if self.hits is None else self.hits.summarize(),
            "verdict": self.verdict.as_dict(),
            "unreachable": dict(self.unreachable),
        }


@dataclass(frozen=True, slots=True)
class CanaryOutcome:
    """How the watching of a canary ended."""

    outcome: Literal["promoted", "withdrawn", "undecided"]
    why: str
    report: CanaryReport | None  # the last one; None if others ended it before the first look


@dataclass(frozen=True, slots=True)
class CanaryWatch:
    """What to watch, by which rules, and how to act."""

    store: Store
    generator: str
    rules: CanarySpec
    source: FigureSource
    read_hits: Callable[[Pointer, Canary], HitFigures | None]
    promote: Callable[[Canary, CanaryReport], None]
    withdraw: Callable[[Canary, CanaryReport], None]
    note: Callable[[str], None]


def read_report(watched: CanaryWatch, seconds: float = 0.0, hits: HitFigures | None = None) -> CanaryReport:
    """Read the figures and judge them. Raises NotFoundError if no canary is live."""
    pointer, canary = read_live_canary(watched.store, watched.generator)
    figures = watched.source.read(canary)
    faults = tuple(watched.source.faults.values())
    verdict = judge_canary(figures, watched.rules, seconds, hits=hits, faults=faults)
    unreachable = dict(watched.source.unreachable)
    return CanaryReport(
        watched.generator, watched.store.url, pointer.version, canary, figures, hits, verdict, unreachable
    )


def watch(watched: CanaryWatch, every_seconds: float, show: Callable[[CanaryReport], None]) -> CanaryOutcome:
    """Watch until the canary has ended, or `max_seconds` have passed and it cannot be decided.

    Time is counted from here, so a wrong clock decides nothing. An error of the store, of a service or of the
    engagement log is noted, and the next look comes after `every_seconds`; LATE_SECONDS after `max_seconds` an error
    ends it as undecided. show: called after each look. Raises the first error if it is one of the log.
    """
    first = read_live_canary(watched.store, watched.generator)[1]
    started, read_at, hits, report, trouble = time.monotonic(), -HITS_SECONDS, None, None, ""
    while True:
        try:
            pointer = watched.store.pointer(watched.generator)
            if pointer is None:  # a volume that is not mounted looks like an empty store
                raise NotFoundError(f"{watched.generator} has no current version in {watched.store.url} any more")
            if not first.is_same(pointer.canary):
                return _describe_end(first, pointer, report)
            seconds = time.monotonic() - started
            if seconds - read_at >= HITS_SECONDS:
                hits, read_at = watched.read_hits(pointer, first), seconds
            report = read_report(watched, seconds, hits)
            show(report)
            trouble = ""
            if report.verdict.decision == "undecided":
                return CanaryOutcome("undecided", report.verdict.why, report)
            if report.verdict.decision == "promote":
                try:
                    watched.promote(first, report)
                    return CanaryOutcome("promoted", report.verdict.why, report)
                except DamagedError as error:  # its bytes are not those that were published
                    report = replace(report, verdict=replace(report.verdict, decision="withdraw", why=str(error)))
            if report.verdict.decision == "withdraw":
                watched.withdraw(first, report)
                return CanaryOutcome("withdrawn", report.verdict.why, report)
        except PASSING_ERRORS as error:
            if report is None and isinstance(error, InputError):  # later, another process may be writing the log
                raise
            if str(error) != trouble:
                watched.note(f"trying again: {error}")
            trouble = str(error)
        if trouble and time.monotonic() - started >= watched.rules.max_seconds + LATE_SECONDS:
            return CanaryOutcome("undecided", f"max_seconds have passed, and the last look failed: {trouble}", report)
        time.sleep(every_seconds)


def _describe_end(first: Canary, pointer: Pointer, report: CanaryReport | None) -> CanaryOutcome:
    """Return how others have ended the canary."""
    if pointer.version == first.version:
        return CanaryOutcome("promoted", "it was promoted by others", report)
    return CanaryOutcome("withdrawn", "it was withdrawn or replaced by others", report)
