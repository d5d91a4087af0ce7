"""The frontier as a picture: recall against the cost of the whole job, one line per configuration."""

from __future__ import annotations

from pathlib import Path

from nearcast.figures import COLOURS, new_figure, save, style_axes
from nearcast.tuning.optimize import EXACT
from nearcast.tuning.scaling import EXACT_POINT
from nearcast.tuning.tuning_result import PricedTrial, TuningResult

__all__ = ["draw_frontier"]


def draw_frontier(tuned: TuningResult, path: Path) -> None:
    """Draw the trials into an SVG, PNG or PDF file, and mark the suggestion."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    names = sorted({_engine_label(priced) for priced in tuned.trials})
    colours = dict(zip(names, COLOURS * len(names), strict=False))
    labelled: set[str] = set()
    for priced in tuned.trials:
        name = _engine_label(priced)
        points = sorted((target, cost.seconds) for target, cost in priced.costs.items())
        if points:
            chosen = priced is tuned.suggestion
            axes.plot(
                [target for target, _ in points],
                [seconds for _, seconds in points],
                "o-",
                color=colours[name],
                linewidth=2.5 if chosen else 0.8,
                alpha=1.0 if chosen else 0.45,
                markersize=3,
                label=None if name in labelled else name,
            )
            labelled.add(name)
    best = tuned.suggestion.costs.get(tuned.target)
    if best is not None:
        axes.plot([tuned.target], [best.seconds], "*", color="black", markersize=14, label="suggested")
        words = f"{tuned.suggestion.trial.point.name}\n{best.seconds:,.1f} s"
        axes.annotate(
            words, (tuned.target, best.seconds), (0, -30), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yscale("log")
    axes.set_xlabel("recall target")
    axes.set_ylabel("predicted seconds of the whole job")
    title = f"{tuned.generator}: {tuned.n_queries:,} queries, {tuned.n_items:,} items"
    axes.set_title(title, loc="left", fontsize=10)
    style_axes(axes, grid="both", ticks="both")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)


def _engine_label(priced: PricedTrial) -> str:
    return EXACT if priced.trial.point == EXACT_POINT else priced.trial.point.engine
