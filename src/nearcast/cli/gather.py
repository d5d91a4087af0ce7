"""`nearcast gather`: make the snapshot of a planned run whose tasks are done."""

from __future__ import annotations

import click

from nearcast.api.distributed import gather_run
from nearcast.cli.common import OutLocation, json_option, quiet_option
from nearcast.cli.run import print_made
from nearcast.storage.locations import Location

__all__ = ["gather"]


@click.command()
@click.argument("location", type=OutLocation())
@quiet_option
@json_option
def gather(location: Location, quiet: bool, as_json_: bool) -> None:
    """Make the snapshot of the run at LOCATION, whose tasks `nearcast work` has done, and remove their results.

    The snapshot is written to `out` of the spec, and is the one that `nearcast run` would write. Tasks that no
    worker has done are done here. Tables and indexes stay at LOCATION for `nearcast explain`. Exit code 4: finished,
    and recall is below the target.
    """
    print_made(lambda listener: gather_run(location, listener=listener).snapshot, quiet=quiet, as_json=as_json_)
