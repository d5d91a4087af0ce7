"""Figures by labels for the page: metrics over time, and the newest evaluation with its slices and rivals.

An evaluation is recorded by a run whose spec has labels, and by `nearcast evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nearcast.dashboard.series import round_number
from nearcast.history.event_log import HistoryEvent

__all__ = ["build_label_figures"]

SHOWN_METRICS = 4  # lines of a chart
SHOWN_SLICES = 40


def build_label_figures(events: Sequence[HistoryEvent]) -> dict[str, Any] | None:
    """Return the series and the newest evaluation; None without one."""
    found = [(event, event.facts if event.kind == "evaluate" else event.facts.get("labels")) for event in events]
    judged = [(event, facts) for event, facts in found if event.kind in ("evaluate", "run") and facts]
    if not judged:
        return None
    judged.sort(key=lambda pair: pair[0].seconds)
    newest, facts = judged[-1]
    names = list(dict.fromkeys((*(check["metric"] for check in facts["promises"]), *facts["metrics"])))[:SHOWN_METRICS]
    series: dict[str, list[Any]] = {"at": [round(event.seconds) for event, _ in judged]}
    for name in names:
        for part in ("value", "low", "high"):
            values = [(row["metrics"].get(name) or {}).get(part) for _, row in judged]
            series[name if part == "value" else f"{name}_{part}"] = [round_number(value) for value in values]
    first = names[0]
    bounds = [next((c["bound"] for c in row["promises"] if c["metric"] == first), None) for _, row in judged]
    return {
        "metrics": names,
        "series": series | {"promise": bounds},
        "version": newest.version,
        "path": facts["labels"]["path"],
        "rows": facts["labels"]["rows"],
        "queries": facts["queries"],
        "without_list": facts["without_list"],
        "promises": facts["promises"],
        "newest": [{"name": name, **_round_figure(figure)} for name, figure in facts["metrics"].items()],
        "rivals": [
            {"name": f"{name}, {rival['name']}", **_round_figure(rival["leads"][name])}
            for rival in facts["rivals"]
            for name in names
            if name in rival["leads"]
        ],
        "slices": [
            {"by": row["by"], "value": row["value"], "queries": row["queries"], **_round_figure(row["metrics"][first])}
            for row in facts["slices"][:SHOWN_SLICES]
        ],
    }


def _round_figure(figure: Mapping[str, float]) -> dict[str, Any]:
    return {
        "low": round_number(figure["low"]),
        "mid": round_number(figure["value"]),
        "high": round_number(figure["high"]),
    }
