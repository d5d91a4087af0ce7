"""`nearcast run`: make a snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from nearcast.api.runs import run as run_spec
from nearcast.cli.common import as_json, console, json_option
from nearcast.cli.progress import listening
from nearcast.cli.render import summary
from nearcast.errors import TargetError
from nearcast.table.snapshot import Snapshot

__all__ = ["run"]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--again", is_flag=True, help="Make a new snapshot although nothing has changed.")
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
@json_option
def run(spec: Path, again: bool, quiet: bool, as_json_: bool) -> None:
    """Check the inputs, join, write a snapshot, measure it, and say whether it is as promised.

    Run again after an interruption, it continues. Exit code 0 means: finished and as promised.
    """
    broken: TargetError | None = None
    with listening(quiet=quiet or as_json_) as listener:
        try:
            snapshot = run_spec(spec, listener=listener, again=again).snapshot
        except TargetError as error:
            broken = error
            snapshot = cast(Snapshot, error.snapshot)
    if as_json_:
        as_json({"snapshot": str(snapshot.folder), **snapshot.manifest.as_dict()})
    else:
        console().print(summary(snapshot, every_measure=False))
    if broken is not None:
        raise broken
