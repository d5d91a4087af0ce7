"""`nearcast diff`: compare two snapshots and explain the changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from nearcast.api.comparing import diff as compare
from nearcast.cli.common import InputPath, console, json_option, out_option, pass_options, plain_table, print_json
from nearcast.cli.complete_names import GeneratorName, complete_versions
from nearcast.join.cause_decider import ChangeCause
from nearcast.storage.locations import Location

if TYPE_CHECKING:
    from nearcast.join.diff import Change, Diff

__all__ = ["DiffSettings", "build_figure_table", "diff"]

LABELS = {"came": "added", "went": "removed"}
WORDS = {
    "came": {
        "item": "the item is new",
        "crowded": "k items had better scores before",
        "capped": "better items of its group filled a cap before",
        "ranked": "the ranking model ranks it higher than before",
        "exposed": "it was in the maximum number of lists before",
        "missed": "the join did not find it before, with its search parameters",
        "rescored": "its score is higher: its vector, the query's vector or a score term changed",
        "unclear": "its score is higher, or the join did not find it before",
    },
    "went": {
        "item": "the item no longer exists",
        "crowded": "k items have better scores",
        "capped": "better items of its group fill a cap",
        "ranked": "the ranking model ranks it lower than before",
        "exposed": "it is in the maximum number of lists",
        "missed": "the join does not find it, with its search parameters",
        "rescored": "its score is lower: its vector, the query's vector or a score term changed",
        "unclear": "its score is lower, or the join does not find it",
    },
}


@dataclass(frozen=True, slots=True)
class DiffSettings:
    """Options of `nearcast diff`."""

    out: Location
    sample: int
    seed: int
    labels: Path | str | None
    query: str
    item: str
    grade: str | None


@click.command()
@click.argument("generator", type=GeneratorName())
@click.argument("before", type=int, required=False, shell_complete=complete_versions)
@click.argument("after", type=int, required=False, shell_complete=complete_versions)
@out_option
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Maximum number of queries to compare.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")
@click.option(
    "--labels",
    type=InputPath(),
    metavar="PATH",
    help="Labels, as for `nearcast evaluate`: adds the change of the hit rate.",
)
@click.option("--query", metavar="COLUMN", default="query", show_default=True, help="Column of the queries.")
@click.option("--item", metavar="COLUMN", default="item", show_default=True, help="Column of the items.")
@click.option("--grade", metavar="COLUMN", help="Column of grades. Default: every row is relevant.")
@json_option
@pass_options(DiffSettings)
def diff(generator: str, before: int | None, after: int | None, options: DiffSettings, as_json_: bool) -> None:
    """Compare snapshots BEFORE and AFTER (default: the newest two), and explain the changes.

    Counts added and removed candidates of sampled queries by cause: new or deleted items, rules that filter them,
    items with better scores, changed vectors. Then tells how much of the change of recall, overlap, fill rate and hit
    rate each cause made; the causes of a figure add up to its change.
    """
    found = compare(
        generator,
        before,
        after,
        out=options.out,
        sample=options.sample,
        seed=options.seed,
        labels=options.labels,
        label_columns=(options.query, options.item),
        grade=options.grade,
    )
    if as_json_:
        print_json(found.as_dict())
        return
    show = console()
    show.print(
        f"{found.generator} {found.before} -> {found.after}: {found.queries:,} queries compared (seed {found.seed})"
    )
    if found.queries_came:
        show.print(f"  {found.queries_came:,} other queries are new")
    if found.queries:
        show.print(
            f"  {found.kept:.2%} of the candidates are the same; {found.unchanged:.2%} of the lists are unchanged"
        )
    for words in found.settings:
        show.print(f"  {words}")
    if found.came or found.went:
        show.print(_build_table(found))
    show.print("")
    show.print(build_figure_table([asdict(figure) for figure in found.figures]))
    for words in found.limits:
        show.print(f"  {words}")


def build_figure_table(figures: Sequence[Mapping[str, Any]]) -> Table:
    """Format the changes of figures by cause, in percentage points: a row per cause, which add up to the change."""
    table = plain_table("why the figures moved", right=[str(figure["figure"]) for figure in figures])
    table.add_row("before", *(f"{figure['before']:.2%}" for figure in figures))
    causes = [str(cause) for cause in ChangeCause if any(str(cause) in figure["causes"] for figure in figures)]
    for cause in causes:
        table.add_row(f"  {cause}", *(_format_points(figure["causes"].get(cause)) for figure in figures))
    table.add_row("after", *(f"{figure['after']:.2%}" for figure in figures))
    return table


def _format_points(change: float | None) -> str:
    return "" if change is None else f"{100 * change:+.2f}"


def _build_table(found: Diff) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "candidates", "share", "cause", "example"):
        table.add_column(name, justify="right" if name in ("candidates", "share") else "left", overflow="fold")
    for kind, changes in (("came", found.came), ("went", found.went)):
        for change in changes:
            table.add_row(
                LABELS[kind],
                f"{change.candidates:,}",
                f"{change.share:.1%}",
                _describe_cause(kind, change),
                _format_example(change),
            )
    return table


def _describe_cause(kind: str, change: Change) -> str:
    if change.cause.startswith("rule "):
        name = change.cause.removeprefix("rule ")
        return f"rule {name} filtered it before" if kind == "came" else f"rule {name} filters it now"
    return WORDS[kind][change.cause]


def _format_example(change: Change) -> str:
    query, item = change.examples[0]
    return f"{item} for {query}"
