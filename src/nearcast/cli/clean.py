"""`nearcast clean`: remove what a generator no longer needs, or list it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import click

from nearcast.api.cleaning import Unneeded, clean_plan, find_clean_target
from nearcast.api.cleaning import clean as remove_unneeded
from nearcast.cli.common import (
    OutLocation,
    console,
    explicit_out,
    format_bytes,
    json_option,
    out_option,
    print_json,
)
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.progress import show_progress
from nearcast.errors import SpecError
from nearcast.join.abandoned_work import WAIT_SECONDS
from nearcast.storage.locations import Location

__all__ = ["clean"]


@click.command()
@click.argument("generator", type=GeneratorName(specs=True), metavar="GENERATOR|SPEC", required=False)
@out_option
@click.option("--dry-run", is_flag=True, help="List what would be removed, and remove nothing.")
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Newest snapshots that stay. Default: `publish.keep_snapshots` of the spec.",
)
@click.option(
    "--work", type=OutLocation(), metavar="LOCATION", help="Remove the plan at LOCATION, and what workers left there."
)
@click.option(
    "--wait",
    type=click.FloatRange(0.0),
    default=WAIT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Time in which a running worker would give a sign of life.",
)
@json_option
def clean(
    generator: str | None,
    out: Location,
    dry_run: bool,
    keep: int | None,
    work: Location | None,
    wait: float,
    as_json_: bool,
) -> None:
    """Remove what GENERATOR no longer needs: work of killed runs, and old snapshots.

    A snapshot is old if it is not among the newest `publish.keep_snapshots`, and is not served, a target of a rollback,
    a canary, pinned (nearcast snapshots --pin) or read at this moment. Every run removes old snapshots, too. Work is
    removed if nothing in it changes for two minutes: whoever works on a run, on any machine, gives a sign of life four
    times in that time. Tables and indexes that later runs use again stay.
    """
    if (generator is None) == (work is None):
        raise SpecError("name a generator, or give --work with the location of a plan")
    if work is not None:
        found = clean_plan(work, wait_seconds=wait, dry_run=dry_run)
    else:
        assert generator is not None
        target = find_clean_target(generator, explicit_out(generator, out))
        if keep is not None:
            target = replace(target, publish=target.publish.model_copy(update={"keep_snapshots": keep}))
        with show_progress(quiet=as_json_) as listener:
            found = remove_unneeded(target, dry_run=dry_run, wait_seconds=wait, listener=listener)
    if as_json_:
        freed = sum(each.bytes for each in found)
        rows = [asdict(each) for each in found]
        print_json(
            {"dry_run": dry_run, "removed": [each.location for each in found], "found": rows, "freed_bytes": freed}
        )
        return
    _print_found(found, dry_run)


def _print_found(found: Sequence[Unneeded], dry_run: bool) -> None:
    if not found:
        console().print("nothing to remove: there is no unfinished work, or somebody works on it; no snapshot is old")
        return
    for each in found:
        word = "would remove" if dry_run else "removed"
        console().print(f"{word} {each.location} ({each.kind}, {format_bytes(each.bytes)})", soft_wrap=True)
    freed = format_bytes(sum(each.bytes for each in found))
    console().print(f"{freed} would be freed; nothing was removed" if dry_run else f"{freed} freed")
