"""`nearcast show`: print the measures and costs of a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nearcast.api.evaluations import find_evaluation
from nearcast.api.updates import list_updates
from nearcast.cli.common import console, json_option, out_option, print_json
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.render import build_summary
from nearcast.errors import NotFoundError
from nearcast.storage.locations import Location
from nearcast.storage.open_storage import is_url
from nearcast.table.snapshot import Snapshot, find_snapshot, list_generators, open_snapshot, open_snapshot_url
from nearcast.times import format_utc

__all__ = ["find_named", "show"]


@click.command()
@click.argument("snapshot", type=GeneratorName(versions=True), required=False)
@out_option
@click.option("--verify", is_flag=True, help="First compare every byte of the snapshot with its manifest.")
@json_option
def show(snapshot: str | None, out: Location, verify: bool, as_json_: bool) -> None:
    """Show a SNAPSHOT: GENERATOR (the newest), GENERATOR/VERSION, a folder, or a URL."""
    found = find_named(out, snapshot)
    if verify:
        found.verify()
    judged = find_evaluation(found)
    if as_json_:
        updates = [asdict(entry) for entry in list_updates(found)]
        evaluation = None if judged is None else {**judged[1], "made": format_utc(judged[0])}
        print_json({"snapshot": found.url, **found.manifest.as_dict(), "updates": updates, "evaluation": evaluation})
    else:
        console().print(build_summary(found))
        if judged is not None:
            console().print(build_label_table(*judged))
        console().print(describe_updates(found))
        if verify:
            console().print("every byte matches the manifest")


def build_label_table(made: float, facts: Mapping[str, Any]) -> Group:
    """Build a table of the metrics by labels, with 95% intervals and promises. facts: an evaluation as plain data."""
    bounds = {check["metric"]: check for check in facts["promises"]}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("by labels", "value", "95% interval", ""):
        table.add_column(name, justify="right" if name == "value" else "left")
    for name, figure in facts["metrics"].items():
        check, promise = bounds.get(name), Text("")
        if check is not None:
            outcome = ("kept", "green") if check["kept"] else ("BROKEN", "bold red")
            promise = Text.assemble(f"promise of {check['bound']:g} ", outcome)
        table.add_row(name, f"{figure['value']:.4f}", f"{figure['low']:.4f} to {figure['high']:.4f}", promise)
    heading = f"labels {facts['labels']['path']}, {facts['queries']:,} queries, evaluated {format_utc(made)}"
    return Group("", Text(heading), table)


def describe_updates(snapshot: Snapshot) -> str:
    """Return a line about the updates that were made to a snapshot's version; nothing if there is none."""
    updates = list_updates(snapshot)
    if not updates:
        return ""
    newest = updates[-1]
    note = f" ({newest.note})" if newest.note else ""
    return (
        f"updated {len(updates)} times: the newest is patch {newest.number} of {format_utc(newest.made)}{note}; "
        f"nearcast published {snapshot.generator} lists the patches in force"
    )


def find_named(out: Location, name: str | None) -> Snapshot:
    """Find a snapshot by GENERATOR (the newest), GENERATOR/VERSION, a folder, or a URL.

    Without a name: the newest of the only generator. Raises NotFoundError.
    """
    if name is None:
        known = list_generators(out)
        if len(known) != 1:
            have = f"there are {', '.join(known)}" if known else f"{out} has none; run one, or give --out"
            raise NotFoundError(f"name a generator: {have}")
        return find_snapshot(out, known[0])
    if is_url(name):
        return open_snapshot_url(name)
    if (Path(name) / "manifest.json").is_file():
        return open_snapshot(Path(name))
    generator, _, version = name.partition("/")
    if version and not version.isdigit():
        raise NotFoundError(
            f"{name!r} is not a snapshot; write GENERATOR or GENERATOR/VERSION, for example {generator}/3"
        )
    return find_snapshot(out, generator, int(version) if version else None)
