"""`nearcast rollback`: an older version goes live again."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.api.publications import roll_back
from nearcast.cli.common import as_json, console, json_option, out_of, out_option, store_option
from nearcast.cli.progress import listening
from nearcast.cli.render_publish import outcome

__all__ = ["rollback"]


@click.command()
@click.argument("generator")
@click.option("--to", type=click.IntRange(min=1), help="A version that the store has, older or newer.")
@store_option
@out_option
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
@json_option
def rollback(generator: str, to: int | None, store: str | None, out: Path, quiet: bool, as_json_: bool) -> None:
    """Make the version before the current one current again; each call goes one further back.

    The version that is left counts as withdrawn: it is not published again unless it is named. Every byte of the
    other one is looked at first.
    """
    with listening(quiet=quiet or as_json_) as listener:
        done = roll_back(generator, to=to, store=store, out=out_of(generator, out), listener=listener)
    if as_json_:
        as_json(done.as_dict())
    else:
        console().print(outcome(done))
