"""Charts of advice: coverage by number of keys, and the cost of a day with each variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nearcast.advising.cost_advice import PER_KEY, Advice
from nearcast.advising.head_keys import Head
from nearcast.figures import COLOURS, new_figure, save, style_axes

__all__ = ["draw_advice", "draw_head"]


def draw_head(head: Head, path: Path) -> None:
    """Draw the coverage of the log and of held-out days into an SVG, PNG or PDF file."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    keys = [point.keys for point in head.curve]
    axes.plot(keys, [point.coverage for point in head.curve], color=COLOURS[0], linewidth=2, label="of the log")
    after = [(point.keys, point.tomorrow) for point in head.curve if point.tomorrow is not None]
    if after:
        days = f"of later days ({len(head.held_out)} held out)"
        axes.plot([n for n, _ in after], [share for _, share in after], color=COLOURS[1], linewidth=2, label=days)
    chosen = head.chosen
    reached = chosen.tomorrow if head.by_tomorrow and chosen.tomorrow is not None else chosen.coverage
    axes.plot([chosen.keys], [reached], "o", color="black", markersize=7)
    axes.annotate(
        f"{chosen.keys:,} keys: {reached:.1%}",
        (chosen.keys, reached),
        (-8, 8),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("keys, the most requested first")
    axes.set_ylabel("share of the traffic")
    axes.set_title(
        f"{head.requests:,.0f} requests for {head.n_keys:,} keys; Zipf exponent {head.zipf.exponent:.2f}",
        loc="left",
        fontsize=10,
    )
    style_axes(axes, grid="both", ticks="both")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    save(figure, path)


def draw_advice(advice: Advice, path: Path) -> None:
    """Draw the cost of a day with each variant by task, and the cheapest variant relative to online by traffic."""
    figure = new_figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    _draw_costs(left, advice)
    _draw_break_even(right, advice)
    for axes in (left, right):
        style_axes(axes)
    save(figure, path)


def _draw_costs(axes: Any, advice: Advice) -> None:
    tasks = list(dict.fromkeys(name for cost in advice.costs for name in cost.cpu_seconds))
    bottom = [0.0] * len(advice.costs)
    for number, name in enumerate(tasks):
        hours = [cost.cpu_seconds.get(name, 0.0) / 3600 for cost in advice.costs]
        variants = [cost.way for cost in advice.costs]
        axes.bar(variants, hours, bottom=bottom, color=COLOURS[number % len(COLOURS)], label=name, width=0.6)
        bottom = [below + own for below, own in zip(bottom, hours, strict=True)]
    axes.set_ylabel("core-hours a day")
    axes.set_title(f"recommended: {advice.recommended}", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _draw_break_even(axes: Any, advice: Advice) -> None:
    for number, turn in enumerate(advice.turns):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(PER_KEY, turn.of_online, "o-", color=colour, label=f"{turn.exponent:g}", markersize=4)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1)
    axes.set_xlabel("requests per key and day")
    axes.set_ylabel("cheapest variant, relative to online")
    axes.legend(frameon=False, fontsize=8, title="Zipf exponent", title_fontsize=8)
