"""`nearcast table`: publish a table of weights from an engagement log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from nearcast.api.publications import publish_table
from nearcast.cli.common import (
    InputPath,
    console,
    explicit_out,
    json_option,
    out_option,
    pass_options,
    print_json,
    store_option,
)
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.overlay import parse_duration
from nearcast.cli.progress import show_progress
from nearcast.cli.render_publish import describe_publication
from nearcast.publishing.engagement import TOP
from nearcast.storage.locations import Location

__all__ = ["TableOptions", "table"]


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Options of `nearcast table`."""

    key: str
    item: str
    weight: str | None
    time: str | None
    half_life: float | None
    top: int
    fewer: bool
    repair: bool
    store: str | None
    out: Location


@click.command()
@click.argument("generator", type=GeneratorName())
@click.argument("table", metavar="TABLE")
@click.argument("log", type=InputPath())
@click.option("--key", required=True, metavar="COLUMN", help="Column of the keys: phrases, people, ...")
@click.option("--item", required=True, metavar="COLUMN", help="Column of the engaged items: keys of GENERATOR.")
@click.option("--weight", metavar="COLUMN", help="Column of the weight of an engagement. Default: 1 each.")
@click.option("--time", metavar="COLUMN", help="Column of the time: a timestamp, a date, or seconds since 1970.")
@click.option(
    "--half-life",
    metavar="DURATION",
    callback=parse_duration,
    help="An engagement this much older than the newest counts half: 6h, 7d. Default: age does not count.",
)
@click.option("--top", type=click.IntRange(min=1), default=TOP, show_default=True, help="Items kept per key.")
@click.option("--fewer", is_flag=True, help="Publish even if the table has less than half the keys of the current one.")
@click.option("--repair", is_flag=True, help="Continue if the current table cannot be read.")
@store_option
@out_option
@json_option
@pass_options(TableOptions)
def table(generator: str, table: str, log: Path | str, options: TableOptions, as_json_: bool) -> None:
    """Publish TABLE of GENERATOR: for each key, the items of LOG with the most engagement, and their weights.

    LOG is a Parquet file, or a folder of them, with one row per engagement. Requests are resolved by the tables
    `phrases` and `people`. A table is looked up, rolled back and served under the name GENERATOR.TABLE.
    """
    with show_progress(quiet=as_json_) as listener:
        published = publish_table(
            generator,
            table,
            log,
            key=options.key,
            item=options.item,
            weight=options.weight,
            time=options.time,
            half_life_seconds=options.half_life,
            top=options.top,
            fewer=options.fewer,
            repair=options.repair,
            store=options.store,
            out=explicit_out(generator, options.out),
            listener=listener,
        )
    if as_json_:
        print_json(published.as_dict())
    else:
        console().print(describe_publication(published))
