"""`nearcast advise`: compare the cost of serving a generator offline, online, or as a mix of both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nearcast.advising.cost_advice import PER_KEY, Advice
from nearcast.advising.cost_charts import draw_advice
from nearcast.advising.recommend import Numbers, Recommendation
from nearcast.api.advice import advise as ask
from nearcast.cli.common import (
    InputPath,
    LocalPath,
    console,
    format_bytes,
    format_seconds,
    json_option,
    pass_options,
    print_json,
    quiet_option,
)
from nearcast.cli.progress import show_progress
from nearcast.types import Metric

__all__ = ["AdviseOptions", "advise"]

WHOLE = ("keys", "items", "dim", "k")


def _add_number_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of Numbers, with its description."""
    for name, field in reversed(Numbers.model_fields.items()):
        option = "--" + name.replace("_", "-")
        kind: Any = int if name in WHOLE else click.Choice([str(m) for m in Metric]) if name == "metric" else float
        default = "" if field.default is None else f" [default: {field.default:g}]"
        command = click.option(option, name, type=kind, help=f"{field.description}{default}")(command)
    return command


@dataclass(frozen=True, slots=True)
class AdviseOptions:
    """Options of `nearcast advise`, without the numbers."""

    log: Path | str | None
    key: str
    time: str | None
    count: str | None
    online_engine: str
    rates: Path | None


@click.command()
@click.argument("spec", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("--log", type=InputPath(), help="Log of requests (Parquet), as for `nearcast head`.")
@click.option("--key", default="key", show_default=True, help="Column of the keys.")
@click.option("--time", metavar="COLUMN", help="Column of the times.")
@click.option("--count", metavar="COLUMN", help="Column of the number of requests of a row.")
@_add_number_options
@click.option(
    "--online-engine",
    default="faiss-hnsw",
    show_default=True,
    help="Engine of the online index: faiss-hnsw or faiss-ivf.",
)
@click.option(
    "--rates",
    type=LocalPath(dir_okay=False),
    metavar="FILE",
    help="File of the measured rates of a machine: read if it exists, else written.",
)
@click.option("--picture", type=LocalPath(dir_okay=False), metavar="FILE", help="Draw a .svg, .png or .pdf file.")
@quiet_option
@json_option
@pass_options(AdviseOptions)
def advise(
    spec: Path | None, options: AdviseOptions, picture: Path | None, quiet: bool, as_json_: bool, **numbers: Any
) -> None:
    """Compare the cost of offline, online and mixed serving, with the break-even points and a recommendation.

    Uses a SPEC (its data are sampled), a log of requests, or numbers alone (with random vectors). The speed of this
    machine is measured once, by small runs, and saved in <out>/GENERATOR/advice.
    """
    with show_progress(quiet=quiet or as_json_) as listener:
        found = ask(
            spec,
            numbers={name: value for name, value in numbers.items() if value is not None},
            log=options.log,
            key=options.key,
            time=options.time,
            count=options.count,
            rates=options.rates,
            online_engine=options.online_engine,
            listener=listener,
        )
    if picture is not None:
        draw_advice(found.advice, picture)
    if as_json_:
        print_json(found.as_dict())
    else:
        console().print(_build_report(found))


def _build_report(found: Recommendation) -> Group:
    case, advice = found.case, found.advice
    head = (
        f"{case.keys:,} keys, {case.items:,} items, {case.requests_per_day:,.0f} requests a day "
        f"(Zipf exponent {found.skew:.2f}), a refresh every {case.refresh_hours:g} hours"
    )
    parts: list[RenderableType] = [
        Text(head),
        "",
        _build_cost_table(advice),
        "",
        _build_rate_table(found),
        "",
        _build_turn_table(advice),
    ]
    parts += ["", Text(f"recommended: {advice.recommended}", style="bold green"), Text(advice.reason)]
    parts += [Text(f"note: {text}", style="yellow") for text in advice.warnings]
    return Group(*parts)


def _build_cost_table(advice: Advice) -> Table:
    spent = list(dict.fromkeys(name for cost in advice.costs for name in cost.cpu_seconds))
    priced = advice.costs[0].money is not None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in (
        "per day",
        "lists",
        *spent,
        "total, one core",
        *(["cost"] if priced else []),
        "size",
        "answered",
        "stale",
    ):
        table.add_column(name, justify="left" if name == "per day" else "right")
    for cost in advice.costs:
        parts = [format_seconds(cost.cpu_seconds[name]) if name in cost.cpu_seconds else "" for name in spent]
        money = [f"{cost.money:,.4g}"] if cost.money is not None else []
        ends = (format_bytes(1e9 * cost.gigabytes), f"{cost.coverage:.1%}", f"{cost.stale:.1%}")
        table.add_row(
            cost.way,
            f"{cost.keys:,}",
            *parts,
            format_seconds(cost.total_cpu_seconds),
            *money,
            *ends,
            style="bold" if cost.way == advice.recommended else None,
        )
    return table


def _build_rate_table(found: Recommendation) -> Table:
    rates, case, engine = found.rates, found.case, found.advice.online_engine
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    online = rates.online[engine]
    reached = "exact search" if online.recall is None else f"recall {online.recall:.3f}"
    rows = {
        "a run, one core": format_seconds(rates.run_seconds(case.keys, case.items)),
        "a publish": format_seconds(rates.publish_seconds(case.keys, case.items)),
        "a look-up": f"{rates.lookup_seconds * 1e6:,.1f} µs",
        f"building {engine}": format_seconds(rates.index_seconds(engine, case.items)),
        "a search": f"{rates.search_seconds(engine, case.items) * 1e6:,.1f} µs at {reached}",
        "lists for all keys are cheaper from": f"{found.advice.offline_pays_from:,.2f} requests per key and day",
        "in a mix, one list is cheaper from": f"{found.advice.list_pays_from:,.2f} requests a day of its key",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _build_turn_table(advice: Advice) -> Table:
    """Build a table by traffic skew: break-even of the mix, then the cheapest variant by traffic."""
    table = Table(
        title="cheapest variant by skew and requests per key and day (share of the cost of online)",
        title_justify="left",
    )
    table.box, table.pad_edge = None, False
    table.add_column("Zipf exponent", justify="right")
    table.add_column("mix is cheaper from", justify="right")
    for per_key in PER_KEY:
        table.add_column(f"{per_key:g}", justify="right")
    for turn in advice.turns:
        pays = "never" if math.isinf(turn.mix_pays_from) else f"{turn.mix_pays_from:,.3g}"
        cells = [f"{way} {share:.1%}" for way, share in zip(turn.cheapest, turn.of_online, strict=True)]
        table.add_row(f"{turn.exponent:g}", pays, *cells)
    return table
