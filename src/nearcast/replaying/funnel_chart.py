"""Chart of a replay: candidates left after each stage, and hit rates, for each candidate source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.figures import COLOURS, new_figure, save, style_axes
from nearcast.replaying.outcome import Rate, SourceFigures

__all__ = ["draw_replay"]


def draw_replay(generator: str, requests: int, sources: Sequence[SourceFigures], path: Path) -> None:
    """Draw the figures of these sources into an SVG, PNG or PDF file."""
    figure = new_figure(9, 3.6, f"{generator}: {requests:,} requests replayed")
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    _draw_stages(left, sources)
    _draw_rates(right, sources)
    for axes in (left, right):
        style_axes(axes, grid="x", label_size=8)
    save(figure, path)


def _draw_stages(axes: Any, sources: Sequence[SourceFigures]) -> None:
    names = [name for name, _, _ in sources[0].stages]
    height = 0.8 / len(sources)
    for number, (source, colour) in enumerate(zip(sources, COLOURS, strict=False)):
        heights = np.arange(len(names)) + height * (number - (len(sources) - 1) / 2)
        values = [candidates for _, candidates, _ in source.stages]
        axes.barh(heights, values, height * 0.92, color=colour, label=source.name)
        for y, value in zip(heights, values, strict=True):
            axes.text(value, y, f" {value:.3g}", va="center", fontsize=7)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set_title("candidates left per request", loc="left", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _draw_rates(axes: Any, sources: Sequence[SourceFigures]) -> None:
    rows: list[tuple[str, Rate, str]] = []
    for source, colour in zip(sources, COLOURS, strict=False):
        for title, rate in (("hit rate", source.hit_rate), ("ad hit rate", source.ad_hit_rate)):
            if rate is not None:
                rows.append((f"{title}, {source.name}", rate, colour))
    rows.sort(key=lambda row: row[0].split(",")[0])
    for place, (_, rate, colour) in enumerate(rows):
        axes.plot([rate.low, rate.high], [place, place], color=colour, linewidth=2)
        axes.plot([rate.value], [place], "o", ms=5, color=colour)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.margins(y=0.3)
    axes.set_title("hit rate at T+1 (95% interval)" if rows else "the log has no engaged ids", loc="left", fontsize=9)
