"""`nearcast replay`: a log of requests through the whole funnel, by look-up and by online search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from nearcast.api.advice import replay as replay_log
from nearcast.cli.common import LocalPath, as_json, console, json_option, store_option
from nearcast.cli.progress import listening
from nearcast.replaying.funnel_chart import draw_replay

if TYPE_CHECKING:
    from nearcast.replaying.outcome import Figures, Rate
    from nearcast.replaying.replay import Replayed

__all__ = ["replay"]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("log", type=click.Path(path_type=Path))
@click.option(
    "--snapshot", "versions", type=int, multiple=True, help="Version to replay; may be given twice. The current one."
)
@click.option("--expansion", metavar="NAME", help="Expansion table of the store to go through; none.")
@click.option("-k", "k", type=click.IntRange(min=1), help="Length of an answer; the expansion table's.")
@click.option("--candidates", type=click.IntRange(min=1), help="Only the first so many candidates of each key.")
@click.option("--sample", type=click.IntRange(min=1), help="Requests to draw from the log; all.")
@click.option("--no-online", is_flag=True, help="Leave the online search out.")
@click.option(
    "--online-engine", type=click.Choice(["faiss-hnsw", "faiss-ivf"]), default="faiss-hnsw", show_default=True,
    help="Engine of the online index.",
)  # fmt: skip
@click.option("--picture", type=LocalPath(dir_okay=False), help="Draw it: .svg, .png or .pdf.")
@store_option
@json_option
@click.option("--quiet", is_flag=True, help="No progress.")
def replay(
    spec: Path,
    log: Path,
    versions: tuple[int, ...],
    expansion: str | None,
    k: int | None,
    candidates: int | None,
    sample: int | None,
    no_online: bool,
    online_engine: str,
    picture: Path | None,
    store: str | None,
    as_json_: bool,
    quiet: bool,
) -> None:
    """Send the requests of LOG through snapshots of SPEC's generator, and through an online index.

    LOG is Parquet with a row per request: key (an id, or a list), and where there are any weight, time, engaged and
    engaged_ad; all other columns are fields of the request that targeting may ask.
    """
    with listening(quiet=quiet or as_json_) as listener:
        found = replay_log(
            spec,
            log,
            versions=versions,
            expansion=expansion,
            k=k,
            candidates_per_key=candidates,
            sample=sample,
            online=None if no_online else online_engine,
            store=store,
            listener=listener,
        )
    if picture is not None:
        draw_replay(found.generator, found.requests, found.ways, picture)
    if as_json_:
        as_json(found.as_dict())
        return
    console().print(_table(found))
    for line in (*found.compared, *_leads(found)):
        console().print(line)


def _table(found: Replayed) -> Table:
    through = f" through {found.expansion}" if found.expansion else ""
    table = Table(title=f"{found.generator}: {found.requests:,} requests{through}", title_justify="left")
    table.add_column("a request, on average", no_wrap=True)
    for way in found.ways:
        table.add_column(way.name, justify="right", no_wrap=True)
    for place, (name, _, _) in enumerate(found.ways[0].stages):
        table.add_row(name.replace("_", " "), *(_left(way, place) for way in found.ways))
    table.add_section()
    table.add_row("empty answers", *(f"{way.empty:.1%}" for way in found.ways))
    if found.ways[0].short is not None:
        table.add_row("answers that are short", *(f"{way.short:.1%}" for way in found.ways))
    table.add_row("keys that are not known", *(f"{way.missed:.1%}" for way in found.ways))
    table.add_row("hit rate at T+1, items", *(_rate(way.hit_rate) for way in found.ways))
    table.add_row("hit rate at T+1, ads", *(_rate(way.ad_hit_rate) for way in found.ways))
    table.add_section()
    table.add_row("median, p99 in ms", *(f"{way.p50_ms:.2f}, {way.p99_ms:.2f}" for way in found.ways))
    table.add_row("processor seconds, all", *(f"{way.cpu_seconds:.2f}" for way in found.ways))
    return table


def _left(way: Figures, place: int) -> str:
    _, candidates, ads = way.stages[place]
    return f"{candidates:.1f}" + (f" with {ads:.1f} ads" if ads else "")


def _rate(rate: Rate | None) -> str:
    return "" if rate is None else f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})"


def _leads(found: Replayed) -> list[str]:
    first = found.ways[0].name
    return [
        f"{first} over {way}, {what}: {100 * rate.value:+.1f} points "
        f"({100 * rate.low:+.1f} to {100 * rate.high:+.1f}) of {rate.of:,} requests"
        for way, rates in found.leads.items()
        for what, rate in rates.items()
        if rate is not None
    ]
