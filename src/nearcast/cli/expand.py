"""`nearcast expand`: make a table of what is promoted for items current."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.api.publications import expand as make_current
from nearcast.cli.shared import as_json, json_option, size, store_option, stretch

__all__ = ["expand"]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@store_option
@json_option
def expand(spec: Path, store: str | None, as_json_: bool) -> None:
    """Make the ads and links of SPEC the current expansion table: what is promoted for which items.

    Written whole beside the one that is current, read back, and swapped in one step: as often as you like.
    """
    done = make_current(spec, store=store)
    if as_json_:
        as_json(done.as_dict())
        return
    click.echo(
        f"{done.name} {done.version:06d} is current in {done.store}: {done.ads:,} ads of {done.items:,} items, "
        f"{done.links:,} links, {size(done.bytes)} in {stretch(done.seconds)}"
    )
    if done.links_left_out:
        click.echo(f"{done.links_left_out:,} links were left out: their ads are not among the ads", err=True)
    if done.overlay_entries_cut:
        words = "overlay entries were cut: they are over, or the table knows them itself"
        click.echo(f"{done.overlay_entries_cut:,} {words}", err=True)
