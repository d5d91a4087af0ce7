"""A replay as a picture: how much of a request is left after each stage, and what came of it, way beside way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.figures import COLOURS, new_figure, save
from nearcast.replaying.outcome import Rate, SourceFigures

__all__ = ["draw_replay"]


def draw_replay(generator: str, requests: int, ways: Sequence[SourceFigures], path: Path) -> None:
    """Draw the figures of these ways into an SVG, PNG or PDF file."""
    figure = new_figure(9, 3.6)
    figure.suptitle(f"{generator}: {requests:,} requests replayed", x=0.01, ha="left", fontweight="bold")
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    _stages(left, ways)
    _rates(right, ways)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, axis="x")
        axes.tick_params(labelsize=8)
    save(figure, path)


def _stages(axes: Any, ways: Sequence[SourceFigures]) -> None:
    names = [name for name, _, _ in ways[0].stages]
    height = 0.8 / len(ways)
    for number, (way, colour) in enumerate(zip(ways, COLOURS, strict=False)):
        places = np.arange(len(names)) + height * (number - (len(ways) - 1) / 2)
        values = [candidates for _, candidates, _ in way.stages]
        axes.barh(places, values, height * 0.92, color=colour, label=way.name)
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, f" {value:.3g}", va="center", fontsize=7)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set_title("candidates that a request has left", loc="left", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _rates(axes: Any, ways: Sequence[SourceFigures]) -> None:
    rows: list[tuple[str, Rate, str]] = []
    for way, colour in zip(ways, COLOURS, strict=False):
        for title, rate in (("hit rate", way.hit_rate), ("ad hit rate", way.ad_hit_rate)):
            if rate is not None:
                rows.append((f"{title}, {way.name}", rate, colour))
    rows.sort(key=lambda row: row[0].split(",")[0])
    for place, (_, rate, colour) in enumerate(rows):
        axes.plot([rate.low, rate.high], [place, place], color=colour, linewidth=2)
        axes.plot([rate.value], [place], "o", ms=5, color=colour)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.margins(y=0.3)
    axes.set_title(
        "engaged with at T+1 (95% interval)" if rows else "the log says of nothing engaged", loc="left", fontsize=9
    )
