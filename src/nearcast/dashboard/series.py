"""The numbers of runs and passes as columns, a value per event: what lines are drawn from.

Values are rounded to what a line can show, but for counts; a year of a hundred generators is to fit in one file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nearcast.history.event_log import HistoryEvent
from nearcast.monitoring.serving_summary import list_newest_runs

__all__ = ["MEASURED", "pass_series", "rounded", "run_series"]

DIGITS = 3
FINE, FINE_DIGITS = ("recall", "fill", "query_coverage", "promise"), 4  # shares near 1, where 0.999 is not 1
MOST_STAGES = 6
LARGE = 100_000_000  # a count is told as it is; bytes are not
MEASURED = (
    *("recall", "recall_low", "recall_high", "recall_by_traffic"),
    *("overlap", "fill_rate", "query_coverage", "item_coverage", "exposure_gini", "exposure_top1", "repeats"),
    *("score_p50", "items_drift", "items_shift", "items_moved", "queries_drift", "queries_shift", "queries_moved"),
)
SERVED = ("recall", "recall_low", "recall_high", "dead", "misses", "fallbacks", "lookups", "removed")

Number = Callable[[Mapping[str, Any]], Any]


def rounded(value: Any, digits: int = FINE_DIGITS) -> Any:
    """A number with the digits that can be shown; None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if isinstance(value, int) and value < LARGE:
        return value
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short


def run_series(events: Sequence[HistoryEvent]) -> dict[str, list[Any]]:
    """Columns over the runs, oldest first: `at` (seconds since 1970), and each number that some run has."""
    runs = list_newest_runs(events)
    numbers: dict[str, Number] = {name: _measure(name) for name in MEASURED}
    for name in _depths(runs):
        numbers[name] = _measure(name)
    numbers |= {
        "promise": lambda facts: facts["promise"]["recall"],
        "seconds": lambda facts: facts["seconds_total"],
        "memory": lambda facts: facts["peak_memory_bytes"],
        "memory_estimate": lambda facts: (facts.get("estimate") or {}).get("memory_bytes"),
    }
    for side in ("items", "queries"):
        numbers[f"{side}_vectors"] = _of_side(side, "vectors")
        numbers[f"{side}_norm_p50"] = _of_side(side, "norms", "p50")
        numbers[f"{side}_zeros"] = _zeros(side)
    for stage in _longest_stages(runs):
        numbers[f"stage:{stage}"] = _stage(stage)
    head: dict[str, list[Any]] = {"at": [round(run.seconds) for run in runs]}
    return head | _columns([run.facts for run in runs], numbers)


def pass_series(events: Sequence[HistoryEvent]) -> dict[str, list[Any]]:
    """Columns over the passes of the monitor that saw served lists, oldest first."""
    passes = [event for event in events if event.kind == "monitor" and event.facts.get("served")]
    numbers: dict[str, Number] = {name: _served(name) for name in SERVED}
    numbers["age"] = _served("age_seconds")
    head: dict[str, list[Any]] = {"at": [round(event.seconds) for event in passes]}
    return head | _columns([event.facts for event in passes], numbers)


def _longest_stages(runs: Sequence[HistoryEvent]) -> list[str]:
    """The stages that took longest in the newest run: more lines than that cannot be told apart."""
    seconds = runs[-1].facts["seconds"] if runs else {}
    return sorted(seconds, key=lambda stage: -seconds[stage])[:MOST_STAGES]


def _columns(facts: Sequence[Mapping[str, Any]], numbers: Mapping[str, Number]) -> dict[str, list[Any]]:
    columns = {
        name: [rounded(number(row), FINE_DIGITS if name.startswith(FINE) else DIGITS) for row in facts]
        for name, number in numbers.items()
    }
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def _depths(runs: Sequence[HistoryEvent]) -> list[str]:
    """Measures that come at depths of the lists, such as fill_rate_at_10, where a run has them."""
    names = dict.fromkeys(name for run in runs[-1:] for name in run.facts["measures"])
    return [name for name in names if name.startswith(("fill_rate_at_", "fill_at_"))]


def _measure(name: str) -> Number:
    return lambda facts: facts["measures"].get(name)


def _served(name: str) -> Number:
    return lambda facts: facts["served"].get(name)


def _stage(name: str) -> Number:
    return lambda facts: facts["seconds"].get(name)


def _zeros(side: str) -> Number:
    """Vectors of zeros; a run that found none does not name them."""
    problems = _of_side(side, "problems")
    return lambda facts: None if problems(facts) is None else problems(facts).get("zero_vector", 0)


def _of_side(side: str, *path: str) -> Number:
    def number(facts: Mapping[str, Any]) -> Any:
        value: Any = facts["sides"].get(side)
        for name in path:
            value = None if value is None else value.get(name)
        return value

    return number
