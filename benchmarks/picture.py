"""A picture of the comparison: whole-job time as bars, split into build and queries, one panel per recall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

INK, MUTED, RULE = "#1f2430", "#6b7280", "#e5e7eb"
OURS, OURS_BUILD = "#0f766e", "#5eb5a8"
PEER, PEER_BUILD = "#7c879b", "#c3cad6"
BAR_INCHES, PANEL_INCHES = 0.34, 0.75


def draw(result: dict[str, Any], out: Path, ours: str) -> None:
    """Write the SVG; ImportError where matplotlib is missing."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
            "font.size": 10,
            "text.color": INK,
            "svg.fonttype": "none",
            "svg.hashsalt": "nearcast",
        }
    )
    asked = sorted({row["asked"] for row in result["rows"]}, reverse=False)
    panels = [
        sorted((r for r in result["rows"] if r["asked"] == recall and "seconds" in r), key=lambda r: r["seconds"])
        for recall in asked
    ]
    heights = [PANEL_INCHES + BAR_INCHES * len(rows) for rows in panels]
    total = sum(heights) + 1.35
    figure = plt.figure(figsize=(9.2, total), facecolor="white")
    longest = max(row["seconds"] for rows in panels for row in rows)
    top = total - 0.95
    for recall, rows, height in zip(asked, panels, heights, strict=True):
        bars = BAR_INCHES * len(rows)
        axes = figure.add_axes((0.225, (top - PANEL_INCHES / 2 - bars) / total, 0.60, bars / total))
        _panel(axes, rows, recall, ours, longest)
        top -= height
    facts = result["data"]
    figure.text(0.02, 1 - 0.32 / total, "kNN join: whole job, in seconds", fontsize=15, fontweight="bold", va="center")
    figure.text(
        0.02,
        1 - 0.62 / total,
        f"{facts['items']:,} items × {facts['queries']:,} queries, {facts['dim']} dims, k = {facts['k']}; "
        f"{result['machine']['processor']}, {result['threads']} threads, {result['isa']['taken']}",
        color=MUTED,
        va="center",
    )
    _key(figure, total)
    figure.savefig(out, facecolor="white", metadata={"Date": None})
    plt.close(figure)


def _panel(axes: Any, rows: list[dict[str, Any]], recall: float, ours: str, longest: float) -> None:
    us = next((row["seconds"] for row in rows if row["engine"] == ours), None)
    for place, row in enumerate(rows):
        mine = row["engine"] == ours
        build, queries = row["build_seconds"], row["query_seconds"]
        axes.barh(place, build, height=0.68, color=OURS_BUILD if mine else PEER_BUILD)
        axes.barh(place, queries, left=build, height=0.68, color=OURS if mine else PEER)
        ratio = "" if mine or us is None else f"   {row['seconds'] / us:.1f}×"
        weight = "bold" if mine else "normal"
        axes.text(row["seconds"] + longest * 0.012, place, f"{row['seconds']:.1f} s", va="center", fontweight=weight)
        axes.text(longest * 1.31, place, f"{row['recall']:.3f}", va="center", ha="right", color=MUTED)
        axes.text(row["seconds"] + longest * 0.09, place, ratio, va="center", color=MUTED)
    title = "exact" if recall == 1 else f"recall@50 ≥ {recall:g}"
    axes.text(-longest * 0.365, -0.95, title, fontsize=11.5, fontweight="bold", va="center")
    axes.text(longest * 1.31, -0.95, "recall reached", va="center", ha="right", color=MUTED, fontsize=9)
    axes.set_yticks(range(len(rows)), [row["engine"] for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row["engine"] == ours else "normal")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, longest * 1.02)
    axes.tick_params(left=False, bottom=False, labelbottom=False, pad=6)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(RULE)


def _key(figure: Any, total: float) -> None:
    from matplotlib.patches import Rectangle

    at = 0.225
    for text, colors in (("build", (OURS_BUILD, PEER_BUILD)), ("queries", (OURS, PEER))):
        for color in colors:
            figure.add_artist(
                Rectangle((at, 0.20 / total), 0.013, 0.12 / total, color=color, transform=figure.transFigure)
            )
            at += 0.015
        figure.text(at + 0.005, 0.26 / total, text, va="center", color=MUTED)
        at += 0.085
    figure.text(at, 0.26 / total, "× = times ours; right: recall on all queries", va="center", color=MUTED)
