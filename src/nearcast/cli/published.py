"""`nearcast published`: what the stores hold, and which of it is current."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.api.publications import published as look
from nearcast.cli.common import as_json, console, json_option, out_of, out_option, store_option
from nearcast.cli.render_publish import published_table

__all__ = ["published"]


@click.command()
@click.argument("generator", required=False)
@store_option
@out_option
@json_option
def published(generator: str | None, store: str | None, out: Path, as_json_: bool) -> None:
    """Show versions in the store, which is current, its age, the overlay's size, and the last moves."""
    found = look(generator, store=store, out=out if generator is None else out_of(generator, out))
    if as_json_:
        as_json([one.as_dict() for one in found])
    elif found:
        for one in found:
            console().print(published_table(one))
    else:
        console().print(f"nothing is published of what is in {store or out}")
