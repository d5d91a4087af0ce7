"""Series for the charts: figures of runs and monitor passes as columns, with a value per event.

Values except counts are rounded to the resolution of a chart, so that a year of 100 generators fits in one file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nearcast.history.event_log import HistoryEvent
from nearcast.monitoring.serving_summary import list_newest_runs

__all__ = ["MEASURED", "build_overview", "build_pass_series", "build_run_series", "round_number"]

DIGITS = 3
FINE, FINE_DIGITS = ("recall", "fill", "query_coverage", "promise"), 4  # shares near 1, where 0.999 is not 1
MOST_STAGES = 6
LARGE = 100_000_000  # integers below this are counts, and are not rounded
MEASURED = (
    *("recall", "recall_low", "recall_high", "recall_by_traffic"),
    *("overlap", "fill_rate", "query_coverage", "item_coverage", "exposure_gini", "exposure_top1", "repeats"),
    *("score_p50", "items_drift", "items_shift", "items_moved", "queries_drift", "queries_shift", "queries_moved"),
)
SERVED = ("recall", "recall_low", "recall_high", "dead", "misses", "fallbacks", "lookups", "removed")

Number = Callable[[Mapping[str, Any]], Any]


def round_number(value: Any, digits: int = FINE_DIGITS) -> Any:
    """Round a number to significant digits; None for anything but a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if isinstance(value, int) and value < LARGE:
        return value
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short


def build_run_series(events: Sequence[HistoryEvent]) -> dict[str, list[Any]]:
    """Return columns over the runs, oldest first: `at` (seconds since 1970), and each figure that a run has."""
    runs = list_newest_runs(events)
    numbers: dict[str, Number] = {name: _read_measure(name) for name in MEASURED}
    for name in _list_depth_measures(runs):
        numbers[name] = _read_measure(name)
    numbers |= {
        "promise": lambda facts: facts["promise"]["recall"],
        "seconds": lambda facts: facts["seconds_total"],
        "memory": lambda facts: facts["peak_memory_bytes"],
        "memory_estimate": lambda facts: (facts.get("estimate") or {}).get("memory_bytes"),
    }
    for table in ("items", "queries"):
        numbers[f"{table}_vectors"] = _read_table_fact(table, "vectors")
        numbers[f"{table}_norm_p50"] = _read_table_fact(table, "norms", "p50")
        numbers[f"{table}_zeros"] = _read_zeros(table)
    for stage in _list_longest_stages(runs):
        numbers[f"stage:{stage}"] = _read_stage(stage)
    head: dict[str, list[Any]] = {"at": [round(run.seconds) for run in runs]}
    return head | _build_columns([run.facts for run in runs], numbers)


def build_pass_series(events: Sequence[HistoryEvent]) -> dict[str, list[Any]]:
    """Return columns over the monitor passes that checked the served version, oldest first."""
    passes = [event for event in events if event.kind == "monitor" and event.facts.get("served")]
    numbers: dict[str, Number] = {name: _read_served(name) for name in SERVED}
    numbers["age"] = _read_served("age_seconds")
    head: dict[str, list[Any]] = {"at": [round(event.seconds) for event in passes]}
    return head | _build_columns([event.facts for event in passes], numbers)


def _list_longest_stages(runs: Sequence[HistoryEvent]) -> list[str]:
    """Return the longest stages of the newest run, as many as a chart can show."""
    seconds = runs[-1].facts["seconds"] if runs else {}
    return sorted(seconds, key=lambda stage: -seconds[stage])[:MOST_STAGES]


def _build_columns(facts: Sequence[Mapping[str, Any]], numbers: Mapping[str, Number]) -> dict[str, list[Any]]:
    columns = {
        name: [round_number(number(row), FINE_DIGITS if name.startswith(FINE) else DIGITS) for row in facts]
        for name, number in numbers.items()
    }
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def _list_depth_measures(runs: Sequence[HistoryEvent]) -> list[str]:
    """Return the measures at depths of the lists, for example fill_rate_at_10, of the newest run."""
    names = dict.fromkeys(name for run in runs[-1:] for name in run.facts["measures"])
    return [name for name in names if name.startswith(("fill_rate_at_", "fill_at_"))]


def _read_measure(name: str) -> Number:
    return lambda facts: facts["measures"].get(name)


def _read_served(name: str) -> Number:
    return lambda facts: facts["served"].get(name)


def _read_stage(name: str) -> Number:
    return lambda facts: facts["seconds"].get(name)


def _read_zeros(table: str) -> Number:
    """Return a reader of the number of zero vectors; it is 0 if the run reports no such problem."""
    problems = _read_table_fact(table, "problems")
    return lambda facts: None if problems(facts) is None else problems(facts).get("zero_vector", 0)


def _read_table_fact(table: str, *path: str) -> Number:
    def number(facts: Mapping[str, Any]) -> Any:
        value: Any = facts["sides"].get(table)
        for name in path:
            value = None if value is None else value.get(name)
        return value

    return number


POINTS = 75  # of a small chart, which is a hundred pixels wide
OVERVIEW_FIELDS = ("name", "state", "rank", "live", "version", "promise", "asked")
OVERVIEW_RUNS = (
    *("recall", "recall_low", "recall_high", "promise", "overlap", "fill_rate", "query_coverage", "seconds", "memory"),
)
OVERVIEW_PASSES = ("dead", "misses", "lookups")


def build_overview(page: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a generator's page that the overview shows, with series as short as a small chart needs.

    The overview may hold a hundred generators; the rest of a page is loaded when it is opened.
    """
    evidence = [(problem["of"], problem["evidence"]) for problem in page["state"]["troubles"]]
    series = {
        of: _thin_out(page[of], [*names, *(name for table, name in evidence if table == of and name)])
        for of, names in (("runs", OVERVIEW_RUNS), ("passes", OVERVIEW_PASSES))
    }
    return {name: page[name] for name in OVERVIEW_FIELDS if name in page} | series


def _thin_out(table: Mapping[str, Sequence[Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """Return these columns with every n-th row, the last row, and the last two rows in which a column has a value."""
    columns = {name: table[name] for name in ("at", *names) if name in table}
    rows = len(columns["at"])
    selected = set(range(rows - 1, -1, -max(1, -(-rows // POINTS))))
    for values in columns.values():
        known = (row for row in range(rows - 1, -1, -1) if values[row] is not None)
        selected.update(row for row, _ in zip(known, range(2), strict=False))
    return {name: [values[row] for row in sorted(selected)] for name, values in columns.items()}
