"""`nearcast work`: take part in a planned run as one of many workers."""

from __future__ import annotations

import os
from dataclasses import dataclass

import click

from nearcast.api.shared_runs import work_on
from nearcast.cli.common import (
    OutLocation,
    console,
    format_bytes,
    format_seconds,
    json_option,
    pass_options,
    print_json,
    quiet_option,
)
from nearcast.cli.progress import show_progress
from nearcast.cli.watch import WatchOptions, show_run
from nearcast.runners.array_index import find_share
from nearcast.storage.locations import Location

__all__ = ["WorkerOptions", "work"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Options of `nearcast work` that say which tasks this worker does, and how it waits for others."""

    stage: str | None
    index: int | None
    of: int | None
    takeover: float
    patience: float


@click.command()
@click.argument("location", type=OutLocation())
@click.option(
    "--stage",
    metavar="STAGE",
    help="Do the tasks of one stage that `nearcast plan` shows, and do not wait for other workers.",
)
@click.option("--index", type=int, metavar="I", help="Index of this worker, from 0. Default: the scheduler's variable.")
@click.option("--of", type=int, metavar="N", help="Number of workers. Default: the scheduler's variable.")
@click.option(
    "--takeover",
    type=click.FloatRange(0.1),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="A task whose worker gives no sign of life for so long is done by another.",
)
@click.option(
    "--patience",
    type=click.FloatRange(0.1),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="Exit with 15 if other workers finish nothing for so long.",
)
@click.option("--watch", is_flag=True, help="Do nothing; show the progress of the run. The same as `nearcast watch`.")
@quiet_option
@json_option
@pass_options(WorkerOptions)
def work(location: Location, options: WorkerOptions, watch: bool, quiet: bool, as_json_: bool) -> None:
    """Take part in the run that `nearcast plan` has written to LOCATION.

    Does the tasks whose number is I modulo N, then those that no other worker does, stage by stage, and ends when all
    stages are done. Index and number come from the options, each that is missing from the variables of Kubernetes, AWS
    Batch, SLURM or Cloud Run, with NEARCAST_WORKERS as the number where the scheduler passes none. Any number of
    workers may run, may be killed, and may be started again. Then `nearcast gather LOCATION` makes the snapshot.

    Exit codes 14 and 15 may pass: start the worker again. After 2, 3, 7 and 16 no other attempt helps.
    """
    if watch:
        show_run(location, WatchOptions(), as_json=as_json_)
        return
    share = find_share(options.index, options.of, os.environ)
    with show_progress(quiet=quiet or as_json_) as listener:
        done = work_on(
            location,
            share=share,
            stage=options.stage,
            takeover_seconds=options.takeover,
            patience_seconds=options.patience,
            listener=listener,
        )
    if as_json_:
        stages = [
            {
                "stage": s.stage,
                "tasks": s.tasks,
                "done_here": s.done_here,
                "seconds": round(s.seconds, 3),
                "cpu_seconds": round(s.cpu_seconds, 3),
                "peak_bytes": s.peak_bytes,
            }
            for s in done
        ]
        print_json({"location": str(location), "index": share.index, "workers": share.count, "stages": stages})
        return
    screen = console()
    if not done:
        screen.print("the run is finished: its snapshot is made")
        return
    screen.print(f"worker {share.index} of {share.count}")
    for stage in (each for each in done if each.tasks):
        peak = f", peak memory {format_bytes(stage.peak_bytes)}" if stage.peak_bytes else ""
        screen.print(
            f"{stage.stage:<12}{stage.done_here:,} of {stage.tasks:,} tasks here, {format_seconds(stage.seconds)}{peak}"
        )
