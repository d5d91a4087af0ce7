"""`nearcast dashboard`: write a dashboard of all generators as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.cli.common import LocalPath, format_bytes, json_option, out_option, print_json
from nearcast.cli.complete_names import GeneratorName
from nearcast.dashboard.document import FILE, write_page
from nearcast.publishing.targets import resolve_store_url
from nearcast.spec import PublishSpec
from nearcast.storage.locations import Location
from nearcast.table.snapshot import open_home

__all__ = ["dashboard"]


@click.command()
@click.argument("generators", type=GeneratorName(), nargs=-1)
@out_option
@click.option("--store", metavar="URL", help="Store whose overlay is shown. Default: lmdb:OUT/store.")
@click.option(
    "--file",
    "path",
    type=LocalPath(dir_okay=False),
    metavar="FILE",
    help="File to write. Default: OUT/dashboard.html.",
)
@click.option("--no-lists", is_flag=True, help="Leave out the candidate lists of sampled queries; the file is smaller.")
@click.option(
    "--pictures",
    multiple=True,
    metavar="ORIGIN",
    help="Origin whose pictures of items are shown, for example https://img.example.com. Repeatable.",
)
@json_option
def dashboard(
    generators: tuple[str, ...],
    out: Location,
    store: str | None,
    path: Path | None,
    no_lists: bool,
    pictures: tuple[str, ...],
    as_json_: bool,
) -> None:
    """Write one HTML file about GENERATORS, or all generators of OUT: their state, alerts and history.

    The file needs no network and no server. With candidate lists, it contains keys and items of your data.
    """
    local = None if isinstance(out, str) else resolve_store_url(PublishSpec(), out)
    if local is not None and not (Path(out) / "store").exists():
        local = None
    written = write_page(
        out,
        path,
        generators=generators,
        store=local if store is None else resolve_store_url(PublishSpec(), out, store),
        lists=not no_lists,
        pictures=pictures,
    )
    count = written.stat().st_size if isinstance(written, Path) else open_home(out).describe_file(FILE)[1]
    if as_json_:
        print_json({"file": str(written), "bytes": count})
    else:
        click.echo(f"wrote {written} ({format_bytes(count)})")
