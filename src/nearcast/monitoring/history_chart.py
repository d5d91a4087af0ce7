"""The history of a generator as a picture: what was promised and reached, what changed, and what was served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nearcast.figures import COLOURS, new_figure, save
from nearcast.history.event_log import HistoryEvent

__all__ = ["draw_history"]

LEGEND = "times are UTC · green: published · dotted orange: rolled back · orange: stopped by its audit · ▼: an alert"

Number = Callable[[HistoryEvent], float | None]


def draw_history(events: Sequence[HistoryEvent], path: Path) -> None:
    """Draw these events of one generator, oldest first, into an SVG, PNG or PDF file. Times are UTC."""
    runs = [event for event in events if event.kind == "run"]
    passes = [event for event in events if event.kind == "monitor" and event.facts.get("served")]
    panels: list[tuple[str, Callable[[Any], None]]] = [
        ("recall", lambda axes: _recall(axes, runs, passes)),
        ("lists", lambda axes: _lines(axes, runs, LISTS)),
        ("vectors, then and now", lambda axes: _lines(axes, runs, VECTORS)),
        ("served: gone, missed", lambda axes: _lines(axes, passes, SERVED)),
        ("seconds of a run", lambda axes: _lines(axes, runs, {"all": lambda e: e.facts["seconds_total"]})),
    ]
    figure = new_figure(9, 2.1 * len(panels))
    name = events[0].generator if events else "no runs"
    figure.suptitle(f"{name}: {len(runs)} runs", x=0.01, ha="left", fontweight="bold")
    every = figure.subplots(len(panels), 1, sharex=True)
    for axes, (title, draw) in zip(every, panels, strict=True):
        draw(axes)
        _mark(axes, events)
        axes.set_title(title, loc="left", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        else:
            axes.text(0.5, 0.5, "nothing yet", transform=axes.transAxes, ha="center", color="0.5", fontsize=8)
    figure.supxlabel(LEGEND, fontsize=7, color="0.3")
    save(figure, path)


def _measure(name: str) -> Number:
    return lambda event: event.facts["measures"].get(name)


def _served(name: str) -> Number:
    return lambda event: event.facts["served"].get(name)


LISTS = {name: _measure(name) for name in ("overlap", "fill_rate", "query_coverage", "item_coverage")}
VECTORS = {name: _measure(name) for name in ("items_drift", "queries_drift", "items_shift", "queries_shift")}
SERVED = {"gone": _served("dead"), "missed": _served("misses"), "fallbacks": _served("fallbacks")}


def _when(event: HistoryEvent) -> datetime:
    return datetime.fromtimestamp(event.seconds, UTC)


def _recall(axes: Any, runs: Sequence[HistoryEvent], passes: Sequence[HistoryEvent]) -> None:
    if runs:
        times = [_when(event) for event in runs]
        low, high = ([event.facts["measures"][f"recall_{end}"] for event in runs] for end in ("low", "high"))
        axes.fill_between(times, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
        axes.plot(
            times, [e.facts["measures"]["recall"] for e in runs], "o-", ms=3, color=COLOURS[0], label="of the run"
        )
        promised = [event.facts["promise"]["recall"] for event in runs]
        axes.step(times, promised, "--", where="mid", color="0.3", linewidth=1, label="promised")
    _line(axes, passes, _served("recall"), COLOURS[1], "of what is served, today")


def _lines(axes: Any, events: Sequence[HistoryEvent], numbers: dict[str, Number]) -> None:
    for colour, (name, number) in zip(COLOURS, numbers.items(), strict=False):
        _line(axes, events, number, colour, name)


def _line(axes: Any, events: Sequence[HistoryEvent], number: Number, colour: str, label: str) -> None:
    points = [(_when(event), number(event)) for event in events]
    known = [(when, value) for when, value in points if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "o-", ms=3, color=colour, label=label.replace("_", " "))


def _mark(axes: Any, events: Sequence[HistoryEvent]) -> None:
    """Publishes, rollbacks, failed audits and passes with alerts as lines: what happened then is in the history."""
    for event in events:
        failed = event.facts.get("outcome") == "audit_failed"
        if event.kind in ("publish", "rollback"):
            style = {"color": COLOURS[1] if failed or event.kind == "rollback" else COLOURS[2]}
            axes.axvline(_when(event), linewidth=0.8, linestyle=":" if not failed else "-", **style)
        elif event.kind == "monitor" and event.facts.get("alerts"):
            axes.plot(
                [_when(event)], [1.02], "v", ms=5, color=COLOURS[1], transform=axes.get_xaxis_transform(), clip_on=False
            )
