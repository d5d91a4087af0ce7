"""Show the progress of a run on standard error: bars on a terminal, log lines elsewhere."""

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
from nearcast.cli.render import build_estimate_table, build_problem_table
from nearcast.join.listener import Listener

if TYPE_CHECKING:
    from nearcast.join.estimate import RunEstimate
    from nearcast.sources.validate_rows import Report

__all__ = ["DrawingListener", "show_progress"]


class DrawingListener(Listener):
    """Listener that draws bars and tables on a terminal."""

    def __init__(self, bars: Progress, screen: Console) -> None:
        super().__init__()
        self._bars = bars
        self._screen = screen
        self._stages: dict[str, TaskID] = {}

    def progress(self, stage: str, done: int, total: int) -> None:
        """Update the bar of the stage; add one for a new stage."""
        if stage not in self._stages:
            self._stages[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._stages[stage], completed=done, total=total)

    def checked(self, report: Report) -> None:
        """Print the problems that do not stop the run; an error lists the others."""
        if report.problems and not report.errors:
            self._screen.print(build_problem_table(report))

    def estimated(self, estimate: RunEstimate) -> None:
        """Print the estimate."""
        self._screen.print(build_estimate_table(estimate))

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._screen.print(Text.assemble(("· ", "dim"), text))


@contextlib.contextmanager
def show_progress(*, quiet: bool) -> Iterator[Listener]:
    """Yield a listener that shows progress until the context ends."""
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
    """Listener that writes log lines, and the same tables as on a terminal."""

    def checked(self, report: Report) -> None:
        """Print the problems that do not stop the run; an error lists the others."""
        if report.problems and not report.errors:
            console(to_stderr=True).print(build_problem_table(report))

    def estimated(self, estimate: RunEstimate) -> None:
        """Print the estimate."""
        console(to_stderr=True).print(build_estimate_table(estimate))


class _Silent(Listener):
    """Listener that prints nothing; errors still reach standard error."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Print nothing."""

    def checked(self, report: Report) -> None:
        """Print nothing."""

    def estimated(self, estimate: RunEstimate) -> None:
        """Print nothing."""

    def note(self, text: str) -> None:
        """Print nothing."""
