"""Pictures of the head: coverage against keys. Draws what it is given and computes nothing."""

from __future__ import annotations

from pathlib import Path

from nearcast.advise.head import Head
from nearcast.figures import COLOURS, new_figure, save

__all__ = ["draw_head"]


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
