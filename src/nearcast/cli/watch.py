"""`nearcast watch`: show the progress of a planned run that others work on."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import click
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from nearcast.api.shared_runs import watch_run
from nearcast.cli.common import OutLocation, console, format_seconds, json_option, pass_options, print_json
from nearcast.join.run_progress import RunProgress, StageProgress
from nearcast.runners.call_messages import restore_error
from nearcast.storage.locations import Location

__all__ = ["WatchOptions", "show_run", "watch"]

EVERY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """Options of `nearcast watch`."""

    once: bool = False
    every: float = EVERY_SECONDS


@click.command()
@click.argument("location", type=OutLocation())
@click.option("--once", is_flag=True, help="Show the present state and exit.")
@click.option(
    "--every",
    type=click.FloatRange(0.05),
    default=EVERY_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks at the storage.",
)
@json_option
@pass_options(WatchOptions)
def watch(location: Location, options: WatchOptions, as_json_: bool) -> None:
    """Show the progress of the run at LOCATION until all stages are done.

    Reads the storage alone, so it runs on any machine: tasks done and in progress by stage, and the time that is left.
    Bars on a terminal, lines elsewhere; with --json the present state, once. If a task has stopped the run, exits with
    the exit code of its error.
    """
    show_run(location, options, as_json=as_json_)


def show_run(location: Location, options: WatchOptions, *, as_json: bool) -> None:
    """Show the progress of a run. Raises the error that has stopped it."""
    if as_json:
        found = watch_run(location)
        print_json(found.as_dict())
    elif sys.stdout.isatty() and not options.once:
        found = _draw_bars(location, options)
    else:
        found = _print_lines(location, options)
    if found.failure is not None and not found.is_done:
        error = restore_error(found.failure["error"])
        error.add_note(f"in task {found.failure['task']}")
        raise error


def _print_lines(location: Location, options: WatchOptions) -> RunProgress:
    """Print a line per stage whenever something has changed."""
    screen, last = console(), None
    while True:
        found = watch_run(location)
        text = "\n".join(format_stage(stage) for stage in found.stages if stage.tasks)
        if text != last:  # also the first time
            left = "" if found.seconds_left is None else f", about {format_seconds(found.seconds_left)} left"
            lines = [text] if text else []
            screen.print("\n".join([*lines, f"{_count_done(found)}{'' if found.is_done else left}"]), soft_wrap=True)
            last = text
        if options.once or found.is_done or found.failure is not None:
            return found
        time.sleep(options.every)


def _draw_bars(location: Location, options: WatchOptions) -> RunProgress:
    """Draw a bar per stage until the run is done."""
    columns = (
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(bar_width=32),
        TextColumn("{task.fields[state]}", markup=False),
    )
    with Progress(*columns, console=console()) as bars:
        rows: dict[str, TaskID] = {}
        while True:
            found = watch_run(location)
            for stage in found.stages:
                if stage.stage not in rows:
                    rows[stage.stage] = bars.add_task(stage.stage, total=stage.tasks, state="", start=False)
                state = format_stage(stage).split("  ", 1)[-1].strip() if stage.tasks is not None else "waits"
                bars.update(rows[stage.stage], completed=stage.done, total=stage.tasks or 1, state=state)
            if found.is_done or found.failure is not None:
                return found
            time.sleep(options.every)


def format_stage(stage: StageProgress) -> str:
    """Format the progress of a stage in one line."""
    running = f", {stage.running:,} in progress" if stage.running else ""
    left = ""
    if not stage.is_done and stage.seconds_left is not None:
        left = f", about {format_seconds(stage.seconds_left)} left"
    return f"{stage.stage:<12}  {stage.done:,} of {stage.tasks or 0:,} tasks{running}{left}"


def _count_done(found: RunProgress) -> str:
    done = sum(stage.is_done for stage in found.stages)
    if "snapshot" in found.facts:
        return f"the run is finished: snapshot {found.facts['snapshot']}"
    if found.is_done:
        return "all stages are done; `nearcast gather` makes the snapshot"
    return f"{done} of {len(found.stages)} stages are done"
