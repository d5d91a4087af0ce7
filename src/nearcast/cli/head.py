"""`nearcast head`: find the keys that cover most of the traffic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nearcast.advising.cost_charts import draw_head
from nearcast.advising.head_keys import HELD_OUT_DAYS, CoveragePoint, Head
from nearcast.api.advice import head as find_head
from nearcast.cli.common import (
    InputPath,
    LocalPath,
    console,
    json_option,
    parse_memory,
    pass_options,
    picture_option,
    print_json,
    quiet_option,
)
from nearcast.cli.progress import show_progress

__all__ = ["HeadOptions", "head"]


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """Options of `nearcast head`."""

    coverage: float
    by_tomorrow: bool
    key: str
    time: str | None
    count: str | None
    days: int
    to: Path | str | None
    column: str
    memory: int | None


@click.command()
@click.argument("log", type=InputPath())
@click.option("--coverage", type=float, default=0.9, show_default=True, help="Share of the traffic to cover.")
@click.option("--tomorrow", "by_tomorrow", is_flag=True, help="Cover that share of a future day instead of the log.")
@click.option("--key", default="key", show_default=True, help="Column of the keys.")
@click.option("--time", metavar="COLUMN", help="Column of the times; needed to hold out days. Default: none.")
@click.option("--count", metavar="COLUMN", help="Column of the number of requests of a row. Default: 1 each.")
@click.option(
    "--held-out",
    "days",
    type=click.IntRange(1),
    default=HELD_OUT_DAYS,
    show_default=True,
    help="Number of last days to hold out.",
)
@click.option(
    "--to",
    type=LocalPath(dir_okay=False, buckets=True),
    metavar="FILE",
    help="Write the keys to this Parquet file or URL.",
)
@click.option("--column", default="id", show_default=True, help="Column of the keys in that file: the queries' `id`.")
@picture_option
@click.option("--memory", metavar="SIZE", callback=parse_memory, help='Memory for counting, for example "4GB".')
@quiet_option
@json_option
@pass_options(HeadOptions)
def head(log: Path | str, options: HeadOptions, picture: Path | None, quiet: bool, as_json_: bool) -> None:
    """Find the fewest keys that cover a share of the traffic of LOG (Parquet: a file, a folder or a glob).

    Shows how much more keys add, and the expected coverage of tomorrow: measured on each of the last days, with the
    keys of the days before it. The file of --to goes into a spec as `[queries] only`.
    """
    with show_progress(quiet=quiet or as_json_) as listener:
        found = find_head(
            log,
            coverage=options.coverage,
            by_tomorrow=options.by_tomorrow,
            key=options.key,
            time=options.time,
            count=options.count,
            held_out_days=options.days,
            memory=options.memory,
            to=options.to,
            column=options.column,
            listener=listener,
        )
    if picture is not None:
        draw_head(found, picture)
    if as_json_:
        print_json(found.as_dict())
    else:
        console().print(_build_report(found, options.to))


def _build_report(head: Head, to: Path | str | None) -> Group:
    of_what = "a future day" if head.by_tomorrow else "the log"
    days = f", {head.days:,} days" if head.days else ""
    parts: list[RenderableType] = [
        Text(f"{head.chosen.keys:,} of {head.n_keys:,} keys cover {head.asked:.1%} of {of_what}", style="bold"),
        Text(
            f"{head.requests:,.0f} requests{days}; Zipf exponent {head.zipf.exponent:.2f} (distance from a Zipf law "
            f"{head.zipf.distance:.1%})"
        ),
        "",
        _build_point_table(head),
    ]
    if head.held_out:
        parts += ["", _build_day_table(head)]
    else:
        parts += ["", Text("coverage of tomorrow: give --time; the log must have two days or more", style="dim")]
    if to is not None:
        parts += ["", f'[queries]\nonly = "{to}"']
    return Group(*parts)


def _build_point_table(head: Head) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("coverage", "keys", "of all keys", "tomorrow", "next 1,000 keys add"):
        table.add_column(name, justify="right")
    for point in sorted({*head.table, head.chosen}, key=lambda point: point.keys):
        chosen = point.keys == head.chosen.keys
        table.add_row(*_format_point(point, head.n_keys), style="bold" if chosen else None)
    return table


def _format_point(point: CoveragePoint, n_keys: int) -> tuple[str, ...]:
    tomorrow = "" if point.tomorrow is None else f"{point.tomorrow:.1%}"
    share, added = f"{point.keys / n_keys:.1%}", f"{point.next_thousand:.2%}" if point.next_thousand > 0 else "nothing"
    return f"{point.coverage:.1%}", f"{point.keys:,}", share, tomorrow, added


def _build_day_table(head: Head) -> Group:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("held-out day", "keys of days before", "coverage", "new keys"):
        table.add_column(name, justify="left" if name == "held-out day" else "right")
    for day in head.held_out:
        table.add_row(day.day, f"{day.keys:,}", f"{day.coverage:.1%}", f"{day.new:.1%}")
    assert head.tomorrow is not None
    mean, least, most = head.tomorrow
    text = (
        f"keys that cover {head.asked:.1%} of the days before cover {mean:.1%} ({least:.1%} to {most:.1%}) of the next"
    )
    return Group(table, Text(text))
