"""Expected ranges: the median of earlier values, how far a value may differ, and the figures of a run that are checked.

Takes the facts of runs and gives numbers; words no alerts and reads no files.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "COUNT_MARGIN",
    "COUNT_SHARE",
    "FEWEST",
    "RUN_FIGURES",
    "ExpectedRange",
    "Facts",
    "RunFigure",
    "estimate_range",
]

FEWEST = 3  # earlier values that a range needs
SPREADS = 6.0  # deviations (scaled MAD) that a value may differ by; a year of healthy days stays below that
MAD_TO_DEVIATION = 1.4826

MODEL_DRIFT = 0.1  # 1 - cosine between the two vectors of an id
MOST_MOVED = 0.2  # share of ids whose earlier vector belongs to another id now
LONG_SECONDS = 60.0
LARGE_BYTES = 256e6
SHARE_ZERO = 0.002
COUNT_MARGIN, COUNT_SHARE = 10, 0.2  # a number of items or queries may differ by this much

Facts = Mapping[str, Any]
Worse = Literal["higher", "lower", "either"]
GetNumber = Callable[[Facts], float | None]


@dataclass(frozen=True, slots=True)
class ExpectedRange:
    """The usual value, and how far another value may differ from it."""

    value: float
    allowed: float

    def find_bound(self, value: float, worse: Worse) -> float | None:
        """Return the bound that the value exceeds; None if the value is within the range."""
        over = value - self.value
        if abs(over) <= self.allowed or (worse == "higher" and over < 0) or (worse == "lower" and over > 0):
            return None
        return self.value + (self.allowed if over > 0 else -self.allowed)


def estimate_range(before: Sequence[float], *, floor: float, relative: float = 0.0) -> ExpectedRange | None:
    """Return the range that earlier values suggest; None if there are fewer than `FEWEST`.

    floor, relative: a smaller difference is never reported; in the value's unit, and as a share of the median.
    """
    if len(before) < FEWEST:
        return None
    median = statistics.median(before)
    spread = MAD_TO_DEVIATION * statistics.median(abs(value - median) for value in before)
    return ExpectedRange(median, max(floor, relative * abs(median), SPREADS * spread))


@dataclass(frozen=True, slots=True)
class RunFigure:
    """A number of a run that is compared with the same number of earlier runs."""

    check: str
    what: str  # name of the number in a sentence
    number: GetNumber
    worse: Worse
    cause: str  # the likely cause, for the alert
    floor: float = 0.0
    relative: float = 0.0
    since_last: bool = False  # the number measures a change since an earlier run
    of_lists: bool = False  # compared only with runs of the same settings: k, metric, rules


def _read_measure(name: str) -> GetNumber:
    def number(facts: Facts) -> float | None:
        value: float | None = facts.get("measures", {}).get(name)
        return value

    return number


def _read_table_fact(table: str, *path: str) -> GetNumber:
    def number(facts: Facts) -> float | None:
        value: Any = facts.get("sides", {}).get(table)
        for name in path:
            value = None if value is None else value.get(name)
        return None if value is None else float(value)

    return number


def _read_zero_share(table: str) -> GetNumber:
    def share(facts: Facts) -> float | None:
        report = facts.get("sides", {}).get(table) or {}
        return report["problems"].get("zero_vector", 0) / max(1, report["rows"]) if "rows" in report else None

    return share


def _list_table_figures(table: str) -> Iterator[RunFigure]:
    """Yield the figures that exist for the item table and for the query table."""
    one = "item" if table == "items" else "query"
    yield RunFigure(
        f"{table}_count",
        f"the number of {table}",
        _read_table_fact(table, "vectors"),
        "either",
        f"are the files of the {table} complete, and of one day?",
        floor=COUNT_MARGIN,
        relative=COUNT_SHARE,
    )
    norms = "were the vectors normalized, scaled or exported in another way before?"
    yield RunFigure(
        f"{table}_norms",
        f"median norm of {one} vectors",
        _read_table_fact(table, "norms", "p50"),
        "either",
        norms,
        relative=0.1,
    )
    yield RunFigure(
        f"{table}_norms",
        f"share of {one} vectors with norm 1",
        _read_table_fact(table, "norms", "unit_share"),
        "either",
        norms,
        floor=0.1,
    )
    yield RunFigure(
        f"{table}_zeros",
        f"share of {one} vectors that are zeros",
        _read_zero_share(table),
        "higher",
        f"did an export or a model leave vectors of {table} empty?",
        floor=SHARE_ZERO,
    )
    yield RunFigure(
        f"{table}_model",
        f"drift of {one} vectors",
        _read_measure(f"{table}_drift"),
        "higher",
        f"the vectors of the {table} are those of another model, or of other weights",
        floor=MODEL_DRIFT,
        since_last=True,
    )
    yield RunFigure(
        f"{table}_ids",
        f"share of {table} whose earlier vector belongs to another id now",
        _read_measure(f"{table}_moved"),
        "higher",
        f"ids and vectors of the {table} are shifted against each other",
        floor=MOST_MOVED,
        since_last=True,
    )
    yield RunFigure(
        f"{table}_shift",
        f"shift of the mean {one} vector",
        _read_measure(f"{table}_shift"),
        "higher",
        f"another mix of {table}, or a part of them is missing",
        floor=0.25,
        since_last=True,
    )


def _make_list_figure(
    check: str, what: str, measure: str, worse: Worse, cause: str, floor: float, **options: Any
) -> RunFigure:
    return RunFigure(check, what, _read_measure(measure), worse, cause, floor, of_lists=True, **options)


_LOAD = "was there more data, or other work on the machine?"
_BUDGET = "was there more data, or a larger budget?"
_MODELS = "do both tables come from one model?"

RUN_FIGURES = (
    *_list_table_figures("items"),
    *_list_table_figures("queries"),
    _make_list_figure(
        "copies", "share of copies in the lists", "repeats", "higher", "is an item in the files many times?", 0.003
    ),
    _make_list_figure("overlap", "overlap", "overlap", "lower", "the lists are not those", 0.2, since_last=True),
    _make_list_figure("scores", "median score", "score_p50", "either", _MODELS, 1e-6, relative=0.15),
    _make_list_figure("scores", "median best score", "best_score_p50", "either", _MODELS, 1e-6, relative=0.15),
    _make_list_figure(
        "fill", "fill rate", "fill_rate", "lower", "too few items exist, or pass the rules, caps and min_score", 0.02
    ),
    _make_list_figure(
        "coverage", "query coverage", "query_coverage", "lower", "queries have no vectors or no candidates", 0.02
    ),
    _make_list_figure("coverage", "item coverage", "item_coverage", "lower", "fewer items are in a list", 0.15),
    RunFigure(
        "seconds",
        "seconds of the run",
        lambda facts: facts.get("seconds_total"),
        "higher",
        _LOAD,
        LONG_SECONDS,
        1.0,
        of_lists=True,
    ),
    RunFigure(
        "memory",
        "bytes of memory",
        lambda facts: facts.get("peak_memory_bytes"),
        "higher",
        _BUDGET,
        LARGE_BYTES,
        0.5,
        of_lists=True,
    ),
)
