"""`nearcast expand`: publish an expansion table: the ads of each item."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.api.publications import expand as make_current
from nearcast.cli.common import LocalPath, format_bytes, format_seconds, json_option, print_json, store_option
from nearcast.times import format_utc

__all__ = ["expand"]


@click.command()
@click.argument("spec", type=LocalPath(exists=True, dir_okay=False))
@click.option(
    "--as-of",
    metavar="TIME",
    help="Time of the export of ads and links, for example 2026-12-31T18:00:00Z; UTC if it has no zone. Default: "
    "modification time of the older file.",
)
@click.option("--repair", is_flag=True, help="Continue if the current table cannot be read, and repair the overlay.")
@store_option
@json_option
def expand(spec: Path, as_of: str | None, repair: bool, store: str | None, as_json_: bool) -> None:
    """Publish the ads and links of SPEC as the current expansion table, which has the ads of each item.

    The new table is written beside the current one, verified, and made current in one atomic step. Overlay entries
    that are newer than the export stay in force.
    """
    done = make_current(spec, store=store, as_of=as_of, repair=repair)
    for text in done.notes:
        click.echo(f"note: {text}", err=True)
    if as_json_:
        print_json(done.as_dict())
        return
    click.echo(
        f"{done.name} {done.version:06d} is current in {done.store}: {done.ads:,} ads of {done.items:,} items, "
        f"{done.links:,} links, as of {format_utc(done.as_of)}, "
        f"{format_bytes(done.bytes)} in {format_seconds(done.seconds)}"
    )
    for target in done.targeting:
        if target.everybody or target.nobody:
            click.echo(
                f"{target.column}: {target.everybody:,} ads match all requests (no value), "
                f"{target.nobody:,} match none (an empty list)",
                err=True,
            )
    if done.links_left_out:
        click.echo(f"{done.links_left_out:,} links were skipped: their ads are not in the table of ads", err=True)
    if done.overlay_entries_cut:
        words = "overlay entries were compacted: they have expired, or the table contains them"
        click.echo(f"{done.overlay_entries_cut:,} {words}", err=True)
