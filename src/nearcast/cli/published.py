"""`nearcast published`: list the versions in a store, and which one is current."""

from __future__ import annotations

import click

from nearcast.api.publications import published as list_published
from nearcast.cli.common import console, explicit_out, json_option, out_option, print_json, store_option
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.render_publish import build_published_table
from nearcast.storage.locations import Location

__all__ = ["published"]


@click.command()
@click.argument("generator", type=GeneratorName(), required=False)
@store_option
@out_option
@json_option
def published(generator: str | None, store: str | None, out: Location, as_json_: bool) -> None:
    """Show the versions in the store, the current one and its age, the size of the overlay, and the last moves."""
    found = list_published(generator, store=store, out=out if generator is None else explicit_out(generator, out))
    if as_json_:
        print_json([one.as_dict() for one in found])
    elif found:
        for one in found:
            console().print(build_published_table(one))
    else:
        console().print(f"no generator of {store or out} is published")
