"""The frontier as a picture: recall against the cost of the whole job, a line for each point that was tried."""

from __future__ import annotations

from pathlib import Path

from nearcast.figures import COLOURS, new_figure, save
from nearcast.tuning.optimize import EXACT
from nearcast.tuning.scaling import EXACT_POINT
from nearcast.tuning.tuning_result import PricedTrial, TuningResult

__all__ = ["draw_frontier"]


def draw_frontier(tuned: TuningResult, path: Path) -> None:
    """Draw what was tried into an SVG, PNG or PDF file, with the suggestion marked."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    names = sorted({_name(found) for found in tuned.found})
    colours = dict(zip(names, COLOURS * len(names), strict=False))
    told: set[str] = set()
    for found in tuned.found:
        name = _name(found)
        points = sorted((promise, cost.seconds) for promise, cost in found.costs.items())
        if points:
            chosen = found is tuned.suggestion
            axes.plot(
                [promise for promise, _ in points],
                [seconds for _, seconds in points],
                "o-",
                color=colours[name],
                linewidth=2.5 if chosen else 0.8,
                alpha=1.0 if chosen else 0.45,
                markersize=3,
                label=None if name in told else name,
            )
            told.add(name)
    best = tuned.suggestion.costs.get(tuned.promise)
    if best is not None:
        axes.plot([tuned.promise], [best.seconds], "*", color="black", markersize=14, label="suggested")
        words = f"{tuned.suggestion.trial.point.name}\n{best.seconds:,.1f} s"
        axes.annotate(
            words, (tuned.promise, best.seconds), (0, -30), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yscale("log")
    axes.set_xlabel("recall that is kept")
    axes.set_ylabel("seconds of the whole job, predicted")
    title = f"{tuned.generator}: {tuned.n_queries:,} queries, {tuned.n_items:,} items"
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)


def _name(found: PricedTrial) -> str:
    return EXACT if found.trial.point == EXACT_POINT else found.trial.point.engine
