"""The result of a tuning as plain data: the trials, the frontier, and the suggestion."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nearcast.files import write_text
from nearcast.measure.recall import Recall
from nearcast.tuning.job_cost import JobCost
from nearcast.tuning.trial import Trial

__all__ = ["LargerSampleCheck", "PricedTrial", "TuningResult", "save_result"]


@dataclass(frozen=True, slots=True)
class LargerSampleCheck:
    """The suggestion on a larger sample: the time predicted from the smaller sample, and the measured time."""

    sample_items: int
    predicted_seconds: float  # build and join
    measured_seconds: float


@dataclass(frozen=True, slots=True)
class PricedTrial:
    """A trial, and the estimated cost of the whole job."""

    trial: Trial
    costs: Mapping[float, JobCost]  # by recall target that it reaches

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        costs = {f"{target:g}": asdict(cost) | {"seconds": cost.seconds} for target, cost in self.costs.items()}
        return self.trial.as_dict() | {"costs": costs}


@dataclass(frozen=True, slots=True)
class TuningResult:
    """The trials of a tuning, and the suggested configuration."""

    generator: str
    target: float  # recall of the spec
    n_items: int
    n_queries: int
    trials: tuple[PricedTrial, ...]  # of this tuning, and of earlier ones of the same job
    ruled_out: tuple[str, ...]  # configurations that were not tried, and why
    suggestion: PricedTrial
    reason: str
    held_out: Recall  # of the suggestion, on held-out queries
    check: LargerSampleCheck | None  # None if the sample was all items
    exact_seconds: float  # of an exact native join of the whole tables
    budget_seconds: float
    seconds: float  # of the tuning
    isa: str

    @property
    def promise(self) -> float:
        """Return `target`. Deprecated name."""
        warnings.warn("TuningResult.promise is now TuningResult.target", DeprecationWarning, stacklevel=2)
        return self.target

    @property
    def found(self) -> tuple[PricedTrial, ...]:
        """Return `trials`. Deprecated name."""
        warnings.warn("TuningResult.found is now TuningResult.trials", DeprecationWarning, stacklevel=2)
        return self.trials

    @property
    def frontier(self) -> list[tuple[float, PricedTrial]]:
        """Return (recall target, cheapest trial that reaches it), without targets that cost more than a higher one."""
        cheapest: dict[float, PricedTrial] = {}
        for priced in self.trials:
            for target, cost in priced.costs.items():
                if target not in cheapest or cost.seconds < cheapest[target].costs[target].seconds:
                    cheapest[target] = priced
        return [
            (target, priced)
            for target, priced in sorted(cheapest.items())
            if not any(o > target and p.costs[o].seconds <= priced.costs[target].seconds for o, p in cheapest.items())
        ]

    @property
    def lines(self) -> str:
        """Return the lines for the spec."""
        point = self.suggestion.trial.point
        settings = ", ".join(f"{name} = {value}" for name, value in point.settings.items())
        return f'engine = "{point.engine}"\nengine_settings = {{ {settings} }}'

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, enough for a picture or a page."""
        return {
            "generator": self.generator,
            "promise": self.target,
            "n_items": self.n_items,
            "n_queries": self.n_queries,
            "found": [priced.as_dict() for priced in self.trials],
            "ruled_out": list(self.ruled_out),
            "frontier": [
                {"promise": target, "point": priced.trial.point.name, "seconds": priced.costs[target].seconds}
                for target, priced in self.frontier
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


def save_result(tuned: TuningResult, path: Path) -> None:
    """Write the result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(tuned.as_dict(), indent=1) + "\n")
