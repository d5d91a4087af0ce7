"""`nearcast run`: make a snapshot."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import click
import numpy as np

from nearcast.api.retaining import measure_disk
from nearcast.api.runs import run as run_spec
from nearcast.cli.common import console, json_option, pass_options, print_json, quiet_option
from nearcast.cli.progress import show_progress
from nearcast.cli.render import build_run_summary
from nearcast.errors import TargetError
from nearcast.join.listener import Listener
from nearcast.spec import PublishSpec, load_spec
from nearcast.table.snapshot import Snapshot

__all__ = ["PlacementOptions", "print_made", "run"]

LONGEST_KEY = 40  # characters of a key in an example


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """Options that replace settings of [run]: where the tasks run, and how the items are cut."""

    runner: str | None
    workers: int | None
    shards: int | None


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--again", is_flag=True, help="Make a new snapshot even if nothing has changed.")
@click.option(
    "--runner", metavar="NAME", help="Runner of the tasks: local, processes, spark or ray. Default: the spec's."
)
@click.option("--workers", type=int, metavar="N", help="Workers of the runner. Default: the spec's.")
@click.option("--shards", type=int, metavar="N", help="Parts of the items, each with an index. Default: the spec's.")
@quiet_option
@json_option
@pass_options(PlacementOptions)
def run(spec: Path, options: PlacementOptions, again: bool, quiet: bool, as_json_: bool) -> None:
    """Check the inputs, join, write a snapshot, measure it, and check its recall target.

    After an interruption, the same command continues. Exit code 0: finished, and the target is met. Exit code 4:
    finished, and recall is below the target.
    """
    settings = load_spec(spec).publish
    print_made(
        lambda listener: run_spec(spec, listener=listener, again=again, **asdict(options)).snapshot,
        settings,
        quiet=quiet,
        as_json=as_json_,
    )


def print_made(
    make: Callable[[Listener], Snapshot], settings: PublishSpec | None = None, *, quiet: bool, as_json: bool
) -> None:
    """Make a snapshot and print it. Raises TargetError after the print if it is below its recall target.

    settings: of the spec, which may have changed since a snapshot that is used again; default: those of the snapshot.
    """
    below_target: TargetError | None = None
    with show_progress(quiet=quiet or as_json) as listener:
        try:
            snapshot = make(listener)
        except TargetError as error:
            below_target = error
            snapshot = cast(Snapshot, error.snapshot)
    if as_json:
        print_json({"snapshot": snapshot.url, **snapshot.manifest.as_dict()})
    else:
        console().print(build_run_summary(snapshot, measure_disk(snapshot, settings), _pick_key(snapshot)))
    if below_target is not None:
        raise below_target


def _pick_key(snapshot: Snapshot) -> str:
    """Return the key of the first list as it is written in a shell; KEY if it would be hard to type."""
    keys = snapshot.rows(np.zeros(1, np.int64), ["query_id"]).column(0).to_pylist() if snapshot.n_rows else []
    key = str(keys[0]) if keys else ""
    is_plain = key.isprintable() and len(key) <= LONGEST_KEY and (not key.startswith("-") or key[1:].isdecimal())
    return shlex.quote(key) if key and is_plain else "KEY"
