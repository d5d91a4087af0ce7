"""`nearcast clean`: remove unfinished work that nobody works on."""

from __future__ import annotations

import click

from nearcast.api.cleaning import clean_generator, clean_plan
from nearcast.cli.common import OutLocation, console, json_option, out_option, print_json
from nearcast.errors import SpecError
from nearcast.join.abandoned_work import WAIT_SECONDS
from nearcast.storage.locations import Location

__all__ = ["clean"]


@click.command()
@click.argument("generator", required=False)
@out_option
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
def clean(generator: str | None, out: Location, work: Location | None, wait: float, as_json_: bool) -> None:
    """Remove the unfinished work of GENERATOR, of runs that were killed and are not wanted any more.

    Work is removed if nothing in it changes for two minutes: whoever works on a run, on any machine, gives a sign of
    life four times in that time. Snapshots are kept, and tables and indexes that later runs use again.
    """
    if (generator is None) == (work is None):
        raise SpecError("name a generator, or give --work with the location of a plan")
    if work is not None:
        removed = clean_plan(work, wait_seconds=wait)
    else:
        assert generator is not None
        removed = clean_generator(out, generator, wait_seconds=wait)
    if as_json_:
        print_json({"removed": removed})
        return
    for location in removed:
        console().print(f"removed {location}", soft_wrap=True)
    if not removed:
        console().print("there is no unfinished work, or somebody works on it")
