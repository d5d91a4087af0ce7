"""`nearcast tune`: the cheapest settings that keep the promise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nearcast.api.tuning import tune as tune_spec
from nearcast.cli.common import LocalPath, as_json, console, json_option, size, stretch
from nearcast.cli.progress import listening
from nearcast.errors import MissingExtraError
from nearcast.spec import parse_bytes
from nearcast.tuning.frontier_chart import draw_frontier
from nearcast.tuning.tune import TRIALS

if TYPE_CHECKING:
    from nearcast.tuning.tuning_result import TuningResult

__all__ = ["tune"]

MOST_SHOWN = 12


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--trials", type=click.IntRange(1, 10_000), default=TRIALS, show_default=True, help="Points to judge.")
@click.option(
    "--time", "seconds", type=click.FloatRange(min=0), metavar="SECONDS", help="Time to take; half of an exact join's."
)
@click.option("--memory", metavar="SIZE", help='Memory of the whole job, such as "4GB"; the spec\'s.')
@click.option(
    "--picture",
    type=LocalPath(dir_okay=False),
    metavar="FILE",
    help="Draw the frontier there (.svg, .png or .pdf), beside <out>/GENERATOR/tuning/frontier.svg.",
)
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
@json_option
def tune(
    spec: Path,
    trials: int,
    seconds: float | None,
    memory: str | None,
    picture: Path | None,
    quiet: bool,
    as_json_: bool,
) -> None:
    """Try engines and settings on samples, and suggest what keeps the promised recall at the least cost.

    Writes nothing into the spec: the lines to put there are printed. What was learned is kept below
    <out>/GENERATOR/tuning, and tuning again goes on from it. A run keeps its promise without tuning, too.
    """
    given = None
    if memory is not None:
        try:
            given = parse_bytes(memory)
        except ValueError as error:
            raise click.BadParameter(f"{memory!r}: {error}", param_hint="--memory") from None
    with listening(quiet=quiet or as_json_) as listener:
        tuned, folder = tune_spec(spec, trials=trials, seconds=seconds, memory=given, listener=listener)
    pictures = [folder / "frontier.svg", *([picture] if picture else [])]
    try:
        for path in pictures:
            draw_frontier(tuned, path)
    except MissingExtraError:
        if picture is not None:  # it was asked for
            raise
    if as_json_:
        as_json(tuned.as_dict())
    else:
        console().print(_report(tuned))


def _report(tuned: TuningResult) -> Group:
    head = (
        f"{tuned.generator}: {tuned.n_queries:,} queries x {tuned.n_items:,} items, recall {tuned.promise:g} promised"
    )
    parts: list[RenderableType] = [Text(head, style="bold"), "", _table(tuned)]
    parts += [Text(f"not tried: {reason}", style="dim") for reason in tuned.ruled_out[:3]]
    held, exact = tuned.held_out, stretch(tuned.exact_seconds)
    span = f"{held.low:.4f} to {held.high:.4f}"
    facts = [
        f"why    {tuned.reason}",
        f"recall {held.value:.4f} ({span}) on {held.sample:,} queries that it was not chosen on",
        f"cost   tuning took {stretch(tuned.seconds)}; an exact join of everything takes {exact}",
    ]
    if tuned.check is not None:
        check = tuned.check
        facts.append(
            f"check  on {check.sample_items:,} items {stretch(check.predicted_seconds)} were predicted, and it took "
            f"{stretch(check.measured_seconds)}"
        )
    return Group(*parts, "", *facts, "", Text(tuned.lines, style="bold"))


def _table(tuned: TuningResult) -> Table:
    """Points by the cost of the whole job at the promise, the cheapest first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("point", "build", "calibrate", "join", "all", "memory"):
        table.add_column(name, justify="left" if name == "point" else "right")
    keeping = sorted(
        (found for found in tuned.found if tuned.promise in found.costs), key=lambda f: f.costs[tuned.promise].seconds
    )
    for found in keeping[:MOST_SHOWN]:
        cost = found.costs[tuned.promise]
        table.add_row(
            found.trial.point.name,
            *(stretch(part) for part in (cost.build, cost.calibrate, cost.join, cost.seconds)),
            size(found.trial.memory_bytes),
            style="bold" if found is tuned.suggestion else None,
        )
    return table
