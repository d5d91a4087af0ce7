"""`nearcast head`: which keys are worth a list made ahead."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nearcast.advising.cost_charts import draw_head
from nearcast.advising.head_keys import HELD_OUT_DAYS, Head, Point
from nearcast.api.advice import head as find
from nearcast.cli.common import LocalPath, as_json, console, json_option
from nearcast.cli.progress import listening
from nearcast.spec import parse_bytes

__all__ = ["head"]


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--coverage", type=float, default=0.9, show_default=True, help="Share of the traffic to cover.")
@click.option("--tomorrow", "by_tomorrow", is_flag=True, help="Cover that share of a day to come, not of the log.")
@click.option("--key", default="key", show_default=True, help="Column of the keys.")
@click.option("--time", metavar="COLUMN", help="Column of times: days are told apart, and held out.")
@click.option("--count", metavar="COLUMN", help="Column of how often; a row counts once without.")
@click.option(
    "--held-out",
    "days",
    type=click.IntRange(1),
    default=HELD_OUT_DAYS,
    show_default=True,
    help="Last days to hold out.",
)
@click.option("--to", type=LocalPath(dir_okay=False), metavar="FILE", help="Write the keys there.")
@click.option(
    "--column", default="id", show_default=True, help="What that file calls the keys: the queries' id column."
)
@click.option("--picture", type=LocalPath(dir_okay=False), metavar="FILE", help="Draw a .svg, .png or .pdf file.")
@click.option("--memory", metavar="SIZE", help='What counting may take, such as "4GB".')
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
@json_option
def head(
    log: Path,
    coverage: float,
    by_tomorrow: bool,
    key: str,
    time: str | None,
    count: str | None,
    days: int,
    to: Path | None,
    column: str,
    picture: Path | None,
    memory: str | None,
    quiet: bool,
    as_json_: bool,
) -> None:
    """Pick the fewest keys that cover a share of the traffic of a LOG (Parquet: a file, a folder or a glob).

    Shows what more keys would add, and what the head will cover tomorrow: measured on the last days, for each of which
    the head is chosen on the days before. The file of --to goes into a spec as `[queries] only`.
    """
    given = None
    if memory is not None:
        try:
            given = parse_bytes(memory)
        except ValueError as error:
            raise click.BadParameter(f"{memory!r}: {error}", param_hint="--memory") from None
    with listening(quiet=quiet or as_json_) as listener:
        found = find(
            log,
            coverage=coverage,
            by_tomorrow=by_tomorrow,
            key=key,
            time=time,
            count=count,
            held_out_days=days,
            memory=given,
            to=to,
            column=column,
            listener=listener,
        )
    if picture is not None:
        draw_head(found, picture)
    if as_json_:
        as_json(found.as_dict())
    else:
        console().print(_report(found, to))


def _report(head: Head, to: Path | None) -> Group:
    of_what = "a day to come" if head.by_tomorrow else "the log"
    days = f", {head.days:,} days" if head.days else ""
    parts: list[RenderableType] = [
        Text(f"{head.chosen.keys:,} of {head.n_keys:,} keys cover {head.asked:.1%} of {of_what}", style="bold"),
        Text(
            f"{head.requests:,.0f} requests{days}; Zipf exponent {head.zipf.exponent:.2f} (within "
            f"{head.zipf.distance:.1%} of that law)"
        ),
        "",
        _points(head),
    ]
    if head.held_out:
        parts += ["", _days(head)]
    else:
        parts += ["", Text("tomorrow's coverage: name a column of --time, over two days or more", style="dim")]
    if to is not None:
        parts += ["", f'[queries]\nonly = "{to}"']
    return Group(*parts)


def _points(head: Head) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("coverage", "keys", "of all keys", "tomorrow", "the next 1,000 keys add"):
        table.add_column(name, justify="right")
    for point in sorted({*head.table, head.chosen}, key=lambda point: point.keys):
        chosen = point.keys == head.chosen.keys
        table.add_row(*_cells(point, head.n_keys), style="bold" if chosen else None)
    return table


def _cells(point: Point, n_keys: int) -> tuple[str, ...]:
    tomorrow = "" if point.tomorrow is None else f"{point.tomorrow:.1%}"
    share, added = f"{point.keys / n_keys:.1%}", f"{point.next_thousand:.2%}" if point.next_thousand > 0 else "nothing"
    return f"{point.coverage:.1%}", f"{point.keys:,}", share, tomorrow, added


def _days(head: Head) -> Group:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("day held out", "head of the days before", "covers", "asks for new keys"):
        table.add_column(name, justify="left" if name == "day held out" else "right")
    for day in head.held_out:
        table.add_row(day.day, f"{day.keys:,}", f"{day.coverage:.1%}", f"{day.new:.1%}")
    assert head.tomorrow is not None
    mean, least, most = head.tomorrow
    text = f"a head of {head.asked:.1%} of the days before covers {mean:.1%} ({least:.1%} to {most:.1%}) of the next"
    return Group(table, Text(text))
