"""The outcome of an evaluation, as plain values: metrics with intervals, differences, slices, and promises.

Knows nothing of lists and labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Evaluation", "LabelFigure", "PromiseCheck", "RivalFigures", "SliceFigures", "check_promises"]


@dataclass(frozen=True, slots=True)
class LabelFigure:
    """The mean of a metric over queries, or of its differences, with the 95% interval."""

    value: float
    low: float
    high: float


Figures = Mapping[str, LabelFigure]  # by metric


@dataclass(frozen=True, slots=True)
class RivalFigures:
    """Metrics of lists that the evaluated ones are compared with, over the same queries."""

    name: str  # served 000006, popularity, 000003
    metrics: Figures
    leads: Figures  # evaluated lists minus these, query by query
    without_list: int  # measured queries that have no list here


@dataclass(frozen=True, slots=True)
class SliceFigures:
    """Metrics over the queries of one value; leads over the first rival."""

    by: str
    value: str
    queries: int
    metrics: Figures
    leads: Figures | None = None


@dataclass(frozen=True, slots=True)
class PromiseCheck:
    """A promised minimum of a metric, and whether the metric reaches it."""

    metric: str
    bound: float
    value: float
    low: float
    high: float
    kept: bool

    def describe(self) -> str:
        """Return the check in one clause."""
        return (
            f"{self.metric} is {self.value:.4f} (95% interval {self.low:.4f} to {self.high:.4f}), "
            f"and {self.bound:g} is promised"
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Lists judged by labels."""

    generator: str
    version: int
    labels: Mapping[str, Any]  # path, files with hashes, and counts; see `describe_labels`
    queries: int  # that the metrics are means of
    without_list: int  # labelled queries that the snapshot does not hold: misses, or left out
    unknown_items: int | None  # relevant items, of all labels, that the snapshot does not hold; None: not counted
    metrics: Figures
    rivals: tuple[RivalFigures, ...] = ()
    slices: tuple[SliceFigures, ...] = ()
    promises: tuple[PromiseCheck, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def broken(self) -> tuple[PromiseCheck, ...]:
        """The promises that are not kept."""
        return tuple(check for check in self.promises if not check.kept)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data. The keys are a format: history, manifest, --json."""
        return asdict(self)


def check_promises(metrics: Figures, promises: Mapping[str, float]) -> tuple[PromiseCheck, ...]:
    """Compare the metrics with their promised minimum. The metric itself counts, not the end of its interval."""
    checks = []
    for name, bound in promises.items():
        figure = metrics[name]
        checks.append(PromiseCheck(name, bound, figure.value, figure.low, figure.high, figure.value >= bound))
    return tuple(checks)


def parse_figures(facts: Mapping[str, Mapping[str, float]]) -> dict[str, LabelFigure]:
    """Return the figures of a manifest or a history."""
    return {name: LabelFigure(figure["value"], figure["low"], figure["high"]) for name, figure in facts.items()}
