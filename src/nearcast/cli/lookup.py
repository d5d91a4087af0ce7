"""`nearcast lookup`: the candidates of one key, with names that people know."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.api import lookup as look_up
from nearcast.cli.render import candidate_list
from nearcast.cli.shared import as_json, console, json_option, out_option

__all__ = ["lookup"]


@click.command()
@click.argument("generator")
@click.argument("key")
@out_option
@click.option("--snapshot", "version", type=int, help="Version; the newest by default.")
@click.option("--columns", help="Item columns to show, comma-separated; the spec's `display` by default.")
@click.option("-k", "--first", type=click.IntRange(min=1), help="Show only the first K candidates.")
@json_option
def lookup(
    generator: str, key: str, out: Path, version: int | None, columns: str | None, first: int | None, as_json_: bool
) -> None:
    """Show the candidates of KEY: ids, scores, and display columns of the items."""
    wanted = tuple(name.strip() for name in columns.split(",")) if columns else None
    found = look_up(generator, key, out=out, version=version, columns=wanted)
    found = found.first(first) if first else found
    if as_json_:
        as_json(found.as_dict())
    else:
        console().print(candidate_list(found, tuple(found.columns)))
