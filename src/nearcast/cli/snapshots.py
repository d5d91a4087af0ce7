"""`nearcast snapshots`: list snapshots on disk."""

from __future__ import annotations

from typing import Any

import click

from nearcast.api.updates import list_updates
from nearcast.cli.common import console, json_option, out_option, print_json
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.render import build_snapshot_list
from nearcast.errors import NotFoundError
from nearcast.storage.locations import Location
from nearcast.suggest import describe_generators
from nearcast.table.snapshot import Snapshot, list_generators, list_snapshots
from nearcast.table.snapshot_pins import list_pins, pin_snapshot, unpin_snapshot

__all__ = ["snapshots"]

LISTED = ("generator", "version", "rows", "fingerprint", "measures", "promise")


@click.command()
@click.argument("generator", type=GeneratorName(), required=False)
@out_option
@click.option("--pin", type=int, metavar="VERSION", help="Keep this snapshot until it is unpinned, however old it is.")
@click.option("--unpin", type=int, metavar="VERSION", help="Let this snapshot be removed as an old one again.")
@json_option
def snapshots(generator: str | None, out: Location, pin: int | None, unpin: int | None, as_json_: bool) -> None:
    """List the snapshots of GENERATOR, or of all generators, oldest first."""
    if generator is None and (pin is not None or unpin is not None):
        raise click.UsageError("--pin and --unpin need the GENERATOR of the snapshot")
    if generator is not None and pin is not None:
        pin_snapshot(out, generator, pin)
    if generator is not None and unpin is not None:
        unpin_snapshot(out, generator, unpin)
    known = list_generators(out)
    names = known if generator is None else [generator]
    found = [snapshot for name in names for snapshot in list_snapshots(out, name)]
    if generator is not None and not found:
        have = describe_generators(generator, known, "run one first, or give --out")
        raise NotFoundError(f"no snapshot of {generator!r} in {out}; {have}")
    if as_json_:
        print_json([_build_row(snapshot) for snapshot in found])
    elif found:
        console().print(build_snapshot_list(found, [len(list_updates(snapshot)) for snapshot in found]))
        pins = [f"{name}/{version}" for name in names for version in sorted(list_pins(out, name))]
        if pins:
            console().print(f"pinned: {', '.join(pins)}", soft_wrap=True)
    else:
        console().print(f"no snapshots in {out}: run a generator first, or give --out")


def _build_row(snapshot: Snapshot) -> dict[str, Any]:
    """Return the row of a snapshot in the JSON list."""
    facts = snapshot.manifest.as_dict()
    return {key: facts[key] for key in LISTED} | {
        "folder": snapshot.url,
        "run": facts["run"],
        "updates": len(list_updates(snapshot)),
        "pinned": snapshot.version in list_pins(snapshot.out, snapshot.generator),
    }
