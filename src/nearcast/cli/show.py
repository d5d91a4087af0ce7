"""`nearcast show`: one snapshot in figures."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.cli.common import as_json, console, json_option, out_option
from nearcast.cli.render import summary
from nearcast.cli.snapshot_names import find_named

__all__ = ["show"]


@click.command()
@click.argument("snapshot", required=False)
@out_option
@click.option("--verify", is_flag=True, help="Compare every byte of the snapshot with its manifest first.")
@json_option
def show(snapshot: str | None, out: Path, verify: bool, as_json_: bool) -> None:
    """Show a snapshot: GENERATOR (its newest), GENERATOR/VERSION, or a folder."""
    found = find_named(out, snapshot)
    if verify:
        found.verify()
    if as_json_:
        as_json({"snapshot": str(found.folder), **found.manifest.as_dict()})
    else:
        console().print(summary(found, every_measure=True))
        if verify:
            console().print("every byte is as it was written")
