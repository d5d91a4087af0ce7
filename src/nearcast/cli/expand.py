"""`nearcast expand`: make a table of what is promoted for items current."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.api.publications import expand as make_current
from nearcast.cli.common import as_json, json_option, size, store_option, stretch
from nearcast.times import format_utc

__all__ = ["expand"]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--as-of",
    metavar="TIME",
    help="When ads and links were exported, such as 2026-12-31T18:00:00Z; UTC where it names no zone. Default: when "
    "the older file was last changed.",
)
@click.option("--repair", is_flag=True, help="Do without a table that cannot be read, and heal the overlay.")
@store_option
@json_option
def expand(spec: Path, as_of: str | None, repair: bool, store: str | None, as_json_: bool) -> None:
    """Make the ads and links of SPEC the current expansion table: what is promoted for which items.

    Written whole beside the one that is current, read back, and swapped in one step: as often as you like. What the
    overlay said of an ad after the files were exported stays in force.
    """
    done = make_current(spec, store=store, as_of=as_of, repair=repair)
    for text in done.notes:
        click.echo(f"note: {text}", err=True)
    if as_json_:
        as_json(done.as_dict())
        return
    click.echo(
        f"{done.name} {done.version:06d} is current in {done.store}: {done.ads:,} ads of {done.items:,} items, "
        f"{done.links:,} links, as of {format_utc(done.as_of)}, {size(done.bytes)} in {stretch(done.seconds)}"
    )
    for target in done.targeting:
        if target.everybody or target.nobody:
            click.echo(
                f"{target.column}: {target.everybody:,} ads are for everybody (no value), {target.nobody:,} for nobody "
                "(an empty list)",
                err=True,
            )
    if done.links_left_out:
        click.echo(f"{done.links_left_out:,} links were left out: their ads are not among the ads", err=True)
    if done.overlay_entries_cut:
        words = "overlay entries were cut: they are over, or the table knows them itself"
        click.echo(f"{done.overlay_entries_cut:,} {words}", err=True)
