"""The one table of measures: name, unit, better direction, and what it means in a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["MEASURES", "Measure", "format_value"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A quality number that every run records."""

    name: str
    unit: Literal["share", "score", "count", "ratio"]
    better: Literal["higher", "lower", "neither"]
    meaning: str


_ROWS = (
    Measure("recall", "share", "higher", "recall@k: true nearest items found, on a sample of queries"),
    Measure("recall_low", "share", "higher", "lower end of the 95% interval of recall"),
    Measure("recall_high", "share", "higher", "upper end of the 95% interval of recall"),
    Measure("recall_sample", "count", "neither", "queries that recall was measured on"),
    Measure("fill_rate", "share", "higher", "slots that hold a candidate"),
    Measure("query_coverage", "share", "higher", "rows of the query input that have at least one candidate"),
    Measure("short_lists", "count", "lower", "queries with fewer than k candidates"),
    Measure("item_coverage", "share", "higher", "items that appear in at least one list"),
    Measure("exposure_gini", "ratio", "lower", "how unevenly items appear: 0 all alike, 1 one item takes all"),
    Measure("exposure_top1", "share", "lower", "slots that the most frequent 1% of items take"),
    Measure("score_p01", "score", "neither", "score that 1% of the candidates are below"),
    Measure("score_p50", "score", "neither", "median score of the candidates"),
    Measure("score_p99", "score", "neither", "score that 99% of the candidates are below"),
    Measure("best_score_p50", "score", "neither", "median score of the first candidate"),
    Measure("overlap", "share", "neither", "overlap@k: candidates kept since the last snapshot, per query of both"),
    Measure("queries_kept", "share", "neither", "queries of the last snapshot that are in this one"),
)

MEASURES: Mapping[str, Measure] = {row.name: row for row in _ROWS}


def format_value(name: str, value: float | None) -> str:
    """A measure as people read it: shares as percentages, counts with separators."""
    if value is None:
        return "-"
    unit = MEASURES[name].unit
    if unit == "share":
        return f"{value:.2%}"
    if unit == "count":
        return f"{int(value):,}"
    return f"{value:.4g}"
