"""`nearcast replay`: answer a log of requests again, by look-up and by online search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from nearcast.api.advice import replay as replay_log
from nearcast.cli.common import (
    InputPath,
    LocalPath,
    console,
    json_option,
    pass_options,
    picture_option,
    print_json,
    quiet_option,
    store_option,
)
from nearcast.cli.progress import show_progress
from nearcast.replaying.funnel_chart import draw_replay

if TYPE_CHECKING:
    from nearcast.replaying.outcome import Rate, SourceFigures
    from nearcast.replaying.replay import ReplayReport

__all__ = ["ReplayOptions", "replay"]


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """Options of `nearcast replay`."""

    versions: tuple[int, ...]
    expansion: str | None
    k: int | None
    candidates: int | None
    sample: int | None
    no_online: bool
    online_engine: str
    store: str | None


@click.command()
@click.argument("spec", type=LocalPath(exists=True, dir_okay=False))
@click.argument("log", type=InputPath())
@click.option(
    "--snapshot", "versions", type=int, multiple=True, help="Version to replay. Repeatable. Default: the current one."
)
@click.option("--expansion", metavar="NAME", help="Expansion table of the store to apply. Default: none.")
@click.option("-k", "k", type=click.IntRange(min=1), help="Length of an answer. Default: the expansion table's.")
@click.option("--candidates", type=click.IntRange(min=1), help="Candidates used per key. Default: all.")
@click.option("--sample", type=click.IntRange(min=1), help="Requests to sample from the log. Default: all.")
@click.option("--no-online", is_flag=True, help="Do not replay online search.")
@click.option(
    "--online-engine", type=click.Choice(["faiss-hnsw", "faiss-ivf"]), default="faiss-hnsw", show_default=True,
    help="Engine of the online index.",
)  # fmt: skip
@picture_option
@store_option
@json_option
@quiet_option
@pass_options(ReplayOptions)
def replay(
    spec: Path, log: Path | str, options: ReplayOptions, picture: Path | None, as_json_: bool, quiet: bool
) -> None:
    """Replay the requests of LOG against snapshots of SPEC's generator and against an online index.

    LOG is Parquet with one row per request: key (an id or a list of ids), and optionally weight, time, engaged and
    engaged_ad. All other columns are fields of the request, for targeting.
    """
    with show_progress(quiet=quiet or as_json_) as listener:
        found = replay_log(
            spec,
            log,
            versions=options.versions,
            expansion=options.expansion,
            k=options.k,
            candidates_per_key=options.candidates,
            sample=options.sample,
            online=None if options.no_online else options.online_engine,
            store=options.store,
            listener=listener,
        )
    if picture is not None:
        draw_replay(found.generator, found.requests, found.ways, picture)
    if as_json_:
        print_json(found.as_dict())
        return
    console().print(_build_table(found))
    for line in (*found.compared, *_describe_leads(found)):
        console().print(line)


def _build_table(found: ReplayReport) -> Table:
    through = f" through {found.expansion}" if found.expansion else ""
    table = Table(title=f"{found.generator}: {found.requests:,} requests{through}", title_justify="left")
    table.add_column("average of a request", no_wrap=True)
    for way in found.ways:
        table.add_column(way.name, justify="right", no_wrap=True)
    for place, (name, _, _) in enumerate(found.ways[0].stages):
        table.add_row(name.replace("_", " "), *(_format_stage(way, place) for way in found.ways))
    table.add_section()
    table.add_row("empty answers", *(f"{way.empty:.1%}" for way in found.ways))
    if found.ways[0].short is not None:
        table.add_row("short answers", *(f"{way.short:.1%}" for way in found.ways))
    table.add_row("unknown keys", *(f"{way.missed:.1%}" for way in found.ways))
    table.add_row("hit rate at T+1, items", *(_format_rate(way.hit_rate) for way in found.ways))
    table.add_row("hit rate at T+1, ads", *(_format_rate(way.ad_hit_rate) for way in found.ways))
    table.add_section()
    table.add_row("median and p99, ms", *(f"{way.p50_ms:.2f}, {way.p99_ms:.2f}" for way in found.ways))
    table.add_row("total CPU seconds", *(f"{way.cpu_seconds:.2f}" for way in found.ways))
    return table


def _format_stage(way: SourceFigures, place: int) -> str:
    _, candidates, ads = way.stages[place]
    return f"{candidates:.1f}" + (f" with {ads:.1f} ads" if ads else "")


def _format_rate(rate: Rate | None) -> str:
    return "" if rate is None else f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})"


def _describe_leads(found: ReplayReport) -> list[str]:
    first = found.ways[0].name
    return [
        f"{first} over {way}, {what}: {100 * rate.value:+.1f} points "
        f"({100 * rate.low:+.1f} to {100 * rate.high:+.1f}) of {rate.of:,} requests"
        for way, rates in found.leads.items()
        for what, rate in rates.items()
        if rate is not None
    ]
