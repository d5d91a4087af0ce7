"""What tuning has found, as plain data: the trials, the frontier, and the suggestion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nearcast.files import write_text
from nearcast.measure.recall import Recall
from nearcast.tuning.job_cost import JobCost
from nearcast.tuning.trial import Trial

__all__ = ["LargerSampleCheck", "PricedTrial", "TuningResult", "save"]


@dataclass(frozen=True, slots=True)
class LargerSampleCheck:
    """The suggestion on a larger sample: what was predicted for it from the smaller one, and what it took."""

    sample_items: int
    predicted_seconds: float  # build and join
    measured_seconds: float


@dataclass(frozen=True, slots=True)
class PricedTrial:
    """A trial, and what the whole job would cost by it."""

    trial: Trial
    costs: Mapping[float, JobCost]  # by promise that it keeps

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        costs = {f"{promise:g}": asdict(cost) | {"seconds": cost.seconds} for promise, cost in self.costs.items()}
        return self.trial.as_dict() | {"costs": costs}


@dataclass(frozen=True, slots=True)
class TuningResult:
    """What tuning has found."""

    generator: str
    promise: float
    n_items: int
    n_queries: int
    found: tuple[PricedTrial, ...]  # by this tuning and by earlier ones like it
    ruled_out: tuple[str, ...]  # points that were not tried, and why
    suggestion: PricedTrial
    reason: str
    held_out: Recall  # of the suggestion, on queries that it was not chosen on
    check: LargerSampleCheck | None  # None: the sample was all items
    exact_seconds: float  # of an exact native join of everything
    budget_seconds: float
    seconds: float  # that tuning took
    isa: str

    @property
    def frontier(self) -> list[tuple[float, PricedTrial]]:
        """(promise, what keeps it at the least cost), without promises that a higher one costs less than."""
        cheapest: dict[float, PricedTrial] = {}
        for found in self.found:
            for promise, cost in found.costs.items():
                if promise not in cheapest or cost.seconds < cheapest[promise].costs[promise].seconds:
                    cheapest[promise] = found
        return [
            (promise, found)
            for promise, found in sorted(cheapest.items())
            if not any(o > promise and f.costs[o].seconds <= found.costs[promise].seconds for o, f in cheapest.items())
        ]

    @property
    def lines(self) -> str:
        """The lines for the spec."""
        point = self.suggestion.trial.point
        settings = ", ".join(f"{name} = {value}" for name, value in point.settings.items())
        return f'engine = "{point.engine}"\nengine_settings = {{ {settings} }}'

    def as_dict(self) -> dict[str, Any]:
        """Plain data: everything that a picture or a page needs."""
        return {
            "generator": self.generator,
            "promise": self.promise,
            "n_items": self.n_items,
            "n_queries": self.n_queries,
            "found": [found.as_dict() for found in self.found],
            "ruled_out": list(self.ruled_out),
            "frontier": [
                {"promise": promise, "point": found.trial.point.name, "seconds": found.costs[promise].seconds}
                for promise, found in self.frontier
            ],
            "suggestion": self.suggestion.as_dict(),
            "lines": self.lines,
            "reason": self.reason,
            "held_out": asdict(self.held_out),
            "check": None if self.check is None else asdict(self.check),
            "exact_seconds": self.exact_seconds,
            "budget_seconds": self.budget_seconds,
            "seconds": self.seconds,
            "isa": self.isa,
        }


def save(tuned: TuningResult, path: Path) -> None:
    """Keep it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(tuned.as_dict(), indent=1) + "\n")
