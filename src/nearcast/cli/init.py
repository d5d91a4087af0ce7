"""`nearcast init`: draft a spec from the files of items and queries."""

from __future__ import annotations

from pathlib import Path

import click

from nearcast.api.drafts import draft_spec
from nearcast.cli.common import console
from nearcast.errors import SpecError

__all__ = ["init"]


@click.command()
@click.argument("items")
@click.argument("queries", required=False)
@click.option("--name", help="Name of the generator. Default: that of the spec's file, else of the items' file.")
@click.option(
    "--spec",
    "spec_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File to write. Default: NAME.toml in the working folder.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--print", "only_print", is_flag=True, help="Print the spec and write nothing.")
def init(
    items: str, queries: str | None, name: str | None, spec_file: Path | None, force: bool, only_print: bool
) -> None:
    """Look at ITEMS and QUERIES, and write a commented spec for them.

    ITEMS and QUERIES are Parquet files, folders, globs, URLs, or tables such as delta:PATH. Guesses the columns of ids
    and vectors, the metric from the lengths of the vectors, and the columns to display. Each guess is written with its
    reason: check them. Without QUERIES, the items are the queries.
    """
    draft = draft_spec(items, queries, name=name, spec=spec_file)
    if only_print:
        click.echo(draft.text, nl=False)
        return
    if draft.path.exists() and not force:
        raise SpecError(f"{draft.path} exists; give --force to replace it, or --spec with another file")
    draft.path.write_text(draft.text, encoding="utf-8")
    console().print(draft.text, highlight=False, markup=False, soft_wrap=True)
    console().print(f"{draft.path} is written: check each guess, then\n", highlight=False, soft_wrap=True)
    for command, does in (
        (f"nearcast check {draft.path}", "checks the inputs and estimates the cost"),
        (f"nearcast refresh {draft.path}", "runs, audits and publishes"),
        ("nearcast serve", "answers over HTTP, with a page at http://127.0.0.1:8080"),
    ):
        console().print(f"  {command:<36} {does}", highlight=False, markup=False, soft_wrap=True)
