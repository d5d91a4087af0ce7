"""`nearcast gather`: make the snapshot of a planned run whose tasks are done."""

from __future__ import annotations

from typing import cast

import click

from nearcast.api.distributed import gather_run
from nearcast.cli.common import console, json_option, print_json, quiet_option
from nearcast.cli.progress import show_progress
from nearcast.cli.render import build_summary
from nearcast.errors import TargetError
from nearcast.table.snapshot import Snapshot

__all__ = ["gather"]


@click.command()
@click.argument("location")
@quiet_option
@json_option
def gather(location: str, quiet: bool, as_json_: bool) -> None:
    """Make the snapshot of the run at LOCATION, whose tasks `nearcast work` has done, and remove its work.

    The snapshot is written to `out` of the spec, and is the one that `nearcast run` would write. Exit code 4: finished,
    and recall is below the target. Exit code 15: tasks are missing; start the workers again.
    """
    below_target: TargetError | None = None
    with show_progress(quiet=quiet or as_json_) as listener:
        try:
            snapshot = gather_run(location, listener=listener).snapshot
        except TargetError as error:
            below_target = error
            snapshot = cast(Snapshot, error.snapshot)
    if as_json_:
        print_json({"snapshot": snapshot.url, **snapshot.manifest.as_dict()})
    else:
        console().print(build_summary(snapshot, every_measure=False))
    if below_target is not None:
        raise below_target
