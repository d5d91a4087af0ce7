"""`nearcast export`: append the lists of a snapshot to a table."""

from __future__ import annotations

import click

from nearcast.api.snapshots import export as append
from nearcast.cli.common import console, json_option, out_option, print_json
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.show import find_named
from nearcast.storage.locations import Location

__all__ = ["export"]


@click.command()
@click.argument("snapshot", type=GeneratorName(versions=True))
@click.option(
    "--to",
    required=True,
    metavar="TABLE",
    help="delta:PATH, iceberg:CATALOG.NAMESPACE.TABLE or parquet:FOLDER. A missing table is created.",
)
@click.option(
    "--rows",
    type=click.Choice(["query", "candidate"]),
    default="query",
    show_default=True,
    help="One row per query with lists, or one row per candidate.",
)
@out_option
@json_option
def export(snapshot: str, to: str, rows: str, out: Location, as_json_: bool) -> None:
    """Append the lists of SNAPSHOT to a table, with the generator, the version and the time of the snapshot.

    SNAPSHOT is GENERATOR (the newest), GENERATOR/VERSION, a folder, or a URL. The rows appear all at once, and once: a
    snapshot that is in the table is not appended again.
    """
    found = find_named(out, snapshot)
    is_new = append(found, to, rows=rows)
    if as_json_:
        print_json({"snapshot": found.url, "to": to, "rows": rows, "lists": found.n_rows, "appended": is_new})
        return
    done = f"appended {found.n_rows:,} lists to" if is_new else "its lists are already in"
    console().print(f"{found.generator} {found.name}: {done} {to}")
