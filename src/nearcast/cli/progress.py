"""Show a run as it goes: bars with an ETA on a terminal, log lines elsewhere. All on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.text import Text

from nearcast.cli.common import console
from nearcast.cli.render import estimate_table, problem_table
from nearcast.join.listener import Listener

if TYPE_CHECKING:
    from nearcast.join.estimate import RunEstimate
    from nearcast.sources.validate_rows import Report

__all__ = ["DrawingListener", "listening"]


class DrawingListener(Listener):
    """Draws into a live rich Progress."""

    def __init__(self, bars: Progress, screen: Console) -> None:
        super().__init__()
        self._bars = bars
        self._screen = screen
        self._stages: dict[str, TaskID] = {}

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the stage's bar; a new stage gets a new one."""
        if stage not in self._stages:
            self._stages[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._stages[stage], completed=done, total=total)

    def checked(self, report: Report) -> None:
        """Show what the checks have found and let pass; an error says the rest."""
        if report.problems and not report.errors:
            self._screen.print(problem_table(report))

    def estimated(self, estimate: RunEstimate) -> None:
        """Show what the run will take."""
        self._screen.print(estimate_table(estimate))

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._screen.print(Text.assemble(("· ", "dim"), text))


@contextlib.contextmanager
def listening(*, quiet: bool) -> Iterator[Listener]:
    """A listener for the command line, for as long as a run goes."""
    if quiet:
        yield _Silent()
        return
    if not sys.stderr.isatty():
        yield _PlainListener()
        return
    screen = console(to_stderr=True)
    columns = (
        TextColumn("{task.description:<14}", markup=False),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        Remaining(compact=True),
    )
    with Progress(*columns, console=screen) as bars:
        yield DrawingListener(bars, screen)


class _PlainListener(Listener):
    """Log lines, and the same tables as on a terminal."""

    def checked(self, report: Report) -> None:
        """Show what the checks have found and let pass; an error says the rest."""
        if report.problems and not report.errors:
            console(to_stderr=True).print(problem_table(report))

    def estimated(self, estimate: RunEstimate) -> None:
        """Show what the run will take."""
        console(to_stderr=True).print(estimate_table(estimate))


class _Silent(Listener):
    """Hears and says nothing; errors still reach standard error."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say nothing."""

    def checked(self, report: Report) -> None:
        """Say nothing."""

    def estimated(self, estimate: RunEstimate) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
