"""Chart of a generator's history: recall and its target, changes of lists and vectors, and the served version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nearcast.figures import COLOURS, new_figure, save, style_axes
from nearcast.history.event_log import HistoryEvent

__all__ = ["draw_history"]

LEGEND = "times are UTC · green: published · dotted orange: rolled back · orange: refused by the audit · ▼: an alert"

Number = Callable[[HistoryEvent], float | None]


def draw_history(events: Sequence[HistoryEvent], path: Path) -> None:
    """Draw these events of one generator, oldest first, into an SVG, PNG or PDF file. Times are UTC."""
    runs = [event for event in events if event.kind == "run"]
    passes = [event for event in events if event.kind == "monitor" and event.facts.get("served")]
    panels: list[tuple[str, Callable[[Any], None]]] = [
        ("recall", lambda axes: _draw_recall(axes, runs, passes)),
        ("lists", lambda axes: _draw_lines(axes, runs, LISTS)),
        ("change of vectors", lambda axes: _draw_lines(axes, runs, VECTORS)),
        ("served version", lambda axes: _draw_lines(axes, passes, SERVED)),
        ("seconds of a run", lambda axes: _draw_lines(axes, runs, {"all": lambda e: e.facts["seconds_total"]})),
    ]
    name = events[0].generator if events else "no runs"
    figure = new_figure(9, 2.1 * len(panels), f"{name}: {len(runs)} runs")
    every = figure.subplots(len(panels), 1, sharex=True)
    for axes, (title, draw) in zip(every, panels, strict=True):
        draw(axes)
        _draw_marks(axes, events)
        axes.set_title(title, loc="left", fontsize=9)
        style_axes(axes, grid="both", label_size=8)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        else:
            axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="0.5", fontsize=8)
    figure.supxlabel(LEGEND, fontsize=7, color="0.3")
    save(figure, path)


def _read_measure(name: str) -> Number:
    return lambda event: event.facts["measures"].get(name)


def _read_served(name: str) -> Number:
    return lambda event: event.facts["served"].get(name)


LISTS = {name: _read_measure(name) for name in ("overlap", "fill_rate", "query_coverage", "item_coverage")}
VECTORS = {name: _read_measure(name) for name in ("items_drift", "queries_drift", "items_shift", "queries_shift")}
SERVED = {
    "not among today's items": _read_served("dead"),
    "misses": _read_served("misses"),
    "fallbacks": _read_served("fallbacks"),
}


def _read_time(event: HistoryEvent) -> datetime:
    return datetime.fromtimestamp(event.seconds, UTC)


def _draw_recall(axes: Any, runs: Sequence[HistoryEvent], passes: Sequence[HistoryEvent]) -> None:
    if runs:
        times = [_read_time(event) for event in runs]
        low, high = ([event.facts["measures"][f"recall_{end}"] for event in runs] for end in ("low", "high"))
        axes.fill_between(times, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
        axes.plot(
            times, [e.facts["measures"]["recall"] for e in runs], "o-", ms=3, color=COLOURS[0], label="of the run"
        )
        targets = [event.facts["promise"]["recall"] for event in runs]
        axes.step(times, targets, "--", where="mid", color="0.3", linewidth=1, label="target")
    _draw_line(axes, passes, _read_served("recall"), COLOURS[1], "served, today")


def _draw_lines(axes: Any, events: Sequence[HistoryEvent], numbers: dict[str, Number]) -> None:
    for colour, (name, number) in zip(COLOURS, numbers.items(), strict=False):
        _draw_line(axes, events, number, colour, name)


def _draw_line(axes: Any, events: Sequence[HistoryEvent], number: Number, colour: str, label: str) -> None:
    points = [(_read_time(event), number(event)) for event in events]
    known = [(when, value) for when, value in points if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "o-", ms=3, color=colour, label=label.replace("_", " "))


def _draw_marks(axes: Any, events: Sequence[HistoryEvent]) -> None:
    """Draw publishes, rollbacks and refused publishes as lines, and passes with alerts as marks."""
    for event in events:
        failed = event.facts.get("outcome") == "audit_failed"
        if event.kind in ("publish", "rollback"):
            style = {"color": COLOURS[1] if failed or event.kind == "rollback" else COLOURS[2]}
            axes.axvline(_read_time(event), linewidth=0.8, linestyle=":" if not failed else "-", **style)
        elif event.kind == "monitor" and event.facts.get("alerts"):
            axes.plot(
                [_read_time(event)],
                [1.02],
                "v",
                ms=5,
                color=COLOURS[1],
                transform=axes.get_xaxis_transform(),
                clip_on=False,
            )
