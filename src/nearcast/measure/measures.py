"""The table of all measures: name, unit, better direction, and meaning in a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["COMPARED", "MEASURES", "Measure", "format_value"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of a run."""

    name: str
    unit: Literal["share", "score", "count", "ratio"]
    better: Literal["higher", "lower", "neither"]
    meaning: str


def _interval(name: str, meaning: str) -> Iterator[Measure]:
    """Yield a recall and both ends of its 95% interval."""
    yield Measure(name, "share", "higher", meaning)
    yield Measure(f"{name}_low", "share", "higher", f"lower end of the 95% interval of {name}")
    yield Measure(f"{name}_high", "share", "higher", f"upper end of the 95% interval of {name}")


def _drift(table: str) -> Iterator[Measure]:
    """Yield the measures of a table's vectors against the served snapshot, else the last."""
    yield Measure(f"{table}_drift", "ratio", "neither", f"{table}: median of 1 - cosine of an id's old and new vector")
    yield Measure(
        f"{table}_shift",
        "ratio",
        "neither",
        f"{table}: shift of the mean vector, by the vectors' distance from it",
    )
    yield Measure(f"{table}_moved", "share", "lower", f"{table}: ids whose old vector belongs to another id now")


COMPARED = "the snapshot that is served, else the last,"  # baseline of the measures of change

_ROWS = (
    Measure("recall", "share", "higher", "recall@k: true nearest items found, on a sample of queries"),
    Measure("recall_low", "share", "higher", "lower end of the 95% interval of recall"),
    Measure("recall_high", "share", "higher", "upper end of the 95% interval of recall"),
    Measure("recall_sample", "count", "neither", "queries that recall was measured on"),
    *_interval("recall_at_1", "recall@1: queries whose nearest item is the first candidate"),
    *_interval("recall_at_10", "recall@10: the ten nearest items found among the first ten candidates"),
    *_interval("recall_by_traffic", "recall@k with each query counted by its weight"),
    Measure(
        "score_regret",
        "share",
        "lower",
        "by how much the lists score below the true nearest; a missed tie costs nothing",
    ),
    Measure(
        "repeats",
        "share",
        "lower",
        "candidates with the same vector as the one before: copies of an item",
    ),
    Measure("score_ties", "share", "lower", "candidates whose score is that of the one before them: ids decide"),
    Measure("fill_rate", "share", "higher", "slots that hold a candidate"),
    Measure("surplus_slots", "count", "neither", "candidates stored by the over-fetch plan"),
    Measure("surplus_short", "count", "lower", "queries that cannot have enough survivors, listed with the reason"),
    Measure("surplus_below", "share", "lower", "requests that are expected to end with too few survivors"),
    Measure("exposure_score_lost", "score", "lower", "mean score per slot lost to the exposure cap"),
    Measure("exposure_fill_lost", "share", "lower", "slots that the exposure cap leaves empty"),
    Measure("exposure_full", "count", "neither", "items that are in as many lists as the exposure cap allows"),
    Measure(
        "fill_at_m",
        "share",
        "higher",
        "lists with as many candidates as `[measure] fill_at` asks for",
    ),
    Measure("query_coverage", "share", "higher", "rows of the query input that have at least one candidate"),
    Measure("short_lists", "count", "lower", "queries with fewer than k candidates"),
    Measure("item_coverage", "share", "higher", "items that appear in at least one list"),
    Measure(
        "exposure_gini",
        "ratio",
        "lower",
        "how unevenly items appear: 0 if all appear equally, 1 if one item takes all slots",
    ),
    Measure("exposure_top1", "share", "lower", "slots that the most frequent 1% of items take"),
    Measure("score_p01", "score", "neither", "score that 1% of the candidates are below"),
    Measure("score_p50", "score", "neither", "median score of the candidates"),
    Measure("score_p99", "score", "neither", "score that 99% of the candidates are below"),
    Measure("best_score_p50", "score", "neither", "median score of the first candidate"),
    Measure(
        "overlap",
        "share",
        "neither",
        f"overlap@k: candidates kept since {COMPARED} per query of both",
    ),
    Measure(
        "queries_kept",
        "share",
        "neither",
        f"queries of {COMPARED} that are in this one",
    ),
    *_drift("items"),
    *_drift("queries"),
)

MEASURES: Mapping[str, Measure] = {row.name: row for row in _ROWS}


def format_value(name: str, value: float | None) -> str:
    """Format a measure for people: shares as percentages, counts with separators."""
    if value is None:
        return "-"
    unit = MEASURES[name].unit
    if unit == "share":
        return f"{value:.2%}"
    if unit == "count":
        return f"{int(value):,}"
    return f"{value:.4g}"
