"""`nearcast tune`: find the cheapest engine and settings that meet the recall target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nearcast.api.tuning import tune as tune_spec
from nearcast.cli.common import (
    LocalPath,
    console,
    format_bytes,
    format_seconds,
    json_option,
    parse_memory,
    print_json,
    quiet_option,
)
from nearcast.cli.progress import show_progress
from nearcast.errors import MissingExtraError
from nearcast.tuning.frontier_chart import draw_frontier
from nearcast.tuning.tune import TRIALS

if TYPE_CHECKING:
    from nearcast.tuning.tuning_result import TuningResult

__all__ = ["tune"]

MOST_SHOWN = 12


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--trials", type=click.IntRange(1, 10_000), default=TRIALS, show_default=True, help="Number of settings to try."
)
@click.option(
    "--time",
    "seconds",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Time limit. Default: half of the time of an exact join.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    callback=parse_memory,
    help='Memory budget of the job, for example "4GB". Default: the spec\'s.',
)
@click.option(
    "--picture",
    type=LocalPath(dir_okay=False),
    metavar="FILE",
    help="Also draw the frontier into this .svg, .png or .pdf file. Always drawn: <out>/GENERATOR/tuning/frontier.svg.",
)
@quiet_option
@json_option
def tune(
    spec: Path,
    trials: int,
    seconds: float | None,
    memory: int | None,
    picture: Path | None,
    quiet: bool,
    as_json_: bool,
) -> None:
    """Try engines and settings on samples, and suggest the cheapest that meets the recall target.

    Prints the lines to add to the spec, and does not change the spec. Trials are saved in <out>/GENERATOR/tuning; the
    next tuning continues from them. Tuning is optional: a run meets its recall target without it.
    """
    with show_progress(quiet=quiet or as_json_) as listener:
        tuned, folder = tune_spec(spec, trials=trials, seconds=seconds, memory=memory, listener=listener)
    pictures = [folder / "frontier.svg", *([picture] if picture else [])]
    try:
        for path in pictures:
            draw_frontier(tuned, path)
    except MissingExtraError:
        if picture is not None:  # the frontier of the folder is optional, this one is not
            raise
    if as_json_:
        print_json(tuned.as_dict())
    else:
        console().print(_build_report(tuned))


def _build_report(tuned: TuningResult) -> Group:
    head = f"{tuned.generator}: {tuned.n_queries:,} queries x {tuned.n_items:,} items, recall target {tuned.target:g}"
    parts: list[RenderableType] = [Text(head, style="bold"), "", _build_table(tuned)]
    parts += [Text(f"not tried: {reason}", style="dim") for reason in tuned.ruled_out[:3]]
    held, exact = tuned.held_out, format_seconds(tuned.exact_seconds)
    span = f"{held.low:.4f} to {held.high:.4f}"
    facts = [
        f"why    {tuned.reason}",
        f"recall {held.value:.4f} ({span}) on {held.sample:,} held-out queries",
        f"cost   tuning took {format_seconds(tuned.seconds)}; an exact join of everything takes {exact}",
    ]
    if tuned.check is not None:
        check = tuned.check
        facts.append(
            f"check  {check.sample_items:,} items: predicted {format_seconds(check.predicted_seconds)}, "
            f"measured {format_seconds(check.measured_seconds)}"
        )
    return Group(*parts, "", *facts, "", Text(tuned.lines, style="bold"))


def _build_table(tuned: TuningResult) -> Table:
    """Build a table of settings by the cost of the job at the recall target, cheapest first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("settings", "build", "calibrate", "join", "total", "memory"):
        table.add_column(name, justify="left" if name == "settings" else "right")
    keeping = sorted(
        (found for found in tuned.trials if tuned.target in found.costs), key=lambda f: f.costs[tuned.target].seconds
    )
    for found in keeping[:MOST_SHOWN]:
        cost = found.costs[tuned.target]
        table.add_row(
            found.trial.point.name,
            *(format_seconds(part) for part in (cost.build, cost.calibrate, cost.join, cost.seconds)),
            format_bytes(found.trial.memory_bytes),
            style="bold" if found is tuned.suggestion else None,
        )
    return table
