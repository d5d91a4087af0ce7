"""Who hears of a run as it goes: a listener, told of stages, reports and estimates. Prints nothing itself."""

from __future__ import annotations

import logging
import time

from nearcast.join.estimate import RunEstimate
from nearcast.sources.check import Report

__all__ = ["Listener"]

log = logging.getLogger("nearcast")

LOG_SECONDS = 10.0  # between two log lines of one stage


class Listener:
    """Hears of a run. This one writes log lines; the command line draws instead."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of a stage are complete."""
        now = time.monotonic()
        if done < total and now - self._last.get(stage, -LOG_SECONDS) < LOG_SECONDS:
            return
        self._last[stage] = now
        log.info("%s: %d of %d", stage, done, total, extra={"stage": stage, "done": done, "total": total})

    def checked(self, report: Report) -> None:
        """The inputs have been checked; bad ones stop the run after this."""
        for problem in report.problems:
            log.warning("%s: %s [%s: %s]", problem.side, problem.sentence(), problem.kind, problem.policy)

    def estimated(self, estimate: RunEstimate) -> None:
        """What the run will take is known, as far as it can be."""
        log.info("estimate: %s", estimate.as_dict())

    def note(self, text: str) -> None:
        """Something worth a line: what is continued, started afresh, chosen."""
        log.info("%s", text)
