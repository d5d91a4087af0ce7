"""`nearcast diff`: what changed between two snapshots, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from nearcast.api.comparing import diff as compare
from nearcast.cli.common import as_json, console, json_option, out_option

if TYPE_CHECKING:
    from nearcast.join.diff import Change, Diff

__all__ = ["diff"]

WORDS = {
    "came": {
        "item": "the item is new",
        "crowded": "there was no place for it: others were nearer",
        "capped": "better items of its group filled a cap before",
        "ranked": "the ranking model puts it higher than it did",
        "exposed": "it was in as many lists as it may be",
        "missed": "the join did not find it before, at its effort",
        "rescored": "it scores more than it did: its vector, the query's or a score term changed",
        "unclear": "it scores more than it did, or the join did not find it before",
    },
    "went": {
        "item": "the item is gone",
        "crowded": "there is no place for it: others are nearer",
        "capped": "better items of its group fill a cap",
        "ranked": "the ranking model puts it lower than it did",
        "exposed": "it is in as many lists as it may be",
        "missed": "the join does not find it, at its effort",
        "rescored": "it scores less than it did: its vector, the query's or a score term changed",
        "unclear": "it scores less than it did, or the join does not find it",
    },
}


@click.command()
@click.argument("generator")
@click.argument("before", type=int, required=False)
@click.argument("after", type=int, required=False)
@out_option
@click.option("--sample", type=click.IntRange(min=1), default=2000, show_default=True, help="Queries to compare.")
@json_option
def diff(generator: str, before: int | None, after: int | None, out: Path, sample: int, as_json_: bool) -> None:
    """Say what changed from snapshot BEFORE to AFTER, the newest two by default, and why.

    Candidates that came and went on evenly spread queries, counted by cause: items that are new or gone, rules that let
    them in or bar them, others that are nearer, vectors that moved.
    """
    found = compare(generator, before, after, out=out, sample=sample)
    if as_json_:
        as_json(found.as_dict())
        return
    show = console()
    show.print(f"{found.generator} {found.before} -> {found.after}: {found.queries:,} queries compared")
    if found.queries_came:
        show.print(f"  {found.queries_came:,} more are new")
    show.print(f"  {found.kept:.2%} of the candidates are kept; {found.unchanged:.2%} of the lists hold the same")
    for words in found.settings:
        show.print(f"  {words}")
    if found.came or found.went:
        show.print(_table(found))


def _table(found: Diff) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "candidates", "share", "why", "such as"):
        table.add_column(name, justify="right" if name in ("candidates", "share") else "left", overflow="fold")
    for kind, changes in (("came", found.came), ("went", found.went)):
        for change in changes:
            table.add_row(kind, f"{change.candidates:,}", f"{change.share:.1%}", _why(kind, change), _examples(change))
    return table


def _why(kind: str, change: Change) -> str:
    if change.cause.startswith("rule "):
        name = change.cause.removeprefix("rule ")
        return f"rule {name} barred it before" if kind == "came" else f"rule {name} bars it now"
    return WORDS[kind][change.cause]


def _examples(change: Change) -> str:
    query, item = change.examples[0]
    return f"{item} for {query}"
