"""`nearcast evaluate`: measure lists by human labels or engagement."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from nearcast.api.evaluations import evaluate as evaluate_lists
from nearcast.cli.common import (
    InputPath,
    console,
    explicit_out,
    format_cell,
    json_option,
    out_option,
    pass_options,
    plain_table,
    print_json,
    quiet_option,
    store_option,
)
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.progress import show_progress
from nearcast.errors import TargetError
from nearcast.evaluation.evaluation_report import Evaluation, LabelFigure
from nearcast.storage.locations import Location

__all__ = ["EvaluateOptions", "evaluate"]

SHOWN_SLICES = 15


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """Options of `nearcast evaluate` that replace settings of [labels]."""

    query: str | None
    item: str | None
    grade: str | None
    relevant: float | None
    depths: tuple[int, ...]
    slices: tuple[str, ...]
    popularity: Path | str | None
    popular_by: str | None
    store: str | None
    seed: int


@click.command()
@click.argument("generator", type=GeneratorName(specs=True), metavar="GENERATOR|SPEC")
@click.argument("labels", type=InputPath(), required=False)
@click.option("--snapshot", "version", type=click.IntRange(min=1), help="Version to evaluate. Default: the newest.")
@click.option(
    "--against",
    metavar="VERSION",
    multiple=True,
    help="Compare with this snapshot, or with `served`. Repeatable. Default: served, if it is another version.",
)
@click.option("--query", metavar="COLUMN", help="Column of the queries. Default: query.")
@click.option("--item", metavar="COLUMN", help="Column of the items. Default: item.")
@click.option("--grade", metavar="COLUMN", help="Column of grades. Default: every row is relevant.")
@click.option("--relevant", type=click.FloatRange(min=0), help="Grade that an item is relevant from. Default: above 0.")
@click.option(
    "--at", "depths", type=click.IntRange(1, 99_999), multiple=True, help="Depth. Repeatable. Default: 10 and k."
)
@click.option(
    "--by", "slices", metavar="COLUMN", multiple=True, help="Slice by a column of labels or queries. Repeatable."
)
@click.option("--skip-unknown", is_flag=True, help="Leave out labelled queries that have no list.")
@click.option(
    "--popularity", type=InputPath(), help="Log from before the labels: its most frequent items are a baseline."
)
@click.option("--popular-by", metavar="COLUMN", help="Item attribute whose highest values are a baseline.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the intervals.")
@store_option
@out_option
@json_option
@quiet_option
@pass_options(EvaluateOptions)
def evaluate(
    generator: str,
    labels: Path | str | None,
    version: int | None,
    against: tuple[str, ...],
    options: EvaluateOptions,
    skip_unknown: bool,
    out: Location,
    as_json_: bool,
    quiet: bool,
) -> None:
    """Measure the lists of GENERATOR by LABELS: hit rate, recall, precision, MRR and nDCG, with 95% intervals.

    LABELS is Parquet, CSV or TSV with one row per relevant item of a query: a human judgement, a click, a purchase.
    With a spec (.toml), [labels] has the defaults, and [promise] is checked: exit code 4 is a broken promise.
    """
    settings = {name: value for name, value in asdict(options).items() if value not in (None, ())}
    with show_progress(quiet=quiet or as_json_) as listener:
        found = evaluate_lists(
            generator,
            labels,
            version=version,
            against=against or None,
            unknown="skip" if skip_unknown else None,
            out=explicit_out(generator, out),
            listener=listener,
            **settings,
        )
    if as_json_:
        print_json(found.as_dict())
    else:
        _print_report(found)
    if found.broken:
        raise TargetError("; ".join(check.describe() for check in found.broken))


def _print_report(found: Evaluation) -> None:
    show = console()
    for line in _describe_labels(found):
        show.print(line)
    show.print(_build_metric_table(found))
    if found.slices:
        show.print(_build_slice_table(found))
        if len(found.slices) > SHOWN_SLICES:
            show.print(f"{len(found.slices) - SHOWN_SLICES} more slices: --json", style="dim")
    for check in found.promises:
        word = Text("kept", style="green") if check.kept else Text("BROKEN", style="bold red")
        show.print(Text.assemble(f"promise: {check.describe()}: ", word))


def _describe_labels(found: Evaluation) -> list[str]:
    labels, name = found.labels, f"{found.version:06d}"
    lines = [
        f"{found.generator} {name} by {labels['path']}: {found.queries:,} queries with relevant items, of "
        f"{labels['rows']:,} rows"
    ]
    if found.without_list:
        skipped = labels["queries"] != found.queries
        share = found.without_list / labels["queries"]
        outcome = "left out" if skipped else "counted as misses"
        lines.append(f"  labelled queries without a list in {name}: {found.without_list:,} ({share:.1%}), {outcome}")
    if found.unknown_items:
        lines.append(f"  relevant items that are not in {name}, so that no list can hold them: {found.unknown_items:,}")
    if labels["queries_without_relevant"]:
        lines.append(f"  queries without a relevant item, left out: {labels['queries_without_relevant']:,}")
    if labels["without_id"]:
        lines.append(f"  rows without a query or an item, left out: {labels['without_id']:,}")
    return [*lines, *(f"  note: {text}" for text in found.notes)]


def _build_metric_table(found: Evaluation) -> Table:
    table = plain_table()
    table.add_column("metric", no_wrap=True)
    table.add_column(f"{found.version:06d} (95% interval)", justify="right", no_wrap=len(found.rivals) < 3)
    for rival in found.rivals:
        table.add_column(f"over {rival.name}", justify="right", no_wrap=len(found.rivals) < 3)
    for name, figure in found.metrics.items():
        table.add_row(name, _format_figure(figure), *(_format_lead(rival.leads[name]) for rival in found.rivals))
    return table


def _build_slice_table(found: Evaluation) -> Table:
    metric = next(iter(found.metrics))
    table = plain_table()
    for name, side in (("slice", "left"), ("value", "left"), ("queries", "right"), (metric, "right")):
        table.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
    if found.rivals:
        table.add_column(f"over {found.rivals[0].name}", justify="right", no_wrap=True)
    for part in found.slices[:SHOWN_SLICES]:
        lead = [] if part.leads is None else [_format_lead(part.leads[metric])]
        value = format_cell(part.value)
        table.add_row(format_cell(part.by), value, f"{part.queries:,}", _format_figure(part.metrics[metric]), *lead)
    return table


def _format_figure(figure: LabelFigure) -> str:
    return f"{figure.value:.4f} ({figure.low:.4f} to {figure.high:.4f})"


def _format_lead(lead: LabelFigure) -> Text:
    """Format a difference; green or red where the interval leaves out zero."""
    style = "green" if lead.low > 0 else "red" if lead.high < 0 else ""
    return Text(f"{lead.value:+.4f} ({lead.low:+.4f} to {lead.high:+.4f})", style=style)
