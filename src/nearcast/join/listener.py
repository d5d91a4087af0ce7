"""Progress of a run: a listener that stages report to. This one writes log lines and prints nothing."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nearcast.join.estimate import RunEstimate
    from nearcast.sources.validate_rows import Report

__all__ = ["Listener"]

log = logging.getLogger("nearcast")

LOG_SECONDS = 10.0  # between two log lines of one stage


class Listener:
    """Receives the progress of a run and writes log lines. The command line overrides it to draw bars."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._ended: set[str] = set()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of a stage are complete."""
        now = time.monotonic()
        first, last = self._started.setdefault(stage, now), self._last.get(stage, self._started[stage])
        if stage in self._ended or (done < total and now - last < LOG_SECONDS):
            return
        self._last[stage] = now
        seconds = now - first
        fields = {"stage": stage, "done": done, "total": total, "seconds": round(seconds, 1)}
        if done < total:
            left = f"about {seconds / max(1, done) * (total - done):,.0f} s left"
        else:
            self._ended.add(stage)
            left = f"{seconds:.1f} s"
        log.info("%s: %s of %s, %s", stage, f"{done:,}", f"{total:,}", left, extra=fields)

    def checked(self, report: Report) -> None:
        """Report the result of the input checks. Errors stop the run afterwards."""
        for problem in report.problems:
            log.warning("%s: %s [%s: %s]", problem.side, problem.sentence(), problem.kind, problem.policy)

    def estimated(self, estimate: RunEstimate) -> None:
        """Report the estimated cost of the run."""
        log.info("estimate: %s", estimate.as_dict())

    def note(self, text: str) -> None:
        """Report an event in a line of text."""
        log.info("%s", text)
