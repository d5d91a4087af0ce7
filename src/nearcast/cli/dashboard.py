"""`nearcast dashboard`: every generator at a glance, in one file."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.cli.common import LocalPath, as_json, json_option, out_option, size
from nearcast.dashboard.write_page import write_page
from nearcast.publishing.targets import resolve_store_url
from nearcast.spec import PublishSpec

__all__ = ["dashboard"]


@click.command()
@click.argument("generators", nargs=-1)
@out_option
@click.option("--store", metavar="URL", help="Store whose overlay says what is taken out of lists; lmdb:OUT/store.")
@click.option(
    "--file",
    "path",
    type=LocalPath(dir_okay=False),
    metavar="FILE",
    help="Where to write it; OUT/dashboard.html.",
)
@click.option("--no-lists", is_flag=True, help="Leave out the lists of sampled queries: only figures, a smaller file.")
@click.option(
    "--pictures",
    multiple=True,
    metavar="ORIGIN",
    help="Show pictures of items from there, such as https://img.example.com; may be given several times.",
)
@json_option
def dashboard(
    generators: tuple[str, ...],
    out: Path,
    store: str | None,
    path: Path | None,
    no_lists: bool,
    pictures: tuple[str, ...],
    as_json_: bool,
) -> None:
    """Write one HTML file that shows every generator of OUT, or GENERATORS: which is in trouble, and since when.

    It opens from disk, needs no network, and can be mailed. With lists, it holds keys and items of yours.
    """
    url = resolve_store_url(PublishSpec(), out, store)
    written = write_page(
        out,
        path,
        generators=generators,
        store=url if store is not None or (out / "store").exists() else None,
        lists=not no_lists,
        pictures=pictures,
    )
    count = written.stat().st_size
    if as_json_:
        as_json({"file": str(written), "bytes": count})
    else:
        click.echo(f"wrote {written} ({size(count)})")
