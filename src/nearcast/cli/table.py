"""`nearcast table`: what a phrase or a person leads to, from an engagement log into the store."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.api.publications import publish_table
from nearcast.cli.common import as_json, console, json_option, out_of, out_option, store_option
from nearcast.cli.overlay import span_of
from nearcast.cli.progress import listening
from nearcast.cli.render_publish import outcome
from nearcast.publishing.engagement import TOP

__all__ = ["table"]


@click.command()
@click.argument("generator")
@click.argument("table", metavar="TABLE")
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--key", required=True, metavar="COLUMN", help="Column of the phrase, the person, ...")
@click.option("--item", required=True, metavar="COLUMN", help="Column of what was engaged with: a key of GENERATOR.")
@click.option("--weight", metavar="COLUMN", help="Column of what an engagement counts; 1 each.")
@click.option("--time", metavar="COLUMN", help="Column of when it was: a timestamp, a date, or seconds.")
@click.option("--half-life", metavar="SPAN", callback=span_of, help="So much older counts half: 6h, 7d.")
@click.option("--top", type=click.IntRange(min=1), default=TOP, show_default=True, help="Items of a key to keep.")
@click.option("--fewer", is_flag=True, help="Publish though it has less than half as many keys as what is current.")
@click.option("--repair", is_flag=True, help="Do without a current table that cannot be read.")
@store_option
@out_option
@json_option
def table(
    generator: str,
    table: str,
    log: Path,
    key: str,
    item: str,
    weight: str | None,
    time: str | None,
    half_life: float | None,
    top: int,
    fewer: bool,
    repair: bool,
    store: str | None,
    out: Path,
    as_json_: bool,
) -> None:
    """Publish TABLE of GENERATOR: for each key the items that LOG shows most engagement with, and how much.

    LOG is a Parquet file, or a folder of them, with a row per engagement. The tables that requests are resolved by are
    `phrases` and `people`; a table is looked up, rolled back and served under the name GENERATOR.TABLE.
    """
    with listening(quiet=as_json_) as listener:
        done = publish_table(
            generator,
            table,
            log,
            key=key,
            item=item,
            weight=weight,
            time=time,
            half_life_seconds=half_life,
            top=top,
            fewer=fewer,
            repair=repair,
            store=store,
            out=out_of(generator, out),
            listener=listener,
        )
    if as_json_:
        as_json(done.as_dict())
    else:
        console().print(outcome(done))
