"""Format the cost table of a planned run for people. Computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nearcast.cli.common import format_bytes, format_seconds

if TYPE_CHECKING:
    from nearcast.join.cost_table import CostTable

__all__ = ["build_cost_table", "format_core_hours"]

MONEY_WORDS = {
    "compute": "core-hours",
    "storage_month": "a month of tables, indexes and snapshot",
    "work_storage": "results of tasks during the run",
    "requests": "requests",
}


def build_cost_table(costs: CostTable) -> RenderableType:
    """Build a table with a row per stage, and lines with the totals."""
    table = Table(title="stages", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("stage", "tasks", "core-hours", "memory of a worker", "read", "written", "requests"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in costs.stages:
        table.add_row(
            stage.stage,
            f"{stage.tasks:,}",
            format_core_hours(stage.core_seconds / 3600),
            format_bytes(stage.memory_bytes),
            format_bytes(stage.read_bytes),
            format_bytes(stage.written_bytes),
            f"{stage.requests:,}",
        )
    return Group(table, Text(""), Text("\n".join(f"{name:<18}{value}" for name, value in _list_totals(costs))))


def _list_totals(costs: CostTable) -> list[tuple[str, str]]:
    sizes = costs.sizes
    shards = "1 shard" if sizes.shards == 1 else f"{sizes.shards:,} shards"
    workers = f"{sizes.workers:,} {'worker' if sizes.workers == 1 else 'workers'} of {sizes.cores:,} cores"
    totals = [
        ("items", f"{sizes.n_items:,} of {sizes.dim} dimensions in {shards}"),
        ("queries", f"{sizes.n_queries:,}, {sizes.k:,} candidates each, recall {sizes.recall:g}"),
        ("core-hours", format_core_hours(costs.core_hours)),
        ("time", f"{format_seconds(costs.wall_seconds)} with {workers}, transfers apart"),
        ("memory", f"{format_bytes(costs.memory_bytes)} of a worker"),
        ("storage", f"{format_bytes(costs.kept_bytes)}, and {format_bytes(costs.work_bytes)} during the run"),
        ("requests", f"{costs.requests:,}"),
    ]
    money = costs.money()
    if money:
        totals.append(("cost", f"{sum(money.values()):,.2f}"))
        totals += [("", f"{amount:,.2f} {MONEY_WORDS[kind]}") for kind, amount in money.items()]
    return totals


def format_core_hours(hours: float) -> str:
    """Format core-hours, for example 1,230 or 0.0042."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
