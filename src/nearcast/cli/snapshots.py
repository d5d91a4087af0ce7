"""`nearcast snapshots`: what has been made."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.cli.common import as_json, console, json_option, out_option
from nearcast.cli.render import snapshot_list
from nearcast.errors import NotFoundError
from nearcast.suggest import generators_in_words
from nearcast.table.snapshot import list_generators, list_snapshots

__all__ = ["snapshots"]

LISTED = ("generator", "version", "rows", "fingerprint", "measures", "promise")


@click.command()
@click.argument("generator", required=False)
@out_option
@json_option
def snapshots(generator: str | None, out: Path, as_json_: bool) -> None:
    """List the snapshots of GENERATOR, or of all generators, oldest first."""
    known = list_generators(out)
    names = known if generator is None else [generator]
    found = [snapshot for name in names for snapshot in list_snapshots(out, name)]
    if generator is not None and not found:
        have = generators_in_words(generator, known, "run one first, or say --out")
        raise NotFoundError(f"no snapshot of {generator!r} in {out}; {have}")
    if as_json_:
        rows = [{k: s.manifest[k] for k in LISTED} | {"folder": str(s.folder), "run": s.manifest["run"]} for s in found]
        as_json(rows)
    elif found:
        console().print(snapshot_list(found))
    else:
        console().print(f"no snapshots in {out}: run a generator first, or say --out")
