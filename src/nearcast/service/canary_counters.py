"""Counters of a canary by arm. They follow the figures of its tally, which requests and the polling thread fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearcast.measure.canary_figures import LATENCY_BOUNDS, ArmFigures, CanaryFigures
from nearcast.serve.canary_tally import CanaryTally

__all__ = ["CanaryCounters"]

ARMS = ("current", "canary")


class CanaryCounters:
    """The counters of all canaries of a process. They keep counting when a new canary starts."""

    def __init__(self, families: Mapping[str, Any]) -> None:
        self._families = families
        self._counted: dict[str, tuple[str, CanaryFigures]] = {}  # generator: source, and its figures until now

    def follow(self, generator: str, tally: CanaryTally) -> None:
        """Count what a tally has measured since the last call."""
        figures = tally.figures
        source, before = self._counted.get(generator, ("", CanaryFigures()))
        before = before if source == tally.source else CanaryFigures()
        self._counted[generator] = tally.source, figures
        self._add("nearcast_canary_routed_total", figures.routed - before.routed, generator)
        self._add("nearcast_canary_compared_total", figures.compared - before.compared, generator)
        self._add("nearcast_canary_overlap_total", figures.overlap - before.overlap, generator)
        for arm in ARMS:
            self._follow_arm(generator, arm, getattr(figures, arm), getattr(before, arm))

    def _follow_arm(self, generator: str, arm: str, now: ArmFigures, before: ArmFigures) -> None:
        self._add("nearcast_canary_answers_total", now.answers - before.answers, generator, arm)
        self._add("nearcast_canary_empty_total", now.empty - before.empty, generator, arm)
        self._add("nearcast_canary_errors_total", now.errors - before.errors, generator, arm)
        self._add("nearcast_canary_fill_total", now.fill - before.fill, generator, arm)
        histogram = self._families["nearcast_canary_seconds"].labels(generator, arm)
        for bound, count, last in zip(
            (*LATENCY_BOUNDS, 2 * LATENCY_BOUNDS[-1]), now.latency, before.latency, strict=True
        ):
            for _ in range(count - last):
                histogram.observe(bound)

    def _add(self, name: str, amount: float, *labels: str) -> None:
        counter = self._families[name].labels(*labels)  # also if nothing is counted: a query adds errors to answers
        if amount > 0:
            counter.inc(amount)
