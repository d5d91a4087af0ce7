"""Pictures: coverage against keys, and what a day costs each way. Draws what it is given and computes nothing."""

from __future__ import annotations

from pathlib import Path

from nearcast.advising.costs import PER_KEY, Advice
from nearcast.advising.head_keys import Head
from nearcast.figures import COLOURS, new_figure, save

__all__ = ["draw_advice", "draw_head"]


def draw_head(head: Head, path: Path) -> None:
    """Draw the curve into an SVG, PNG or PDF file: of the log, and of days that the keys were not chosen on."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    keys = [point.keys for point in head.curve]
    axes.plot(keys, [point.coverage for point in head.curve], color=COLOURS[0], linewidth=2, label="of the log")
    after = [(point.keys, point.tomorrow) for point in head.curve if point.tomorrow is not None]
    if after:
        days = f"of a day to come ({len(head.held_out)} held out)"
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
    axes.set_xlabel("keys, the most asked first")
    axes.set_ylabel("share of the traffic")
    axes.set_title(
        f"{head.requests:,.0f} requests for {head.n_keys:,} keys; Zipf exponent {head.zipf.exponent:.2f}",
        loc="left",
        fontsize=10,
    )
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    save(figure, path)


def draw_advice(advice: Advice, path: Path) -> None:
    """Draw a day of each way, stacked by what it is spent on, and the cheapest way's cost against online by traffic."""
    figure = new_figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    spent = list(dict.fromkeys(name for cost in advice.costs for name in cost.cpu_seconds))
    bottom = [0.0] * len(advice.costs)
    for number, name in enumerate(spent):
        hours = [cost.cpu_seconds.get(name, 0.0) / 3600 for cost in advice.costs]
        ways = [cost.way for cost in advice.costs]
        left.bar(ways, hours, bottom=bottom, color=COLOURS[number % len(COLOURS)], label=name, width=0.6)
        bottom = [below + own for below, own in zip(bottom, hours, strict=True)]
    left.set_ylabel("core-hours a day")
    left.set_title(f"recommended: {advice.recommended}", loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    for number, turn in enumerate(advice.turns):
        right.plot(
            PER_KEY,
            turn.of_online,
            "o-",
            color=COLOURS[number % len(COLOURS)],
            label=f"{turn.exponent:g}",
            markersize=4,
        )
    right.axhline(1, color="black", linewidth=0.8, linestyle=":")
    right.set_xscale("log")
    right.set_ylim(0, 1.1)
    right.set_xlabel("requests per key and day")
    right.set_ylabel("cheapest way, as a share of online")
    right.legend(frameon=False, fontsize=8, title="Zipf exponent", title_fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
